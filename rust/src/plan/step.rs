//! The smallest part of a plan: one source tensor and what becomes of it.

use std::ops::Range;

use serde::Serialize;

use crate::transform::Op;

/// One source tensor, read once, and where its rectangles go.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Tensor of the catalog, read as a `rows` × `cols` matrix.
    pub source: u32,
    /// Rows of the matrix.
    pub rows: u64,
    /// Columns of the matrix; see [`Op::source_unit`] for their width.
    pub cols: u64,
    /// What happens to it.
    pub op: Op,
    /// Where the result goes; a window of rows is handed out in this order.
    pub targets: Vec<Target>,
}

/// A rectangle of a step's matrix that is appended to an output tensor.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Output of the task.
    pub output: u32,
    /// Tensor of that output.
    pub tensor: u32,
    /// Rows of the step's matrix.
    pub rows: Range<u64>,
    /// Columns of the step's matrix.
    pub cols: Range<u64>,
    /// Tensor of the same output that receives the scales of an encode; it lies behind `tensor`,
    /// since a block's scale is known only after the block was read.
    pub scale: Option<u32>,
}

/// The union of `ranges` as disjoint ascending ranges.
pub(crate) fn merged(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = ranges.collect();
    ranges.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

impl Step {
    /// Rows that any target needs, as disjoint ascending ranges: what nobody needs is not read.
    pub fn needed_rows(&self) -> Vec<Range<u64>> {
        let needed = self.targets.iter().filter(|t| !t.cols.is_empty() && !t.rows.is_empty());
        merged(needed.map(|t| t.rows.clone()))
    }

    /// Bytes that `target` adds to `tensor`: its elements or, `scale_bytes` each, its scales.
    pub(crate) fn bytes_for(&self, target: &Target, tensor: usize, scale_bytes: u64) -> u64 {
        let rows = target.rows.end - target.rows.start;
        let cols = target.cols.end - target.cols.start;
        match self.op.grid() {
            _ if target.tensor as usize == tensor => rows * cols * self.op.result_unit(),
            Some(grid) if target.scale.is_some_and(|scale| scale as usize == tensor) => {
                let (high, wide) = grid.scale_shape(rows as usize, cols as usize);
                (high * wide) as u64 * scale_bytes
            }
            _ => 0,
        }
    }

    /// Bytes of the source that are read.
    pub fn read_bytes(&self) -> u64 {
        let rows: u64 = self.needed_rows().iter().map(|r| r.end - r.start).sum();
        rows * self.cols * self.op.source_unit()
    }
}
