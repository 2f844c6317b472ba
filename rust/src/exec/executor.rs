//! Runs a plan: tasks on plain threads, each through its own ring of slots.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::attest::{self, Attest, Known};
use super::budget::{Budget, budget};
use super::fold::{Fold, TensorReport};
use super::jobs::run_jobs;
use super::journal::{self, Begin, DoneRecord, Journal, PointRecord, State};
use super::output::{Found, check_space, inspect, reset};
use super::pipeline::{Finished, Pipeline};
use super::progress::Progress;
use super::publish;
use super::share::Worker;
use super::slot::Work;
use super::sources::Sources;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::io::{Mode, PartWriter, small};
use crate::numeric::Level;
use crate::plan::{OutputFile, Plan, Task};

/// How to run a plan; none of it changes an output byte.
#[derive(Debug, Clone)]
pub struct Options {
    /// Output folder.
    pub output: PathBuf,
    /// Tasks at a time; 0: one a core.
    pub jobs: usize,
    /// Bytes of all buffers together.
    pub memory: u64,
    /// How bulk data moves.
    pub io: Mode,
    /// Instruction set of the kernels.
    pub level: Level,
    /// Read every output back from the disk and compare.
    pub paranoid: bool,
    /// Which share of the tasks to run.
    pub worker: Worker,
    /// Continue an unfinished run; otherwise it is begun anew.
    pub resume: bool,
    /// Replace an output folder that holds a manifest or journal.
    pub force: bool,
    /// Bytes of output between two points of the journal.
    pub point_every: u64,
    /// What source files must be: their digests are made in the same pass.
    pub known: Option<Known>,
    /// What is known of source files that are linked, which nobody reads.
    pub links: Known,
}

/// Bytes of output between two points, unless a test asks for less.
pub const POINT_EVERY: u64 = 2 << 30;

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All files are published.
    Complete,
    /// All files had been published before; nothing was read.
    AlreadyComplete,
    /// This worker's share is done, other workers are not.
    ShareComplete,
}

/// A plan about to run, with what is computed once.
pub struct Run<'a> {
    /// The source.
    pub catalog: &'a Catalog,
    /// What to write.
    pub plan: &'a Plan,
    /// Digest of each task.
    pub digests: Vec<String>,
    /// For each task the source files whose digests it makes, if any are made.
    answers: Vec<Vec<u32>>,
    /// Digest of the plan as requested, under which journals are kept.
    pub key: &'a str,
    /// How to run.
    pub options: &'a Options,
    /// Counters and the stop flag.
    pub progress: &'a Progress,
}

impl<'a> Run<'a> {
    /// Prepares `plan`, whose journal is kept under `key`.
    pub fn new(
        catalog: &'a Catalog,
        plan: &'a Plan,
        key: &'a str,
        options: &'a Options,
        progress: &'a Progress,
    ) -> Self {
        let digests = plan.tasks.iter().map(Task::digest).collect();
        let answers = match options.known {
            Some(_) => attest::answers(catalog, &plan.tasks),
            None => Vec::new(),
        };
        Self { catalog, plan, digests, answers, key, options, progress }
    }

    pub(super) fn output(&self) -> &Path {
        &self.options.output
    }

    /// Runs this worker's share and publishes if it was the last.
    pub fn execute(&self) -> Result<(Outcome, Vec<TensorReport>)> {
        let budget = budget(self.plan, self.options.memory, self.options.jobs)?;
        let digest = self.plan.digest();
        let ours = || matches!(inspect(self.output(), self.key, &digest), Ok(Found::Resumable(_)));
        if !self.options.resume || (self.options.force && !ours()) {
            reset(self.output())?;
        }
        let mut state = match inspect(self.output(), self.key, &digest)? {
            Found::Complete => {
                // A run that died after the manifest and before this left its journals.
                small::remove_folder(&journal::folder(self.output()))?;
                return Ok((Outcome::AlreadyComplete, Vec::new()));
            }
            Found::Resumable(state) => state,
        };
        let here = place(self.catalog);
        state.drop_stale(self, self.output(), &here);
        let remaining = self.remaining(&state);
        let tasks: Vec<&Task> = remaining.iter().map(|i| &self.plan.tasks[*i]).collect();
        self.refuse_far_links()?;
        check_space(
            self.output(),
            self.catalog,
            &tasks,
            self.plan.sidecars.iter().map(|s| s.size).sum(),
        )?;
        small::create_folder(self.output())?;
        if !small::sync_folder(self.output())? {
            self.progress.note(format!("{}: {}", self.output().display(), publish::UNSYNCED));
        }
        let begin = Begin { plan: self.key.to_owned(), place: here };
        let journal = Journal::open(self.output(), self.options.worker, &begin)?;
        self.count(&state, &remaining);
        run_jobs(budget.jobs, remaining, self.progress, |index| {
            self.run_task(index, &budget, &journal, &state)
        })?;
        let mut state = State::read(self.output())?;
        state.drop_stale(self, self.output(), &place(self.catalog));
        let outcome = publish::finish_if_last(self, &state)?;
        let done = self.digests.iter().filter_map(|d| state.done.get(d));
        Ok((outcome, done.flat_map(|(d, _)| d.reports.clone()).collect()))
    }

    /// Records that `tensor` is kept unquantised for its NaN or infinity.
    pub fn keep(&self, tensor: &str) -> Result<()> {
        let begin = Begin { plan: self.key.to_owned(), place: place(self.catalog) };
        Journal::open(self.output(), self.options.worker, &begin)?.kept(tensor)
    }

    /// Tasks of this worker's share that are not done.
    fn remaining(&self, state: &State) -> VecDeque<usize> {
        let share = self.options.worker.tasks(self.plan);
        share.into_iter().filter(|i| !state.done.contains_key(&self.digests[*i])).collect()
    }

    fn count(&self, state: &State, remaining: &VecDeque<usize>) {
        let share = self.options.worker.tasks(self.plan);
        let bytes = |i: &usize| self.plan.tasks[*i].written();
        let total: u64 = share.iter().map(bytes).sum();
        let left: u64 = remaining.iter().map(bytes).sum();
        self.progress.begin_counting(total, total - left);
        for i in remaining {
            if let Some((point, _)) = state.points.get(&self.digests[*i]) {
                self.progress.add_resumed(point.fold.outputs.iter().map(|o| o.length).sum());
            }
        }
    }

    /// Writers for a task's outputs, from where the fold stands.
    fn writers(
        &self,
        task: &Task,
        fold: &Fold,
        fresh: bool,
        budget: &Budget,
    ) -> Result<Vec<PartWriter>> {
        let open = |(output, length): (&OutputFile, u64)| {
            let position = if fresh { 0 } else { length };
            let path = self.output().join(&output.path);
            let buffer = budget.output_buffer as usize;
            PartWriter::open(&path, output.size, self.options.io, buffer, position)
        };
        task.outputs.iter().zip(fold.lengths()).map(open).collect()
    }

    /// Digests of the source files that a task answers for.
    pub(super) fn attest<'s>(
        &'s self,
        index: usize,
        sources: &'s Sources<'s>,
        state: &State,
    ) -> Result<Option<Attest<'s>>> {
        let Some(known) = &self.options.known else { return Ok(None) };
        let point = state.points.get(&self.digests[index]);
        let saved = point.map_or(&[][..], |(point, _)| &point.fold.sources);
        let reread = &self.progress.reread;
        Attest::new(sources, known, &self.answers[index], saved, reread).map(Some)
    }

    fn run_task(
        &self,
        index: usize,
        budget: &Budget,
        journal: &Journal,
        state: &State,
    ) -> Result<()> {
        let task = &self.plan.tasks[index];
        self.progress.begin(&task.name);
        let sources = Sources::open(self.catalog, task, self.options.io, self.progress)?;
        let done = match self.link(index, &sources, state)? {
            Some(linked) => linked,
            None => self.write(index, &sources, budget, journal, state)?,
        };
        journal.done(done)?;
        self.progress.end(&task.name);
        Ok(())
    }

    /// Writes the outputs of a task.
    fn write(
        &self,
        index: usize,
        sources: &Sources,
        budget: &Budget,
        journal: &Journal,
        state: &State,
    ) -> Result<DoneRecord> {
        let task = &self.plan.tasks[index];
        let digest = &self.digests[index];
        let (fold, headers) = match state.points.get(digest) {
            Some((point, _)) => (Fold::resume(task, point.fold.clone())?, Vec::new()),
            None => Fold::new(task)?,
        };
        let fresh = !headers.is_empty();
        let writers = self.writers(task, &fold, fresh, budget)?;
        let record = |fold| {
            journal.point(PointRecord { task: digest.clone(), sources: sources.stamps(), fold })
        };
        let pipeline = Pipeline {
            work: Work {
                catalog: self.catalog,
                task,
                sources,
                level: self.options.level,
                prove: self.plan.request.prove,
                report: self.plan.request.report,
            },
            budget: *budget,
            point_every: self.options.point_every,
            progress: self.progress,
            record: &record,
        };
        let attest = self.attest(index, sources, state)?;
        let Finished { outputs, reports, sinks, verified } =
            pipeline.run(fold, headers, writers, attest)?;
        sources.check_unchanged()?;
        let mut mtimes_ns = Vec::with_capacity(outputs.len());
        for (mut writer, output) in sinks.into_iter().zip(&outputs) {
            writer.complete()?;
            if self.options.paranoid {
                publish::compare_on_disk(self.output(), output)?;
            }
            let path = writer.path().to_path_buf();
            writer.publish()?;
            mtimes_ns.push(small::size_and_mtime(&path).map_or(0, |(_, mtime)| mtime));
        }
        Ok(DoneRecord {
            task: digest.clone(),
            sources: sources.stamps(),
            outputs,
            mtimes_ns,
            verified,
            reports,
        })
    }
}

/// Source folder and host: only there do the times of source files mean anything.
pub fn place(catalog: &Catalog) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let path = catalog.root.path();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    format!("{host}:{}", path.display())
}
