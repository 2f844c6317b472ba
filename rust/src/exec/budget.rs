//! How many jobs run, and how large their buffers are, from `--memory`.

use crate::error::{Error, Kind, Result};
use crate::plan::{Plan, Step};

/// Slots of a task's ring: two that are filled, one that is hashed, one that is written, and one
/// so that none of them waits for another's last microsecond.
pub const SLOTS: usize = 5;
/// Threads that read and transform within one task.
pub const ENCODERS: usize = 2;
/// Bytes of a window, source and result together: large enough for the disk, small enough to stay
/// in the cache between reading, encoding and hashing. One stripe of Ling-1T's experts; twice as
/// much costs 8 % more CPU.
const WINDOW: u64 = 3 << 20;
/// Smallest window, unless a step's least is larger.
const MIN_WINDOW: u64 = 1 << 20;
/// Buffer of one output.
const OUTPUT: u64 = 2 << 20;
/// Least buffer of one output.
const MIN_OUTPUT: u64 = 256 << 10;

/// Buffers of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Tasks at a time.
    pub jobs: usize,
    /// Bytes of a window, source and result together; a step whose rows must stay together in
    /// larger numbers takes as much as they need.
    pub window: u64,
    /// Bytes of the write buffer of each output.
    pub output_buffer: u64,
    /// Bytes of all buffers together.
    pub total: u64,
}

/// Source and result bytes of one row of a step.
pub(super) fn row_bytes(step: &Step) -> u64 {
    let width = |t: &crate::plan::Target| t.cols.end - t.cols.start;
    let moved = step.targets.iter().filter(|t| !step.op.is_copy() || width(t) != step.cols);
    let result: u64 = moved.map(width).sum::<u64>() * step.op.result_unit();
    step.cols * step.op.source_unit() + result
}

/// Derives the buffers of `plan` from `memory` bytes and the `jobs` asked for (0: one a core).
pub fn budget(plan: &Plan, memory: u64, jobs: usize) -> Result<Budget> {
    let steps = plan.tasks.iter().flat_map(|t| &t.steps);
    let least = steps.map(|s| row_bytes(s) * s.op.row_quantum().min(s.rows)).max().unwrap_or(0);
    let outputs = plan.tasks.iter().map(|t| t.outputs.len() as u64).max().unwrap_or(1);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let wanted = if jobs == 0 { cores } else { jobs };
    let smallest = MIN_WINDOW.max(least);
    let job = |window: u64, output: u64| SLOTS as u64 * window + outputs * output;
    let most = (wanted.min(plan.tasks.len()).max(1)) as u64;
    let need = job(smallest, MIN_OUTPUT);
    let jobs = (1..=most).rev().find(|n| memory / n >= need).ok_or_else(|| {
        Error::new(
            Kind::Space,
            format!("--memory of {memory} bytes is too little: one job needs {need}"),
        )
        .hint(format!("allow more: --memory {}M", need.div_ceil(1 << 20)))
    })?;
    let share = memory / jobs;
    let slot = ((share - outputs * MIN_OUTPUT) / SLOTS as u64).clamp(smallest, WINDOW.max(least));
    let output_buffer = ((share - SLOTS as u64 * slot) / outputs.max(1)).clamp(MIN_OUTPUT, OUTPUT);
    let (window, total) = (slot.min(WINDOW), jobs * job(slot, output_buffer));
    Ok(Budget { jobs: jobs as usize, window, output_buffer, total })
}
