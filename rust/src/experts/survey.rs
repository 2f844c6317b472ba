//! Experts measured by whoever reads their files anyway, each file from its first byte to its last.
//!
//! A [`Survey`] knows which tensors of which file are wanted, a [`Follower`] takes the bytes of one
//! file as they arrive. Windows are those of [`examine`](super::examine), so that every figure is.
//! Nothing is read here but the scales of FP8, which are needed before their codes.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::router::Whole;
use super::weight::{Buffers, Matrix, Meter};
use super::{Context, Found, Job, Report, all_jobs};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::io::Mode;
use crate::model::Model;
use crate::numeric::Level;

/// All experts and routers of a checkpoint, and what was found of them so far.
#[derive(Debug)]
pub struct Survey {
    catalog: Catalog,
    model: Model,
    /// In the order in which they lie on disk.
    jobs: Vec<Job>,
    io: Mode,
    level: Level,
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    found: Vec<(Job, Found)>,
    /// Why tensors could not be measured.
    failed: Vec<(u32, Error)>,
    bytes: u64,
}

impl Survey {
    /// Of a checkpoint; `io` and `level` are how scales are read and values are measured.
    ///
    /// # Errors
    /// [`Kind::Impossible`](crate::error::Kind::Impossible) if the architecture is unknown, has no
    /// experts, or if they lie in pieces.
    pub fn new(catalog: Catalog, model: Option<Model>, io: Mode, level: Level) -> Result<Self> {
        let (model, jobs) = all_jobs(&catalog, model)?;
        if catalog.pieces.is_some() {
            return Err(Error::impossible(
                "experts that were cut for ranks lie in no file as a whole; `lingconv experts \
                 stats` puts them together",
            )
            .at(catalog.root.path()));
        }
        Ok(Self { catalog, model, jobs, io, level, answers: Mutex::default() })
    }

    /// Experts and routers in a file.
    fn jobs_of(&self, file: &str) -> &[Job] {
        let shard = self.catalog.shards.iter().zip(0u32..).find(|(shard, _)| shard.name == file);
        let Some((_, shard)) = shard else { return &[] };
        let shard_of = |job: &Job| self.catalog.tensor(job.tensor).shard;
        let first = self.jobs.partition_point(|job| shard_of(job) < shard);
        let end = self.jobs.partition_point(|job| shard_of(job) <= shard);
        &self.jobs[first..end]
    }

    /// Whether a file holds experts or routers.
    pub fn wants(&self, file: &str) -> bool {
        !self.jobs_of(file).is_empty()
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, tensor: &str) -> String {
        let found = self.catalog.find(tensor);
        found.map(|t| self.catalog.shard_of(t).name.clone()).unwrap_or_default()
    }

    /// Takes the bytes of one file.
    pub fn follow<'a>(&'a self, file: &str, progress: &'a Progress) -> Follower<'a> {
        let Self { catalog, io, level, .. } = self;
        let context = Context { catalog, against: None, io: *io, level: *level, progress };
        Follower {
            survey: self,
            context,
            jobs: self.jobs_of(file),
            position: 0,
            gauge: None,
            window: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all bytes told.
    ///
    /// # Errors
    /// The first, in the order of the files, of what kept a tensor from being measured.
    pub fn report(&self) -> Result<Report> {
        let mut answers = std::mem::take(&mut *self.answers());
        // Tensors of a catalog are in the order of the files.
        answers.failed.sort_by_key(|(tensor, _)| *tensor);
        if let Some((tensor, error)) = answers.failed.into_iter().next() {
            let name = &self.catalog.tensor(tensor).name;
            return Err(error.tensor(&**name).at(self.catalog.path_of(tensor)));
        }
        let found: HashSet<u32> = answers.found.iter().map(|(job, _)| job.tensor).collect();
        if let Some(job) = self.jobs.iter().find(|job| !found.contains(&job.tensor)) {
            return Err(Error::invalid("not all of its bytes could be read")
                .tensor(&*self.catalog.tensor(job.tensor).name)
                .at(self.catalog.path_of(job.tensor)));
        }
        Ok(Report::new(&self.model, &self.catalog, answers.found, answers.bytes))
    }
}

/// Follows one file from its first byte to its last.
pub struct Follower<'a> {
    survey: &'a Survey,
    context: Context<'a>,
    /// What is still to come.
    jobs: &'a [Job],
    position: u64,
    /// Of the first of the jobs, once its bytes arrive; an error if it cannot be measured.
    gauge: Option<Result<Gauge<'a>>>,
    /// What has arrived of the next window.
    window: Vec<u8>,
    buffers: Buffers,
}

/// What takes the bytes of one tensor, window by window.
enum Gauge<'a> {
    Weight(Meter<'a>),
    Router(Whole<'a>, Option<Found>),
}

impl Follower<'_> {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while let Some((job, later)) = self.jobs.split_first() {
            let info = self.context.catalog.tensor(job.tensor);
            let (begin, end) = (info.offset, info.offset + info.bytes);
            let skip = begin.saturating_sub(self.position).min(bytes.len() as u64);
            self.position += skip;
            bytes = &bytes[skip as usize..];
            if self.position < begin {
                return;
            }
            let take = end.saturating_sub(self.position).min(bytes.len() as u64);
            let (own, rest) = bytes.split_at(take as usize);
            self.measure(job, own);
            self.position += take;
            bytes = rest;
            if self.position < end {
                return;
            }
            self.close(job);
            self.jobs = later;
        }
    }

    fn measure(&mut self, job: &Job, mut bytes: &[u8]) {
        let (context, buffers) = (&self.context, &mut self.buffers);
        let gauge = self.gauge.get_or_insert_with(|| Gauge::open(context, job, buffers));
        let failed = loop {
            let Ok(open) = gauge else { return };
            let Some(wanted) = open.wanted() else { return };
            let window = match bytes.split_at_checked(wanted) {
                // A window that arrives in one piece is taken where it lies.
                Some((window, rest)) if self.window.is_empty() => {
                    bytes = rest;
                    window
                }
                _ => {
                    let missing = (wanted - self.window.len()).min(bytes.len());
                    self.window.extend_from_slice(&bytes[..missing]);
                    bytes = &bytes[missing..];
                    if self.window.len() < wanted {
                        return;
                    }
                    &self.window
                }
            };
            let taken = open.take(context, job, window);
            self.window.clear();
            if let Err(error) = taken {
                break error;
            }
        };
        *gauge = Err(failed);
    }

    fn close(&mut self, job: &Job) {
        let mut answers = self.survey.answers();
        match self.gauge.take() {
            Some(Ok(Gauge::Weight(meter))) => {
                answers.bytes += meter.bytes();
                answers.found.push((*job, Found::Weight(meter.finish())));
            }
            Some(Ok(Gauge::Router(whole, Some(found)))) => {
                answers.bytes += whole.bytes();
                answers.found.push((*job, found));
            }
            Some(Err(error)) => answers.failed.push((job.tensor, error)),
            Some(Ok(Gauge::Router(_, None))) | None => {}
        }
    }
}

impl<'a> Gauge<'a> {
    fn open(context: &Context<'a>, job: &Job, buffers: &mut Buffers) -> Result<Self> {
        let (catalog, tensor) = (context.catalog, job.tensor);
        if job.expert.is_none() {
            return Ok(Self::Router(Whole::new(catalog, tensor)?, None));
        }
        let matrix = Matrix::open(context, catalog, tensor, buffers)?;
        Ok(Self::Weight(Meter::new(matrix, context.level)))
    }

    /// Bytes of the next window; none at the end.
    fn wanted(&self) -> Option<usize> {
        match self {
            Self::Weight(meter) if meter.window().is_empty() => None,
            Self::Weight(meter) => Some(meter.wanted() as usize),
            Self::Router(_, Some(_)) => None,
            Self::Router(whole, None) => Some(whole.bytes() as usize),
        }
    }

    fn take(&mut self, context: &Context, job: &Job, window: &[u8]) -> Result<()> {
        match self {
            Self::Weight(meter) => meter.take(window),
            Self::Router(whole, found) => {
                *found = Some(context.look_at_router(job, whole, window)?);
            }
        }
        Ok(())
    }
}
