//! `verify`: is this folder what it should be?
//!
//! Four levels, each including the ones before: headers, sizes, checksums, content. What a file
//! should be is said by a source of truth ([`digests`]); what a checkpoint should be is said by its
//! own index, headers and config ([`structure`]). Bytes are read once for everything that needs
//! them ([`engine`]): whole-file digests, digests of tensors, the scan of [`content`], and what the
//! weights of experts tell. What was converted can also be held against its source, converted again
//! ([`remake`]).
//!
//! Nothing here stops at the first problem. Every problem becomes a [`Finding`] with a category, a
//! file and, where possible, a tensor; the caller decides what they mean for the exit code by
//! [`Report::verdict`].

mod compared;
pub mod content;
pub mod cut;
mod diagnosis;
pub mod digests;
pub(crate) mod edits;
pub mod engine;
mod experts;
pub mod findings;
mod folder;
mod reading;
pub mod remake;
pub mod selection;
pub mod state;
pub mod structure;

pub use engine::{Options, verify};
pub use findings::{Category, Finding, Report, Verdict};
pub use remake::Remake;

use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Kind};

/// The finding for a source of truth in the folder `path` that could not be read; other errors
/// are given back.
pub fn damaged_truth(path: &Path, error: Error) -> Result<Finding, Error> {
    if !matches!(error.kind, Kind::Invalid | Kind::Impossible | Kind::Io) {
        return Err(error);
    }
    let file = name_in(path, error.path.as_deref().unwrap_or(path));
    Ok(Finding::of(Category::DamagedTruth, file, error))
}

/// Name of `file` in `folder`, as findings have it.
fn name_in(folder: &Path, file: &Path) -> String {
    let whole = folder.canonicalize().ok();
    let inside = file.strip_prefix(folder).ok().or_else(|| file.strip_prefix(whole.as_ref()?).ok());
    inside.unwrap_or(file).display().to_string()
}

/// How much is checked; each level includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Headers, index, config and names.
    Headers,
    /// Sizes of files.
    Sizes,
    /// Digests of files, and of tensors where a manifest has them.
    Checksums,
    /// NaN, infinity, zeros, scales.
    Content,
}

impl FromStr for Level {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "headers" => Ok(Self::Headers),
            "sizes" => Ok(Self::Sizes),
            "checksums" => Ok(Self::Checksums),
            "content" => Ok(Self::Content),
            _ => Err(Error::usage(format!("unknown level {text:?}"))
                .hint("one of: headers, sizes, checksums, content")),
        }
    }
}
