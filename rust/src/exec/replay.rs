//! A plan run without writing: whatever would be written is handed to somebody else.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;

use super::budget::{Budget, Together, budget};
use super::fold::{DoneOutput, Fold};
use super::jobs::run_jobs;
use super::pipeline::{Finished, Pipeline};
use super::progress::Progress;
use super::sink::Sink;
use super::slot::Work;
use super::sources::Sources;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::io::Mode;
use crate::numeric::Level;
use crate::plan::{Plan, Task};

/// A plan, and how to run it.
#[derive(Debug)]
pub struct Replay<'a> {
    /// The source.
    pub catalog: &'a Catalog,
    /// What would be written.
    pub plan: &'a Plan,
    /// Tasks at a time; 0: one a core.
    pub jobs: usize,
    /// Bytes of all buffers together.
    pub memory: u64,
    /// How bulk data moves.
    pub io: Mode,
    /// Instruction set of the kernels.
    pub level: Level,
    /// Counters and the stop flag.
    pub progress: &'a Progress,
}

impl<'a> Replay<'a> {
    /// Runs the tasks numbered by `tasks`. For each, `open` makes the sinks of its outputs, which
    /// may buffer the bytes it is given, and `done` gets them back with the digests of what they
    /// took.
    ///
    /// # Errors
    /// What reading and converting the source can end with, and errors of the sinks and of `done`.
    pub fn run<S: Sink>(
        &self,
        tasks: VecDeque<usize>,
        open: impl Fn(&'a Task, usize) -> Vec<S> + Sync,
        done: impl Fn(&Task, Vec<S>, Vec<DoneOutput>) -> Result<()> + Sync,
    ) -> Result<()> {
        let budget = budget(self.plan, self.memory, self.jobs, Together::Fitting)?;
        run_jobs(budget.jobs, tasks, self.progress, |index| {
            let task = &self.plan.tasks[index];
            self.progress.begin(&task.name);
            let sources = Sources::open(self.catalog, task, self.io, self.progress)?;
            let work = Work {
                catalog: self.catalog,
                task,
                sources: &sources,
                level: self.level,
                prove: false,
                report: false,
            };
            let sinks = open(task, budget.output_buffer as usize);
            let (sinks, outputs) =
                replay(work, budget, self.progress, &self.progress.written, sinks)?;
            sources.check_unchanged()?;
            self.progress.end(&task.name);
            done(task, sinks, outputs)
        })
    }
}

/// Runs one task into `sinks`, counting in `written` what they take: the sinks, and what each output
/// would be.
pub(super) fn replay<S: Sink>(
    work: Work,
    budget: Budget,
    progress: &Progress,
    written: &AtomicU64,
    sinks: Vec<S>,
) -> Result<(Vec<S>, Vec<DoneOutput>)> {
    let (fold, headers) = Fold::new(work.task)?;
    let record = |_| Ok(());
    let point_every = u64::MAX;
    let pipeline = Pipeline { work, budget, point_every, progress, written, record: &record };
    let Finished { outputs, sinks, .. } = pipeline.run(fold, headers, sinks, None)?;
    Ok((sinks, outputs))
}
