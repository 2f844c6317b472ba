//! Rows that are too wide for a slot, and are cut in columns.
//!
//! A window is then a part of one row, so that every output is still written from front to back. An
//! encode has to know the maxima of a row of blocks before the first code of it: such rows are read
//! for their scales first, and again for their codes.

use std::ops::Range;

use super::budget::row_bytes;
use super::slot::{Work, non_finite};
use crate::error::{Error, Result};
use crate::io::AlignedBuf;
use crate::numeric::{Encoding, Float, Tile, raise_maxima};
use crate::plan::Step;
use crate::plan::step::merged;
use crate::transform::grid_steps;

/// Source and result bytes of what has to stay in one window, unless it is cut in columns.
pub(super) fn least_bytes(step: &Step) -> u64 {
    row_bytes(step).saturating_mul(step.op.row_quantum().min(step.rows))
}

/// Columns at which a row may be cut: multiples of this.
pub(super) fn column_quantum(step: &Step) -> u64 {
    step.op.grid().map_or(1, |grid| grid_steps(grid).1.max(1))
}

/// Source and result bytes of a column of one row, at most.
fn column_bytes(step: &Step) -> u64 {
    let made = if step.op.is_copy() { 0 } else { step.op.result_unit() };
    step.op.source_unit() + step.targets.len() as u64 * made
}

/// Source and result bytes of the narrowest strip.
pub(super) fn least_strip_bytes(step: &Step) -> u64 {
    column_quantum(step).saturating_mul(column_bytes(step))
}

/// Columns of a strip that takes `bytes` of source and result.
pub(super) fn columns(step: &Step, bytes: u64) -> u64 {
    let (quantum, fitting) = (column_quantum(step), bytes / column_bytes(step).max(1));
    (fitting - fitting % quantum).max(quantum)
}

/// The scales of a row of blocks, which lies in `rows`, read `bytes` at a time; none of a block that
/// no target needs.
pub(super) fn measure(
    work: &Work,
    step: &Step,
    (float, encoding): (Float, &Encoding),
    rows: &Range<u64>,
    bytes: u64,
) -> Result<Vec<f32>> {
    let grid = encoding.grid;
    let (_, blocks) = grid.scale_shape(1, step.cols as usize);
    let wide = grid_steps(grid).1;
    let mut maxima = vec![0f32; blocks];
    let (mut buffer, mut scratch) = (AlignedBuf::default(), AlignedBuf::default());
    let of_rows = |t: &&crate::plan::Target| t.rows.start < rows.end && rows.start < t.rows.end;
    let needed = merged(step.targets.iter().filter(of_rows).map(|t| t.cols.clone()));
    let unit = step.op.source_unit();
    for row in rows.clone() {
        for range in &needed {
            let mut col = range.start;
            while col < range.end {
                if work.sources.stopped() {
                    return Err(Error::cancelled());
                }
                let end = range.end.min(col + columns(step, bytes));
                let start = (row * step.cols + col) * unit;
                let length = ((end - col) * unit) as usize;
                let read =
                    work.sources.read(step.source, start, length, &mut buffer, &mut scratch)?;
                let count = (end - col) as usize;
                let tile = Tile::packed(&buffer.bytes()[read], 1, count, float.bytes());
                let first = col.checked_div(wide).unwrap_or(0) as usize;
                let own = &mut maxima[first..][..grid.scale_shape(1, count).1];
                raise_maxima(work.level, &tile, float, grid, own)
                    .map_err(|found| non_finite(work, step, &found, (row, col)))?;
                col = end;
            }
        }
    }
    for scale in &mut maxima {
        *scale = encoding.rule.scale(*scale);
    }
    Ok(maxima)
}
