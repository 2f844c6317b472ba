//! The arithmetic of tensor, pipeline and expert parallelism: which part of a weight a rank holds.
//!
//! It follows the engines' own loaders (vLLM 0.11 and 0.32, SGLang 0.5): heads of the fused
//! attention weight are dealt out whole, key and value heads are replicated where there are more
//! ranks than heads, experts are dealt out in runs, and the layers that pipeline stages cannot
//! share evenly go where the engine puts them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::role::Axis;
use crate::error::{Error, Result};

/// Most ranks of one kind; the largest published deployments have a few hundred.
pub const MAX_RANKS: u32 = 4096;

/// Some of all ranks; what is not named means all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankOnly {
    /// Tensor parallel rank, from 0.
    #[serde(default)]
    pub tp: Option<u32>,
    /// Pipeline stage, from 0.
    #[serde(default)]
    pub pp: Option<u32>,
}

impl RankOnly {
    /// Refuses ranks that a layout of `tp` times `pp` ranks does not have.
    pub fn check(&self, tp: u32, pp: u32) -> Result<()> {
        for (name, rank, size) in [("tp", self.tp, tp), ("pp", self.pp, pp)] {
            if let Some(rank) = rank.filter(|r| *r >= size) {
                return Err(Error::usage(format!(
                    "--rank {name}{rank}: ranks count from 0, so the last is {name}{}",
                    size.saturating_sub(1)
                )));
            }
        }
        Ok(())
    }

    /// As it is typed.
    pub fn words(&self) -> String {
        let part = |name: &str, rank: Option<u32>| rank.map(|n| format!("{name}{n}"));
        let parts: Vec<String> =
            [part("tp", self.tp), part("pp", self.pp)].into_iter().flatten().collect();
        parts.join(",")
    }

    /// Whether this rank is one of them.
    pub fn includes(&self, tp: u32, pp: u32) -> bool {
        self.tp.is_none_or(|t| t == tp) && self.pp.is_none_or(|p| p == pp)
    }
}

/// A rectangle of a matrix, in elements. Tensors of one dimension have one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rect {
    /// Rows of the matrix.
    pub rows: Range<u64>,
    /// Columns of the matrix.
    pub cols: Range<u64>,
}

/// Numbers of heads that cuts of attention weights depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub query: u64,
    /// Key heads, and as many value heads.
    pub kv: u64,
    /// Rows of one head.
    pub dim: u64,
}

/// Stages that take the layers which do not divide evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// One more layer each for the stages before the last, counted backwards (vLLM).
    BeforeLast,
    /// One more layer each for the last stages (SGLang).
    Last,
}

/// Layers of each pipeline stage. `explicit` (`--pp-layers`) wins over `rule` if it is not empty.
///
/// # Errors
/// What is impossible, in a few words: an empty stage, a list of another length or sum.
pub fn stages(
    layers: u32,
    pp: u32,
    explicit: &[u32],
    rule: Remainder,
) -> Result<Vec<Range<u32>>, String> {
    if !explicit.is_empty() {
        let sum: u64 = explicit.iter().map(|n| u64::from(*n)).sum();
        if explicit.len() != pp as usize || sum != u64::from(layers) {
            return Err(format!(
                "--pp-layers names {} stages of {sum} layers, the model has {layers} layers for {pp} stages",
                explicit.len()
            ));
        }
    } else if pp > layers {
        return Err(format!("{pp} pipeline stages for {layers} layers"));
    }
    let (each, left) = (layers / pp, layers % pp);
    let one_more = |stage: u32| match rule {
        Remainder::BeforeLast => stage + 1 < pp && stage + 1 + left >= pp,
        Remainder::Last => stage + left >= pp,
    };
    let mut start = 0;
    let stages: Vec<Range<u32>> = (0..pp)
        .map(|stage| {
            let count = match explicit.get(stage as usize) {
                Some(count) => *count,
                None => each + u32::from(one_more(stage)),
            };
            start += count;
            start - count..start
        })
        .collect();
    match stages.iter().position(Range::is_empty) {
        Some(stage) => Err(format!("pipeline stage {stage} has no layer")),
        None => Ok(stages),
    }
}

/// Experts of expert-parallel rank `rank`, dealt out in runs; the first ranks get one more.
pub fn experts_of(experts: u32, ep: u32, rank: u32) -> Range<u32> {
    let (each, left) = (experts / ep, experts % ep);
    let start = rank * each + rank.min(left);
    start..start + each + u32::from(rank < left)
}

/// Rows of a vocabulary of `vocab` padded to a multiple of `multiple`.
pub fn padded(vocab: u64, multiple: u64) -> u64 {
    vocab.next_multiple_of(multiple.max(1))
}

/// What tensor-parallel rank `rank` of `tp` holds of a `rows` × `cols` weight, in the order in
/// which it lies in the rank's file. `rows` of [`Axis::Vocab`] are the padded ones: rectangles of
/// the last ranks may end beyond the weight.
///
/// Whatever [`uneven`] finds must have been refused.
pub fn cut(
    axis: Axis,
    (rows, cols): (u64, u64),
    heads: Option<Heads>,
    (tp, rank): (u64, u64),
) -> Vec<Rect> {
    let share = |n: u64| rank * n / tp..(rank + 1) * n / tp;
    let whole = |rows: Range<u64>| Rect { rows, cols: 0..cols };
    match (axis, heads) {
        (Axis::Replicate, _) => vec![whole(0..rows)],
        (Axis::Col, _) => vec![Rect { rows: 0..rows, cols: share(cols) }],
        (Axis::Qkv, Some(heads)) => {
            let kv = kv_heads_of(heads, (tp, rank));
            let first_key = heads.query;
            let of = |first: u64, heads_: &Range<u64>| {
                whole((first + heads_.start) * heads.dim..(first + heads_.end) * heads.dim)
            };
            vec![of(0, &share(heads.query)), of(first_key, &kv), of(first_key + heads.kv, &kv)]
        }
        (Axis::Kv, Some(heads)) => {
            let kv = kv_heads_of(heads, (tp, rank));
            vec![whole(kv.start * heads.dim..kv.end * heads.dim)]
        }
        (Axis::Row | Axis::Head | Axis::Vocab | Axis::Qkv | Axis::Kv, _) => {
            vec![whole(share(rows))]
        }
    }
}

/// Key (or value) heads of a rank: dealt out, or, with more ranks than heads, one that several
/// ranks hold.
fn kv_heads_of(heads: Heads, (tp, rank): (u64, u64)) -> Range<u64> {
    if tp <= heads.kv {
        let each = heads.kv / tp;
        return rank * each..(rank + 1) * each;
    }
    let head = rank / (tp / heads.kv);
    head..head + 1
}

/// Why a weight cannot be cut evenly for `tp` ranks, in a few words.
pub fn uneven(
    axis: Axis,
    (rows, cols): (u64, u64),
    heads: Option<Heads>,
    tp: u64,
) -> Option<String> {
    let odd = |n: u64, what: &str| (!n.is_multiple_of(tp)).then(|| format!("{n} {what} / {tp}"));
    let kv = |heads: Heads| {
        let divides = heads.kv.is_multiple_of(tp) || tp.is_multiple_of(heads.kv);
        (!divides).then(|| format!("{} KV heads / {tp}", heads.kv))
    };
    match (axis, heads) {
        (Axis::Replicate, _) => None,
        (Axis::Col, _) => odd(cols, "columns"),
        (Axis::Head, Some(heads)) => odd(heads.query, "query heads"),
        (Axis::Qkv, Some(heads)) => odd(heads.query, "query heads").or_else(|| kv(heads)),
        (Axis::Kv, Some(heads)) => kv(heads),
        (Axis::Vocab, _) => odd(rows, "rows of the padded vocabulary"),
        (Axis::Row | Axis::Head | Axis::Qkv | Axis::Kv, _) => odd(rows, "rows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(layers: u32, pp: u32, rule: Remainder) -> Vec<u32> {
        stages(layers, pp, &[], rule).unwrap().iter().map(|r| r.end - r.start).collect()
    }

    #[test]
    fn remainders_go_where_the_engines_put_them() {
        assert_eq!(lengths(80, 3, Remainder::BeforeLast), [27, 27, 26]);
        assert_eq!(lengths(80, 3, Remainder::Last), [26, 27, 27]);
        assert_eq!(lengths(7, 4, Remainder::BeforeLast), [2, 2, 2, 1]);
        assert_eq!(lengths(5, 4, Remainder::BeforeLast), [1, 1, 2, 1]);
        assert_eq!(lengths(80, 8, Remainder::Last), [10; 8]);
        assert_eq!(lengths(3, 1, Remainder::BeforeLast), [3]);
    }

    #[test]
    fn impossible_stages_are_refused() {
        for (pp, explicit) in [(5, vec![]), (2, vec![4]), (2, vec![2, 3]), (2, vec![4, 0])] {
            assert!(stages(4, pp, &explicit, Remainder::BeforeLast).is_err(), "{pp} {explicit:?}");
        }
    }

    #[test]
    fn experts_are_dealt_out_once() {
        for (experts, ep) in [(256, 32), (10, 4), (7, 7), (16, 3)] {
            let all: Vec<u32> = (0..ep).flat_map(|r| experts_of(experts, ep, r)).collect();
            assert_eq!(all, (0..experts).collect::<Vec<_>>());
        }
        assert_eq!(experts_of(10, 4, 0), 0..3);
        assert_eq!(experts_of(10, 4, 3), 8..10);
    }

    #[test]
    fn heads_are_dealt_out_and_replicated() {
        let heads = Some(Heads { query: 16, kv: 4, dim: 10 });
        let rows = |tp, rank| -> Vec<Range<u64>> {
            cut(Axis::Qkv, (240, 3), heads, (tp, rank)).into_iter().map(|r| r.rows).collect()
        };
        assert_eq!(rows(2, 1), [80..160, 180..200, 220..240]);
        assert_eq!(rows(4, 3), [120..160, 190..200, 230..240]);
        assert_eq!(rows(8, 5), [100..120, 180..190, 220..230]);
        assert_eq!(cut(Axis::Kv, (40, 3), heads, (16, 7))[0].rows, 10..20);
    }

    #[test]
    fn uneven_cuts_say_why() {
        let heads = Some(Heads { query: 16, kv: 4, dim: 8 });
        assert_eq!(uneven(Axis::Row, (2048, 64), None, 32), None);
        assert_eq!(uneven(Axis::Row, (2048, 64), None, 48).unwrap(), "2048 rows / 48");
        assert_eq!(uneven(Axis::Col, (64, 100), None, 8).unwrap(), "100 columns / 8");
        assert_eq!(uneven(Axis::Qkv, (0, 0), heads, 3).unwrap(), "16 query heads / 3");
        assert_eq!(uneven(Axis::Kv, (0, 0), heads, 6).unwrap(), "4 KV heads / 6");
        assert_eq!(uneven(Axis::Head, (128, 64), heads, 32).unwrap(), "16 query heads / 32");
        assert_eq!(uneven(Axis::Qkv, (0, 0), heads, 8), None);
    }
}
