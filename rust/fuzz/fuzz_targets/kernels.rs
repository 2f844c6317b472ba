//! See `lingconv_fuzz::kernels`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(kernels);
