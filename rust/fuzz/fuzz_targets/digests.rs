//! See `lingconv_fuzz::digests`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(digests);
