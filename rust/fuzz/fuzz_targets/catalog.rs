//! See `lingconv_fuzz::catalog`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(catalog);
