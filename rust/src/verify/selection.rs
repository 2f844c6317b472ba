//! Which files are looked at.

use std::collections::BTreeSet;
use std::str::FromStr;

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::cut::{Cut, Share};
use crate::error::{Error, Result};
use crate::model::parallel::RankOnly;

/// Which share of the files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subset {
    /// Part `index` of `count`, counted from 1.
    Part {
        /// 1 to `count`.
        index: usize,
        /// Parts in all.
        count: usize,
    },
    /// About this share, the same files every time.
    Percent(u32),
}

impl FromStr for Subset {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("{text:?} is no subset"))
                .hint("a share such as 10%, or a part such as 3/10")
        };
        if let Some(percent) = text.strip_suffix('%') {
            let percent: u32 = percent.parse().map_err(|_| bad())?;
            return if (1..=100).contains(&percent) {
                Ok(Self::Percent(percent))
            } else {
                Err(bad())
            };
        }
        let (index, count) = text.split_once('/').ok_or_else(bad)?;
        let (index, count) = (index.parse().map_err(|_| bad())?, count.parse().map_err(|_| bad())?);
        if index >= 1 && index <= count { Ok(Self::Part { index, count }) } else { Err(bad()) }
    }
}

impl Subset {
    /// The files of the subset.
    pub(super) fn of(self, mut files: Vec<(String, u64)>) -> Vec<(String, u64)> {
        let mut at = 0;
        match self {
            Self::Part { index, count } => files.retain(|_| {
                at += 1;
                (at - 1) % count == index - 1
            }),
            Self::Percent(percent) => files.retain(|(name, _)| {
                xxhash_rust::xxh3::xxh3_64(name.as_bytes()) % 100 < u64::from(percent)
            }),
        }
        files
    }
}

/// The files that the user, or the share of a node, narrows a verification to.
pub(super) struct Selection {
    globs: Option<GlobSet>,
    share: Option<Share>,
    present: BTreeSet<String>,
}

impl Selection {
    /// Files that match one of `globs`, or any if there are none, and belong to `ranks`; `names` are
    /// in the folder.
    pub(super) fn new(
        globs: &[String],
        ranks: Option<RankOnly>,
        cut: Option<&Cut>,
        names: &[String],
    ) -> Result<Self> {
        let share = match (ranks, cut) {
            (None, _) => None,
            (Some(ranks), Some(cut)) => Some(cut.share(ranks)?),
            (Some(_), None) => {
                return Err(Error::usage(
                    "--rank: no manifest says how the folder was cut for ranks",
                )
                .hint("narrow it by names: --files GLOB"));
            }
        };
        Ok(Self { globs: compile(globs)?, share, present: names.iter().cloned().collect() })
    }

    /// Whether a file is looked at.
    pub(super) fn has(&self, name: &str) -> bool {
        let held = |share: &Share| share.has(name, self.present.contains(name));
        self.globs.as_ref().is_none_or(|g| g.is_match(name)) && self.share.as_ref().is_none_or(held)
    }
}

fn compile(globs: &[String]) -> Result<Option<GlobSet>> {
    if globs.is_empty() {
        return Ok(None);
    }
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(Glob::new(glob).map_err(|e| Error::usage(format!("--files: {e}")))?);
    }
    builder.build().map(Some).map_err(|e| Error::usage(format!("--files: {e}")))
}
