//! A converted folder held against its source: the conversion is done again, and instead of being
//! written, what comes out is compared with the files.
//!
//! The executor's own pipeline does it, so that there is one definition of every conversion. Both
//! sides are read once, front to back; what is read of the folder also passes through the digests
//! and the scan that an ordinary verification makes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::compared::Compared;
use super::digests::{Algorithm, Expected, FileDigest, Kind, Truth};
use super::engine::Options;
use super::reading::{FileJob, Reading};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::exec::fold::DoneOutput;
use crate::exec::{Progress, Replay};
use crate::io::Root;
use crate::numeric::Level;
use crate::plan::{OutputFile, Plan, Task};

/// A source and the plan that the folder was made by.
#[derive(Debug)]
pub struct Remake {
    catalog: Catalog,
    plan: Plan,
    memory: u64,
    level: Level,
    /// Paths of the files with tensors.
    paths: HashSet<String>,
}

impl Remake {
    /// `plan` of `catalog`, done again within `memory` bytes of buffers.
    pub fn new(catalog: Catalog, plan: Plan, memory: u64, level: Level) -> Self {
        let outputs = plan.tasks.iter().flat_map(|t| &t.outputs);
        let paths = outputs.map(|o| o.path.clone()).collect();
        Self { catalog, plan, memory, level, paths }
    }

    /// What the plan says of the folder: sizes of all files, digests of the small ones.
    pub fn truth(&self) -> Result<Truth> {
        let mut truth = Truth::new(Kind::Source, &self.catalog.root.path().display().to_string());
        truth.lists_everything = true;
        truth.config = self.plan.config_text().map(str::to_owned);
        for output in self.plan.tasks.iter().flat_map(|t| &t.outputs) {
            let expected = Expected { size: Some(output.size), ..Expected::default() };
            truth.add(&output.path, expected)?;
        }
        for sidecar in &self.plan.sidecars {
            let digests = vec![FileDigest::new(Algorithm::Sha256, &sidecar.sha256)?];
            let expected = Expected { size: Some(sidecar.size), digests, tensors: Vec::new() };
            truth.add(&sidecar.path, expected)?;
        }
        Ok(truth)
    }

    /// Whether a file is made of tensors of the source.
    pub(super) fn makes(&self, name: &str) -> bool {
        self.paths.contains(name)
    }

    /// Compares the files of `jobs` with what is made of the source.
    pub(super) fn compare<'r>(
        &'r self,
        root: &Root,
        jobs: Vec<FileJob>,
        options: &Options,
        progress: &'r Progress,
    ) -> Result<Reading> {
        let jobs: HashMap<String, FileJob> =
            jobs.into_iter().map(|job| (job.name.clone(), only_sha256(job))).collect();
        let wanted = |task: &Task| task.outputs.iter().any(|o| jobs.contains_key(&o.path));
        let tasks: VecDeque<usize> =
            (0..self.plan.tasks.len()).filter(|i| wanted(&self.plan.tasks[*i])).collect();
        let total = tasks.iter().map(|i| self.plan.tasks[*i].bytes()).sum();
        progress.total.fetch_add(total, Ordering::Relaxed);
        let before = progress.read.load(Ordering::Relaxed);
        let reading = Mutex::new(Reading::default());
        let replay = Replay {
            catalog: &self.catalog,
            plan: &self.plan,
            jobs: options.jobs,
            memory: self.memory,
            io: options.io,
            level: self.level,
            progress,
        };
        let open = |task: &'r Task, chunk: usize| {
            let sink = |output: &'r OutputFile| {
                let job = jobs.get(&output.path)?;
                Some(Compared::open(root, output, job, options.io, chunk, progress))
            };
            task.outputs.iter().map(sink).collect::<Vec<_>>()
        };
        let done = |task: &Task, sinks: Vec<Option<Compared>>, outputs: Vec<DoneOutput>| {
            let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
            for (i, (sink, made)) in sinks.into_iter().zip(outputs).enumerate() {
                let origin = |key, offset| self.origin(task, i, key, offset);
                reading.merge(sink.map_or(Ok(Reading::default()), |s| s.finish(made, &origin))?);
            }
            Ok(())
        };
        replay.run(tasks, open, done)?;
        let mut reading = reading.into_inner().unwrap_or_else(PoisonError::into_inner);
        reading.bytes += progress.read.load(Ordering::Relaxed) - before;
        Ok(reading)
    }

    /// What makes a byte of an output's tensor, in words.
    fn origin(&self, task: &Task, output: usize, tensor: usize, offset: u64) -> String {
        match task.maker(output, tensor, offset) {
            Some(step) => {
                let source = &self.catalog.tensor(step.source).name;
                let file = self.catalog.path_of(step.source);
                format!("{} of {source} in {}", step.op.name(), file.display())
            }
            None => "a constant of the target".to_owned(),
        }
    }
}

/// The conversion makes no other digest of a file.
fn only_sha256(mut job: FileJob) -> FileJob {
    job.digests.retain(|d| d.algorithm == Algorithm::Sha256);
    job
}
