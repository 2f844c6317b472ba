//! How many jobs run, and how large their buffers are, from `--memory`.

use super::strips::{least_bytes, least_strip_bytes};
use crate::error::{Error, Kind, Result};
use crate::plan::{Plan, Step, Task};
use crate::transform::Op;

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

/// Share of `--memory` that a row of blocks may take: what is wider is cut in columns.
const WIDEST: u64 = 8;

/// Buffers of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    /// Most source and result bytes that stay in one window; what has more is cut in columns.
    pub widest: u64,
    /// Bytes of the source that are read twice, since they are encoded in columns.
    pub read_twice: u64,
}

/// What has to stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// What fits into the memory; rows of blocks that are wider are cut in columns.
    Fitting,
    /// Whole rows of blocks, however wide: they are proved or measured.
    Blocks,
}

impl Together {
    /// What a run of `plan` asks for.
    pub fn of(plan: &Plan) -> Self {
        if plan.request.prove || plan.request.report { Self::Blocks } else { Self::Fitting }
    }
}

/// Source and result bytes of one row of a step.
pub(super) fn row_bytes(step: &Step) -> u64 {
    let width = |t: &crate::plan::Target| t.cols.end - t.cols.start;
    let moved = step.targets.iter().filter(|t| !step.op.is_copy() || width(t) != step.cols);
    let result: u64 = moved.map(width).sum::<u64>() * step.op.result_unit();
    step.cols * step.op.source_unit() + result
}

/// Derives the buffers of `plan` from `memory` bytes and the `jobs` asked for (0: one a core).
pub fn budget(plan: &Plan, memory: u64, jobs: usize, together: Together) -> Result<Budget> {
    let steps = || plan.tasks.iter().flat_map(|t| t.steps.iter().map(move |s| (t, s)));
    let widest = match together {
        Together::Fitting => (memory / WIDEST).max(MIN_WINDOW),
        Together::Blocks => u64::MAX,
    };
    let cut = |step: &Step| least_bytes(step) > widest;
    let least = |step: &Step| if cut(step) { least_strip_bytes(step) } else { least_bytes(step) };
    let demanding = steps().max_by_key(|(_, step)| least(step));
    let outputs = plan.tasks.iter().map(|t| t.outputs.len() as u64).max().unwrap_or(1);
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let wanted = if jobs == 0 { cores } else { jobs };
    let smallest = demanding.map_or(0, |(_, step)| least(step)).max(MIN_WINDOW);
    // A row of blocks that is cut is measured beside the ring.
    let slots = (SLOTS + usize::from(steps().any(|(_, step)| cut(step)))) as u64;
    let job = |window: u64, output: u64| slots.saturating_mul(window) + outputs * output;
    let most = (wanted.min(plan.tasks.len()).max(1)) as u64;
    let need = job(smallest, MIN_OUTPUT);
    let jobs = (1..=most)
        .rev()
        .find(|n| memory / n >= need)
        .ok_or_else(|| too_little(memory, need, demanding.filter(|_| smallest > MIN_WINDOW)))?;
    let share = memory / jobs;
    let slot = ((share - outputs * MIN_OUTPUT) / slots).clamp(smallest, WINDOW.max(smallest));
    let output_buffer = ((share - slots * slot) / outputs.max(1)).clamp(MIN_OUTPUT, OUTPUT);
    let (window, total) = (slot.min(WINDOW), jobs * job(slot, output_buffer));
    let encoded = steps().filter(|(_, s)| matches!(s.op, Op::Encode { .. }) && cut(s));
    let read_twice = encoded.map(|(_, step)| step.read_bytes()).sum();
    Ok(Budget { jobs: jobs as usize, window, output_buffer, total, widest, read_twice })
}

/// `demanding`: the step whose rows take so much, if it is not the number of outputs.
fn too_little(memory: u64, need: u64, demanding: Option<(&Task, &Step)>) -> Error {
    let message = format!("--memory of {memory} bytes is too little: one job needs {need}");
    let error = Error::new(Kind::Space, message)
        .hint(format!("allow more: --memory {}M", need.div_ceil(1 << 20)));
    let target = demanding.and_then(|(task, step)| Some((task, step, step.targets.first()?)));
    let Some((task, step, target)) = target else { return error };
    let output = &task.outputs[target.output as usize];
    let tensor = &output.tensors[target.tensor as usize].name;
    let row = row_bytes(step);
    let message = format!("{}, since a row takes {row} bytes and is not cut", error.message);
    Error { message, ..error }.tensor(&**tensor).at(&output.path)
}
