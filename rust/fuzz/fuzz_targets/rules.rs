//! See `lingconv_fuzz::rules`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(rules);
