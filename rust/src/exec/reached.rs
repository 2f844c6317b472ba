//! What a task has written when it comes to a position: what a point of the journal can say.
//!
//! A journal is a file, and may hold anything. A point whose numbers are not those that the plan
//! gives for its position is not believed.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::fold::SavedFold;
use super::strips::column_quantum;
use super::window::Position;
use crate::plan::{OutputFile, Step, Target, Task};

/// How far an output is, in numbers alone.
struct Reached<'a> {
    file: &'a OutputFile,
    length: u64,
    tensor: usize,
    tensor_bytes: u64,
    deferred: BTreeMap<u32, u64>,
}

/// Whether a point can be one of `task`, whose catalog has so many tensors.
pub(super) fn is_possible(task: &Task, point: &SavedFold, tensors: usize) -> bool {
    let Some(reached) = reached(task, point.position) else { return false };
    let same = |(reached, saved): (&Reached, &super::fold::SavedOutput)| {
        let waiting = saved.deferred.iter().map(|(tensor, text)| {
            let bytes = BASE64.decode(text).ok()?;
            Some((*tensor, bytes.len() as u64))
        });
        let waiting: Option<BTreeMap<u32, u64>> = waiting.collect();
        (reached.length, reached.tensor, reached.tensor_bytes)
            == (saved.length, saved.tensor, saved.tensor_bytes)
            && waiting.as_ref() == Some(&reached.deferred)
    };
    reached.len() == point.outputs.len()
        && reached.iter().zip(&point.outputs).all(same)
        && point.reports.iter().all(|report| (report.source as usize) < tensors)
}

fn reached(task: &Task, position: Position) -> Option<Vec<Reached<'_>>> {
    let step = task.steps.get(position.step)?;
    let Position { row, col, .. } = position;
    let ends_window = |range: &std::ops::Range<u64>| match col {
        0 => range.start < row && row <= range.end,
        _ => range.contains(&row),
    };
    if position != Position::default() && !step.needed_rows().iter().any(ends_window)
        || col >= step.cols.max(1)
        || !col.is_multiple_of(column_quantum(step))
    {
        return None;
    }
    let mut outputs = Vec::with_capacity(task.outputs.len());
    for file in &task.outputs {
        let deferred = BTreeMap::new();
        let mut output =
            Reached { file, length: file.data_start, tensor: 0, tensor_bytes: 0, deferred };
        output.pass_filled();
        outputs.push(output);
    }
    for (i, step) in task.steps.iter().enumerate().take(position.step + 1) {
        for target in &step.targets {
            let (row, col) =
                if i == position.step { (position.row, position.col) } else { (step.rows, 0) };
            let rows = target.rows.start.min(row)..target.rows.end.min(row);
            let whole = Target { rows, ..target.clone() };
            // Of the row that was cut; its scales come with the first row of its blocks.
            let begins = row.is_multiple_of(step.op.row_quantum());
            let part = Target {
                rows: if target.rows.contains(&row) { row..row + 1 } else { row..row },
                cols: target.cols.start.min(col)..target.cols.end.min(col),
                scale: target.scale.filter(|_| begins),
                ..target.clone()
            };
            for target in [whole, part] {
                if !target.rows.is_empty() && !target.cols.is_empty() {
                    outputs.get_mut(target.output as usize)?.take(step, &target)?;
                }
            }
        }
    }
    Some(outputs)
}

impl Reached<'_> {
    fn take(&mut self, step: &Step, target: &Target) -> Option<()> {
        if let Some(scale) = target.scale {
            let width = self.file.tensors.get(scale as usize)?.dtype.bits() / 8;
            let bytes = step.bytes_for(target, scale as usize, width);
            *self.deferred.entry(scale).or_default() += bytes;
        }
        let bytes = step.bytes_for(target, target.tensor as usize, 0);
        self.length += bytes;
        self.tensor_bytes += bytes;
        self.pass_filled();
        Some(())
    }

    fn pass_filled(&mut self) {
        while let Some(tensor) = self.file.tensors.get(self.tensor) {
            if let Some(bytes) = self.deferred.remove(&(self.tensor as u32)) {
                self.length += bytes;
                self.tensor_bytes += bytes;
            }
            if let Some(fill) = self.file.fill_of(self.tensor)
                && self.tensor_bytes + fill.bytes == tensor.bytes()
            {
                self.length += fill.bytes;
                self.tensor_bytes += fill.bytes;
            }
            if self.tensor_bytes < tensor.bytes() {
                return;
            }
            self.tensor += 1;
            self.tensor_bytes = 0;
        }
    }
}
