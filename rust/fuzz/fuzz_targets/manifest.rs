//! See `lingconv_fuzz::manifest`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(manifest);
