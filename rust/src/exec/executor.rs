//! Runs a plan: tasks on plain threads, each through its own ring of slots.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::attest::{self, Known};
use super::budget::{Budget, Together, budget};
use super::fold::TensorReport;
use super::force::reset;
use super::identity::Identities;
use super::jobs::run_jobs;
use super::journal::{self, Begin, Journal, State};
use super::manifest;
use super::output::{Found, check_space, inspect, is_published, names_to_claim};
use super::presence::Presence;
use super::progress::Progress;
use super::publish;
use super::share::Worker;
use super::sources::Sources;
use super::standing::{CHANGED, Standing};
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::io::{Mode, entry, small};
use crate::numeric::Level;
use crate::plan::{Plan, Task};

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
    /// What the download left about source files: part of their identity, and the digests of those
    /// that are linked, which nobody reads.
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
    pub(super) answers: Vec<Vec<u32>>,
    /// Which files the source's are.
    pub(super) identities: Identities<'a>,
    /// Tasks that another process was at when their turn came.
    left: Mutex<BTreeSet<usize>>,
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
        let identities = Identities::new(catalog, &options.links);
        let left = Mutex::default();
        Self { catalog, plan, digests, answers, identities, left, key, options, progress }
    }

    pub(super) fn output(&self) -> &Path {
        &self.options.output
    }

    pub(super) fn sources(&self, task: &Task) -> Result<Sources<'_>> {
        Sources::open(self.catalog, task, self.options.io, self.progress)
    }

    /// What is in the output folder.
    pub(super) fn inspect(&self) -> Result<Found> {
        inspect(self.output(), self.key, &self.plan.digest(), Some(&self.identities))
    }

    /// Runs this worker's share and publishes if it was the last.
    pub fn execute(&self) -> Result<(Outcome, Vec<TensorReport>)> {
        manifest::check_size(self.catalog, self.plan)?;
        let budget =
            budget(self.plan, self.options.memory, self.options.jobs, Together::of(self.plan))?;
        let mut state = match self.prepare()? {
            Found::Complete => return self.already_complete(),
            Found::Resumable(state) => state,
        };
        let remaining = self.remaining(&mut state)?;
        let tasks: Vec<&Task> = remaining.iter().map(|i| &self.plan.tasks[*i]).collect();
        self.refuse_far_links()?;
        let small_files = self.plan.sidecars.iter().map(|s| s.size).sum();
        check_space(self.output(), self.catalog, &tasks, small_files)?;
        let names = names_to_claim(self.output(), self.plan, &tasks, &state)?;
        small::create_folder(self.output())?;
        if !small::sync_folder(self.output())? {
            self.progress.note(format!("{}: {}", self.output().display(), publish::UNSYNCED));
        }
        let presence = Presence::enter(self.output())?;
        if is_published(self.output())? {
            // Another worker has published since the folder was looked at.
            drop(presence);
            return self.already_complete();
        }
        let begin = Begin { plan: self.key.to_owned() };
        let journal = Journal::open(self.output(), self.options.worker, &begin)?;
        if !names.is_empty() {
            journal.claim(names)?;
        }
        self.count(&state, &remaining);
        run_jobs(budget.jobs, remaining, self.progress, |index| {
            self.run_task(index, &budget, &journal, &state)
        })?;
        drop(journal);
        presence.leave()?;
        self.conclude(&presence)
    }

    /// Looks at all records, and publishes if nothing is missing.
    fn conclude(&self, presence: &Presence) -> Result<(Outcome, Vec<TensorReport>)> {
        let mut state = State::read(self.output())?;
        if state.plan.is_none() && is_published(self.output())? {
            return Ok((Outcome::Complete, Vec::new()));
        }
        self.settle(&mut state)?;
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let undone = left.into_iter().filter(|i| !state.done.contains_key(&self.digests[*i]));
        let undone: Vec<String> = undone.map(|i| self.plan.tasks[i].name.clone()).collect();
        if !undone.is_empty() {
            let message =
                format!("another process is writing {} files of this share", undone.len());
            return Err(Error::new(Kind::Foreign, message)
                .at(self.output())
                .details(undone)
                .hint("everything else is done; run the same command again when it has ended"));
        }
        let outcome = publish::finish_if_last(self, &state, presence)?;
        let done = self.digests.iter().filter_map(|d| state.done.get(d));
        Ok((outcome, done.flat_map(|d| d.reports.clone()).collect()))
    }

    /// Looks at the output folder, and empties it where that was asked for.
    fn prepare(&self) -> Result<Found> {
        let found = self.inspect();
        let ours = matches!(found, Ok(Found::Resumable(_)));
        if self.options.force && !ours || !self.options.resume && found.is_ok() {
            reset(self.output(), self.plan)?;
            return self.inspect();
        }
        found
    }

    /// Publishes what all workers have done, after a look at it (`run --finish`).
    ///
    /// # Errors
    /// [`Kind::Usage`] if tasks are missing, [`Kind::Foreign`] if workers are still at work.
    pub fn finish_by_hand(&self) -> Result<Outcome> {
        let mut state = match self.inspect()? {
            Found::Complete => return self.already_complete().map(|(outcome, _)| outcome),
            Found::Resumable(state) => state,
        };
        let alone = if state.plan.is_some() { Some(Presence::alone(self.output())?) } else { None };
        self.settle(&mut state)?;
        let finished = publish::finish(self, &state);
        drop(alone);
        finished
    }

    fn already_complete(&self) -> Result<(Outcome, Vec<TensorReport>)> {
        // A run that died after the manifest and before this left its journals.
        if entry::exists(&journal::folder(self.output()))? {
            match Presence::alone(self.output()) {
                Ok(_alone) => journal::remove(self.output(), |_| true)?,
                Err(busy) if busy.kind == Kind::Foreign => {}
                Err(error) => return Err(error),
            }
        }
        Ok((Outcome::AlreadyComplete, Vec::new()))
    }

    /// Records that `tensor` is kept unquantised for its NaN or infinity.
    pub fn keep(&self, tensor: &str) -> Result<()> {
        let begin = Begin { plan: self.key.to_owned() };
        Journal::open(self.output(), self.options.worker, &begin)?.kept(tensor)
    }

    /// Tasks of this worker's share that are not done, as far as a look at times and samples tells;
    /// what surely does not hold is forgotten.
    fn remaining(&self, state: &mut State) -> Result<VecDeque<usize>> {
        if !state.unreadable.is_empty() {
            let names = state.unreadable.join(", ");
            self.progress.note(format!("{names}: records that cannot be read are passed over"));
        }
        let share = self.options.worker.tasks(self.plan);
        self.refuse_other_sources(state, &share)?;
        let mut remaining = VecDeque::new();
        for index in share {
            let (task, digest) = (&self.plan.tasks[index], &self.digests[index]);
            let Some(done) = state.done.get(digest) else {
                remaining.push_back(index);
                continue;
            };
            match self.judge(task, done)? {
                Standing::Stands => continue,
                Standing::Doubtful => {}
                Standing::Gone | Standing::OtherSource => {
                    self.progress.note(format!("{}: {CHANGED}", task.name));
                    state.done.remove(digest);
                }
            }
            remaining.push_back(index);
        }
        Ok(remaining)
    }

    fn count(&self, state: &State, remaining: &VecDeque<usize>) {
        let share = self.options.worker.tasks(self.plan);
        let bytes = |i: &usize| self.plan.tasks[*i].written();
        let total: u64 = share.iter().map(bytes).sum();
        let left: u64 = remaining.iter().map(bytes).sum();
        self.progress.begin_counting(total, total - left);
        for i in remaining {
            if let Some(point) = state.points.get(&self.digests[*i]) {
                let length =
                    point.fold.outputs.iter().fold(0, |sum: u64, o| sum.saturating_add(o.length));
                self.progress.add_resumed(length.min(bytes(i)));
            }
        }
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
        if let Some(done) = state.done.get(&self.digests[index]) {
            self.progress.note(format!("{}: touched since; its bytes are compared", task.name));
            if let Some(proved) = self.prove(task, done)? {
                self.progress.add_resumed(task.written());
                journal.done(proved)?;
                self.progress.end(&task.name);
                return Ok(());
            }
            self.progress.note(format!("{}: {CHANGED}", task.name));
        }
        let sources = self.sources(task)?;
        let done = match self.link(index, &sources)? {
            Some(linked) => Some(linked),
            None => self.write(index, &sources, budget, journal, state)?,
        };
        match done {
            Some(done) => journal.done(done)?,
            None => {
                self.left.lock().unwrap_or_else(PoisonError::into_inner).insert(index);
            }
        }
        self.progress.end(&task.name);
        Ok(())
    }
}
