//! See `lingconv_fuzz::header`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(header);
