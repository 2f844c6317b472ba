//! A task cut into windows: runs of rows of one step, small enough for a slot.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::budget::row_bytes;
use super::sources::Sources;
use crate::error::Result;
use crate::plan::Task;

/// Where a task goes on: the next row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Step of the task.
    pub step: usize,
    /// Row of the step's matrix.
    pub row: u64,
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
    /// Scales of the whole step, for a decode.
    pub scales: Option<Arc<Vec<f32>>>,
}

impl Window {
    /// Where the task goes on once this window is done.
    pub(super) fn next(&self) -> Position {
        Position { step: self.step, row: self.rows.end }
    }
}

/// Hands out windows in order.
pub(super) struct Windows<'a> {
    task: &'a Task,
    sources: &'a Sources<'a>,
    window_bytes: u64,
    sequence: u64,
    step: usize,
    /// Row ranges of the current step that are still to be read.
    pending: VecDeque<Range<u64>>,
    scales: Option<Arc<Vec<f32>>>,
}

impl<'a> Windows<'a> {
    pub(super) fn new(
        task: &'a Task,
        sources: &'a Sources<'a>,
        window_bytes: u64,
        start: Position,
    ) -> Result<Self> {
        let pending = VecDeque::new();
        let step = start.step;
        let mut windows =
            Self { task, sources, window_bytes, sequence: 0, step, pending, scales: None };
        windows.enter(start.row)?;
        Ok(windows)
    }

    /// Loads what the current step needs, from `row` on.
    fn enter(&mut self, row: u64) -> Result<()> {
        self.scales = None;
        let Some(step) = self.task.steps.get(self.step) else { return Ok(()) };
        self.pending = step.needed_rows().into();
        while let Some(range) = self.pending.front_mut() {
            range.start = range.start.max(row);
            if range.start < range.end {
                break;
            }
            self.pending.pop_front();
        }
        if !self.pending.is_empty() {
            self.scales = self.sources.scales(step)?;
        }
        Ok(())
    }

    pub(super) fn next(&mut self) -> Result<Option<Window>> {
        while self.pending.is_empty() {
            if self.step >= self.task.steps.len() {
                return Ok(None);
            }
            self.step += 1;
            self.enter(0)?;
        }
        let step = &self.task.steps[self.step];
        let quantum = step.op.row_quantum();
        let fitting = self.window_bytes / row_bytes(step).max(1);
        let rows = (fitting - fitting % quantum).max(quantum);
        let Some(range) = self.pending.front_mut() else { return Ok(None) };
        let end = range.end.min(range.start + rows);
        let window = Window {
            sequence: self.sequence,
            step: self.step,
            rows: range.start..end,
            scales: self.scales.clone(),
        };
        range.start = end;
        if range.start == range.end {
            self.pending.pop_front();
        }
        self.sequence += 1;
        Ok(Some(window))
    }
}
