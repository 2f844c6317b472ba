//! See `lingconv_fuzz::journal`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(journal);
