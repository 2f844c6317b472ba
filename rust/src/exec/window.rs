//! A task cut into windows: runs of rows of one step, or strips of a row, small enough for a slot.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::budget::{Budget, row_bytes};
use super::slot::Work;
use super::strips::{self, columns, least_bytes};
use crate::error::Result;
use crate::plan::Step;
use crate::transform::Op;

/// Where a task goes on: the next row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Step of the task.
    pub step: usize,
    /// Row of the step's matrix.
    pub row: u64,
    /// Column of that row, where rows are cut in strips.
    #[serde(default, skip_serializing_if = "is_first")]
    pub col: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_first(col: &u64) -> bool {
    *col == 0
}

/// A unit of work for one slot.
#[derive(Debug)]
pub(super) struct Window {
    /// Position in the order of all windows of this run of the task.
    pub sequence: u64,
    /// Step of the task.
    pub step: usize,
    /// Rows of the step's matrix.
    pub rows: Range<u64>,
    /// Columns of the step's matrix: all of them, unless it is a strip of a single row.
    pub cols: Range<u64>,
    /// Scales of the whole step, for a decode.
    pub scales: Option<Arc<Vec<f32>>>,
    /// Scales of the row of blocks that a strip lies in, for an encode.
    pub row_of_scales: Option<Arc<Vec<f32>>>,
    /// Where the task goes on once this window is done.
    pub next: Position,
}

/// Hands out windows in order.
pub(super) struct Windows<'a> {
    work: Work<'a>,
    budget: Budget,
    sequence: u64,
    step: usize,
    /// Row ranges of the current step that are still to be read.
    pending: VecDeque<Range<u64>>,
    /// Column that the first of these rows goes on at.
    col: u64,
    /// Whether the current step is cut in columns.
    strips: bool,
    scales: Option<Arc<Vec<f32>>>,
    row_of_scales: Option<Arc<Vec<f32>>>,
    /// What ended it: nothing may follow a step that could not be entered.
    failed: bool,
}

impl<'a> Windows<'a> {
    pub(super) fn new(work: Work<'a>, budget: Budget, start: Position) -> Result<Self> {
        let mut windows = Self {
            work,
            budget,
            sequence: 0,
            step: start.step,
            pending: VecDeque::new(),
            col: 0,
            strips: false,
            scales: None,
            row_of_scales: None,
            failed: false,
        };
        windows.enter(start.row, start.col)?;
        Ok(windows)
    }

    /// Loads what the current step needs, from a place in its matrix on.
    fn enter(&mut self, row: u64, col: u64) -> Result<()> {
        (self.scales, self.row_of_scales) = (None, None);
        self.col = col;
        let Some(step) = self.work.task.steps.get(self.step) else { return Ok(()) };
        self.pending = step.needed_rows().into();
        while let Some(range) = self.pending.front_mut() {
            range.start = range.start.max(row);
            if range.start < range.end {
                // Whoever stopped amid a row of blocks had less memory.
                let amid = col > 0 || !range.start.is_multiple_of(step.op.row_quantum());
                self.strips = amid || least_bytes(step) > self.budget.widest;
                break;
            }
            self.pending.pop_front();
        }
        if !self.pending.is_empty() {
            self.scales = self.work.sources.scales(step)?;
        }
        Ok(())
    }

    /// The position of the window that [`Self::next`] would hand out, in the order of all windows.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(super) fn next(&mut self) -> Result<Option<Window>> {
        while self.pending.is_empty() && !self.failed {
            if self.step >= self.work.task.steps.len() {
                return Ok(None);
            }
            self.step += 1;
            self.enter(0, 0).inspect_err(|_| self.failed = true)?;
        }
        if self.failed {
            return Ok(None);
        }
        let step = &self.work.task.steps[self.step];
        let Some(range) = self.pending.front().cloned() else { return Ok(None) };
        let (rows, cols) = if self.strips {
            self.measure(step, &range).inspect_err(|_| self.failed = true)?;
            let end = step.cols.min(self.col + columns(step, self.budget.window));
            (range.start..range.start + 1, self.col..end)
        } else {
            let quantum = step.op.row_quantum();
            let fitting = self.budget.window / row_bytes(step).max(1);
            let rows = (fitting - fitting % quantum).max(quantum);
            (range.start..range.end.min(range.start + rows), 0..step.cols)
        };
        let next = if cols.end < step.cols {
            Position { step: self.step, row: rows.start, col: cols.end }
        } else {
            Position { step: self.step, row: rows.end, col: 0 }
        };
        let window = Window {
            sequence: self.sequence,
            step: self.step,
            rows,
            cols,
            scales: self.scales.clone(),
            row_of_scales: self.row_of_scales.clone(),
            next,
        };
        self.go_on_at(next);
        self.sequence += 1;
        Ok(Some(window))
    }

    fn go_on_at(&mut self, next: Position) {
        self.col = next.col;
        if let Some(range) = self.pending.front_mut() {
            range.start = next.row;
            if range.is_empty() {
                self.pending.pop_front();
            }
        }
    }

    /// Reads the row of blocks that begins here, or that a stopped run left, for its scales.
    fn measure(&mut self, step: &Step, range: &Range<u64>) -> Result<()> {
        let Op::Encode { float, encoding } = step.op else { return Ok(()) };
        let quantum = step.op.row_quantum();
        let row = range.start - range.start % quantum;
        if self.row_of_scales.is_none() || (row, 0) == (range.start, self.col) {
            self.row_of_scales = None;
            let rows = row..range.end.min(row + quantum);
            let how = (float, &encoding);
            let scales = strips::measure(&self.work, step, how, &rows, self.budget.window)?;
            self.row_of_scales = Some(Arc::new(scales));
        }
        Ok(())
    }
}
