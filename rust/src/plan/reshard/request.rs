//! The part of a request that only `reshard` has.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::io::link::Link;
use crate::json::at_most;
use crate::model::parallel::{MAX_RANKS, RankOnly};
use crate::target::Target;

/// Bytes of a part unless the user says otherwise.
pub const PART: u64 = 5_000_000_000;

/// Longest list of a request, of stages or of ranks.
const MOST: usize = MAX_RANKS as usize;

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
    #[serde(default, deserialize_with = "at_most::<_, _, MOST>")]
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
    /// Ranks whose files earlier runs with `rank` have written into the same folder.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "at_most::<_, _, MOST>"
    )]
    pub earlier: Vec<RankOnly>,
    /// Restore what there is of an original of which something was left out or encoded.
    #[serde(default)]
    pub partial: bool,
    /// Text of a map of experts: in which order each layer's lie.
    #[serde(default)]
    pub experts: Option<String>,
}

/// Tensor parallel ranks of each stage.
pub(super) type Share = Vec<Vec<u32>>;

/// Who writes the files of which ranks.
pub(super) struct Shares {
    /// A share a run; none of them overlap.
    pub written: Vec<Share>,
    /// What is left.
    pub expected: Share,
}

impl Shares {
    /// Whether everything that `ask` writes is written.
    fn holds(&self, ask: &Reshard) -> bool {
        let wanted = ask.rank.unwrap_or_default();
        let left =
            (0..).zip(&self.expected).flat_map(|(pp, tps)| tps.iter().map(move |tp| (*tp, pp)));
        !left.into_iter().any(|(tp, pp)| wanted.includes(tp, pp))
    }
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
        if u64::from(self.tp) * u64::from(self.pp) > u64::from(MAX_RANKS) {
            return Err(Error::usage(format!(
                "--tp {} times --pp {} are more than {MAX_RANKS} ranks",
                self.tp, self.pp
            )));
        }
        if !self.earlier.is_empty() && self.rank.is_none() {
            return Err(Error::usage("a request adds to ranks without naming one"));
        }
        let mut ranks = self.earlier.iter().chain(&self.rank);
        ranks.try_for_each(|rank| rank.check(self.tp, self.pp))
    }

    /// Target and layout in words.
    pub(in crate::plan) fn words(&self) -> String {
        let Self { target, tp, pp, ep, .. } = self;
        let expert = if *ep > 1 { format!(" × EP {ep}") } else { String::new() };
        let ranks: Vec<String> =
            self.earlier.iter().chain(&self.rank).map(RankOnly::words).collect();
        let rank = self.rank.map(|_| format!(", rank {}", ranks.join(" and ")));
        let order = self.experts.as_ref().map_or("", |_| ", experts reordered");
        format!("{target}, TP {tp} × PP {pp}{expert}{}{order}", rank.unwrap_or_default())
    }

    /// Whether the folder that this describes holds the files of every rank that `ask` names.
    pub fn holds(&self, ask: &Self) -> bool {
        self.shares().holds(ask)
    }

    /// What each run writes, the earlier ones first.
    pub(super) fn shares(&self) -> Shares {
        let asked = match self.rank {
            Some(rank) => self.earlier.iter().copied().chain([rank]).collect(),
            None => vec![RankOnly::default()],
        };
        let mut left: Share = (0..self.pp).map(|_| (0..self.tp).collect()).collect();
        let take = |only: RankOnly| -> Share {
            let of_stage = |(pp, left): (u32, &mut Vec<u32>)| {
                let (own, rest) = left.iter().partition(|tp| only.includes(**tp, pp));
                *left = rest;
                own
            };
            (0..).zip(left.iter_mut()).map(of_stage).collect()
        };
        let written = asked.into_iter().map(take).collect();
        Shares { written, expected: left }
    }

    /// The same where all ranks of a stage read the same files.
    pub(super) fn shares_of_stages(&self) -> Shares {
        let stage = |rank: &RankOnly| RankOnly { tp: None, ..*rank };
        let earlier = self.earlier.iter().map(stage).collect();
        let rank = self.rank.as_ref().map(stage);
        Self { tp: 1, earlier, rank, ..self.clone() }.shares()
    }

    /// Whether files of stage `pp` are written, whatever their tensor parallel rank.
    pub(super) fn has_stage(&self, pp: u32) -> bool {
        let all = self.earlier.iter().chain(&self.rank);
        self.rank.is_none() || all.into_iter().any(|only| only.pp.is_none_or(|p| p == pp))
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
