//! See `lingconv_fuzz::planner`.
#![cfg_attr(fuzzing, no_main)]

lingconv_fuzz::target!(planner);
