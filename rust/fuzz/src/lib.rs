//! Fuzz targets: what the internet, a disk or a user could hand to lingconv, and what must hold
//! whatever it is.
//!
//! Each target is a module with one function `check`, which ends quietly or panics. The same
//! function is run by libFuzzer (`fuzz_targets`, under `make fuzz`), by a target's own program on
//! the files named on its command line, and by `cargo test` on the whole `corpus`.
//!
//! Nothing may panic, and nothing may end as [`Kind::Internal`]: that kind says that lingconv
//! itself is wrong. What else holds of a target is written at its head.

pub mod catalog;
pub mod digests;
pub mod folder;
pub mod header;
pub mod journal;
pub mod kernels;
pub mod manifest;
pub mod plan;
pub mod planner;
pub mod rules;
pub mod tiny;

use lingconv_core::error::{Error, Kind};

/// What a target does with an input.
pub type Check = fn(&[u8]);

/// Every target: its name, which is that of its corpus, and its function.
pub const TARGETS: [(&str, Check); 9] = [
    ("header", header::check),
    ("catalog", catalog::check),
    ("manifest", manifest::check),
    ("journal", journal::check),
    ("plan", plan::check),
    ("digests", digests::check),
    ("rules", rules::check),
    ("planner", planner::check),
    ("kernels", kernels::check),
];

/// The program of a target: for libFuzzer, or to run it on files by hand.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name::check(data));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::on_files($crate::$name::check);
        }
    };
}

/// Runs a target on the files named on the command line.
///
/// # Panics
/// If a file cannot be read, or the target finds a fault.
#[expect(clippy::disallowed_methods, reason = "inputs belong to no checkpoint")]
pub fn on_files(check: Check) {
    for path in std::env::args_os().skip(1) {
        match std::fs::read(&path) {
            Ok(data) => check(&data),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

/// What came of something, unless it was refused, for which lingconv itself must not be to blame.
///
/// # Panics
/// If the error is [`Kind::Internal`].
pub fn sound<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_ne!(error.kind, Kind::Internal, "{error}");
            None
        }
    }
}
