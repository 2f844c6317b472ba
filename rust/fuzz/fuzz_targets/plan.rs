//! See `lingconv_fuzz::plan`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(plan);
