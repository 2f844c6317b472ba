//! The part of a request that only `reshard` has.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::link::Link;
use crate::model::parallel::{MAX_RANKS, RankOnly};
use crate::target::Target;

/// Bytes of a part unless the user says otherwise.
pub const PART: u64 = 5_000_000_000;

/// How many ranks of each kind, and for which engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshard {
    /// Name of a built-in target.
    pub target: String,
    /// Text of a target file that replaces the built-in one.
    #[serde(default)]
    pub target_file: Option<String>,
    /// Tensor parallel size.
    pub tp: u32,
    /// Pipeline parallel size.
    pub pp: u32,
    /// Expert parallel size; 1: experts are cut as everything else.
    pub ep: u32,
    /// Layers of each pipeline stage; empty: as the engine deals them out.
    #[serde(default)]
    pub pp_layers: Vec<u32>,
    /// Bytes at which a part ends, at the next boundary of a tensor.
    #[serde(default = "part")]
    pub shard_size: u64,
    /// `fp8`: encode in the same pass, with the options of `quantize`.
    #[serde(default)]
    pub format: Option<Format>,
    /// Keep the MTP layers.
    #[serde(default)]
    pub keep_mtp: bool,
    /// Write only the files of these ranks.
    #[serde(default)]
    pub rank: Option<RankOnly>,
    /// How files that stay as they are get into the output.
    #[serde(default)]
    pub link: Link,
    /// Restore what there is of an original of which something was left out or encoded.
    #[serde(default)]
    pub partial: bool,
    /// Text of a map of experts: in which order each layer's lie.
    #[serde(default)]
    pub experts: Option<String>,
}

/// A number format to encode to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// E4M3 with scales.
    Fp8,
}

fn part() -> u64 {
    PART
}

impl Reshard {
    /// Refuses sizes that make no sense for any model.
    pub(in crate::plan) fn check(&self) -> Result<()> {
        for (option, size) in [("--tp", self.tp), ("--pp", self.pp), ("--ep", self.ep)] {
            if !(1..=MAX_RANKS).contains(&size) {
                return Err(Error::usage(format!("{option} takes 1 to {MAX_RANKS}, not {size}")));
            }
        }
        if self.shard_size == 0 {
            return Err(Error::usage("--shard-size of 0 bytes"));
        }
        self.rank.unwrap_or_default().check(self.tp, self.pp)
    }

    /// Target and layout in words.
    pub(in crate::plan) fn words(&self) -> String {
        let Self { target, tp, pp, ep, .. } = self;
        let expert = if *ep > 1 { format!(" × EP {ep}") } else { String::new() };
        let rank = self.rank.map(|r| {
            let part = |name: &str, rank: Option<u32>| rank.map(|n| format!(" {name}{n}"));
            let parts = [part("tp", r.tp), part("pp", r.pp)];
            format!(", rank{}", parts.into_iter().flatten().collect::<String>())
        });
        let order = self.experts.as_ref().map_or("", |_| ", experts reordered");
        format!("{target}, TP {tp} × PP {pp}{expert}{}{order}", rank.unwrap_or_default())
    }

    /// Whether files of stage `pp` are written, and of which ranks of `all`.
    pub(super) fn selected(&self, pp: u32, all: std::ops::Range<u32>) -> Vec<u32> {
        let Some(only) = self.rank else { return all.collect() };
        all.filter(|tp| only.includes(*tp, pp)).collect()
    }

    /// Whether files of stage `pp` are written, whatever their tensor parallel rank.
    pub(super) fn has_stage(&self, pp: u32) -> bool {
        self.rank.is_none_or(|only| only.pp.is_none_or(|p| p == pp))
    }

    /// The target asked for.
    pub(in crate::plan) fn load_target(&self) -> Result<Target> {
        match &self.target_file {
            Some(text) => Target::parse(text),
            None => Target::builtin(&self.target)
                .ok_or_else(|| Error::usage(format!("no target is called {:?}", self.target))),
        }
    }
}
