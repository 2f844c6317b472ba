//! What the weights of a checkpoint tell of its experts, in one pass: size and shape of their values,
//! twins, experts that are dead or unlike the others of their layer, and how the router sees them.
//!
//! - `weight`: one expert's matrix; `router`: the rows and the bias that choose experts
//! - [`survey`]: the same, of bytes that somebody else reads
//! - `report`: the answer, layer by layer; `judge`: what in it is unsound
//!
//! None of this is load: how often an expert is chosen, weights do not say.

mod judge;
mod report;
mod router;
pub mod survey;
mod weight;

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::iter::once;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

pub use report::{Bias, Errors, Finding, FindingKind, Layer, Projection, Report, Router, Scales};
pub use survey::Survey;

use crate::catalog::{CONFIG, Catalog};
use crate::companion::is_scale;
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::exec::sources::Sources;
use crate::io::Mode;
use crate::model::{Model, Role};
use crate::numeric::Level;
use crate::threads;

/// Threads a core, so that one computes while another waits for the disk.
const PER_CORE: usize = 2;
/// Most tensors that are looked at: each has figures, and perhaps a finding. Ling-1T has 59,000.
const MAX_JOBS: usize = 100_000;

/// How to look.
#[derive(Debug)]
pub struct Options<'a> {
    /// The same weights in the other number format, to measure the error of encoding.
    pub against: Option<&'a Catalog>,
    /// Only the routers' biases, a few bytes a layer.
    pub bias_only: bool,
    /// Tensors at a time; 0: two a core.
    pub jobs: usize,
    /// How bulk data moves.
    pub io: Mode,
    /// Instruction set.
    pub level: Level,
}

/// A tensor to be looked at.
#[derive(Debug, Clone, Copy)]
struct Job {
    tensor: u32,
    role: Role,
    layer: u32,
    /// Of a matrix of an expert.
    expert: Option<u32>,
}

/// What a look at a tensor gave.
#[derive(Debug)]
enum Found {
    Weight(weight::Measured),
    Router(router::Rows),
    Bias(Vec<f32>),
}

/// What all threads share.
#[derive(Clone, Copy)]
struct Context<'a> {
    catalog: &'a Catalog,
    against: Option<&'a Catalog>,
    io: Mode,
    level: Level,
    progress: &'a Progress,
}

/// Looks at every routed expert and every router of `catalog`, MTP layers included.
///
/// # Errors
/// [`Kind::Impossible`](crate::error::Kind::Impossible) if the architecture is unknown or has no
/// experts, or if the two number formats of a comparison are not one of FP8 and one wide.
pub fn examine(
    catalog: &Catalog,
    model: Option<&Model>,
    options: &Options,
    progress: &Progress,
) -> Result<Report> {
    let (model, mut jobs) = all_jobs(catalog, model)?;
    if options.bias_only {
        jobs.retain(|job| job.role == Role::RouterBias);
    }
    let &Options { against, io, level, .. } = options;
    let context = Context { catalog, against, io, level, progress };
    let bytes = jobs.iter().map(|job| context.bytes(job.tensor)).sum();
    progress.total.store(bytes, Ordering::Relaxed);
    let found = context.run(&jobs, options.jobs)?;
    Ok(Report::new(model, catalog, found, progress.read.load(Ordering::Relaxed)))
}

/// All there is to look at, in the order in which it lies on disk; an error if no expert is there.
fn all_jobs<M: Borrow<Model>>(catalog: &Catalog, model: Option<M>) -> Result<(M, Vec<Job>)> {
    let model = model.ok_or_else(|| {
        Error::impossible("the architecture is unknown, so no expert can be told")
            .at(catalog.root.path().join(CONFIG))
            .hint("describe the architecture with --arch FILE")
    })?;
    let jobs = jobs(catalog, model.borrow());
    if jobs.len() > MAX_JOBS {
        return Err(Error::impossible(format!(
            "{} tensors of experts and routers, the limit is {MAX_JOBS}",
            jobs.len()
        ))
        .at(catalog.root.path()));
    }
    if !jobs.iter().any(|job| job.expert.is_some()) {
        let name = model.borrow().architecture();
        return Err(Error::impossible(format!("{name} has no routed experts here"))
            .at(catalog.root.path())
            .hint("see what it holds with `lingconv inspect --tree`"));
    }
    Ok((model, jobs))
}

/// Experts and routers in the order in which they lie on disk.
fn jobs(catalog: &Catalog, model: &Model) -> Vec<Job> {
    let job = |(index, tensor): (usize, &crate::catalog::Tensor)| {
        let placed = model.role_of(&tensor.name).filter(|_| !is_scale(&tensor.name))?;
        let (role, layer) = (placed.rule.role, placed.layer?);
        let router = matches!(role, Role::RouterWeight | Role::RouterBias);
        let expert = placed.expert.filter(|_| role.is_routed_expert());
        (router || expert.is_some()).then_some(Job { tensor: index as u32, role, layer, expert })
    };
    let mut jobs: Vec<Job> = catalog.tensors.iter().enumerate().filter_map(job).collect();
    jobs.sort_by_key(|job| {
        let tensor = catalog.tensor(job.tensor);
        (tensor.shard, tensor.offset, tensor.bytes)
    });
    jobs
}

impl Context<'_> {
    /// Bytes that are read of a tensor and, in a comparison, of its counterpart.
    fn bytes(&self, tensor: u32) -> u64 {
        let info = self.catalog.tensor(tensor);
        let other = self.against.and_then(|a| Some(a.tensor(a.find(&info.name)?).bytes));
        info.bytes + other.unwrap_or(0)
    }

    fn run(&self, jobs: &[Job], jobs_at_a_time: usize) -> Result<Vec<(Job, Found)>> {
        let count = match jobs_at_a_time {
            0 => PER_CORE * std::thread::available_parallelism().map_or(2, usize::from),
            count => count,
        };
        let queue = Mutex::new(VecDeque::from_iter(jobs));
        let all = Mutex::new(Vec::with_capacity(jobs.len()));
        let work = || -> Result<()> {
            let mut room = weight::Room::default();
            while !self.progress.stopped() {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(job) = next else { return Ok(()) };
                let found = self.look(job, &mut room).inspect_err(|_| self.progress.set_halt(true));
                let found = found.map_err(|e| {
                    let name = &self.catalog.tensor(job.tensor).name;
                    e.tensor(&**name).at(self.catalog.path_of(job.tensor))
                })?;
                self.progress.add_written(self.bytes(job.tensor));
                all.lock().unwrap_or_else(PoisonError::into_inner).push((*job, found));
            }
            Err(Error::cancelled())
        };
        let joined: Vec<Result<()>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..count)
                .map(|_| threads::spawn(scope, work))
                .map(|w| w.inspect_err(|_| self.progress.set_halt(true)))
                .collect();
            let panicked = || Err(Error::internal("a reading thread panicked"));
            let join =
                |worker: Result<ScopedJoinHandle<_>>| worker?.join().unwrap_or_else(|_| panicked());
            workers.into_iter().map(join).collect()
        });
        // What stopped the others comes before their being stopped.
        let failed = joined.into_iter().filter_map(Result::err);
        match failed.min_by_key(|e| e.kind == crate::error::Kind::Cancelled) {
            Some(error) => Err(error),
            None => Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn look(&self, job: &Job, room: &mut weight::Room) -> Result<Found> {
        if job.expert.is_some() {
            return weight::measure(self, job.tensor, room).map(Found::Weight);
        }
        let whole = router::Whole::new(self.catalog, job.tensor)?;
        let sources = Sources::of_tensors(self.catalog, once(job.tensor), self.io, self.progress)?;
        let weight::Buffers { data, scratch } = &mut room.own;
        let range = sources.read(job.tensor, 0, whole.bytes() as usize, data, scratch)?;
        self.look_at_router(job, &whole, &data.bytes()[range])
    }

    fn look_at_router(&self, job: &Job, whole: &router::Whole, bytes: &[u8]) -> Result<Found> {
        match job.role {
            Role::RouterBias => Ok(Found::Bias(whole.bias(bytes))),
            _ => whole.rows(self, bytes).map(Found::Router),
        }
    }
}
