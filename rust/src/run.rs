//! A run from a plan to a published folder: what stands between the planner and the executor.
//!
//! `--nonfinite keep` is the one request whose plan depends on tensor data: a weight found to hold
//! NaN or infinity is recorded, the plan is made again with that weight kept, and the run goes
//! on. Only the shard that holds it is written again.

use std::collections::HashSet;
use std::iter::once;
use std::path::Path;

use serde::Serialize;

use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::exec::executor::{Options, Outcome, Run};
use crate::exec::figures::Figures;
use crate::exec::fold::TensorReport;
use crate::exec::journal::State;
use crate::exec::progress::LinkedFiles;
use crate::exec::sources::Sources;
use crate::exec::{Progress, output};
use crate::io::{AlignedBuf, small};
use crate::numeric::scan;
use crate::plan::{self, Plan};

/// Bytes read at a time of a tensor that a journal says is kept.
const CHUNK: u64 = 4 << 20;

/// How a run ended.
#[derive(Debug, Serialize)]
pub struct Finished {
    /// Whether everything is published.
    pub outcome: Outcome,
    /// Digest of the plan that was executed.
    pub plan: String,
    /// Tensors kept unquantised for their NaN or infinity.
    pub kept_nonfinite: Vec<String>,
    /// Error of each encoded tensor, if it was measured.
    pub reports: Vec<Report>,
    /// Files that this run linked instead of writing them.
    pub linked: LinkedFiles,
    /// Files of other ranks that the folder still lacks.
    pub expected: usize,
}

/// Error figures of one tensor.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Full name.
    pub tensor: String,
    /// Role, where the architecture is known.
    pub role: Option<&'static str>,
    /// Layer, where there is one.
    pub layer: Option<u32>,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

fn name_reports(catalog: &Catalog, plan: &Plan, reports: &[TensorReport]) -> Result<Vec<Report>> {
    let model = plan.request.load_model(catalog)?;
    let name = |report: &TensorReport| {
        let tensor = &*catalog.tensor(report.source).name;
        let placed = model.as_ref().and_then(|m| m.role_of(tensor));
        Report {
            tensor: tensor.to_owned(),
            role: placed.map(|p| p.rule.role.name()),
            layer: placed.and_then(|p| p.layer),
            figures: Figures::from(&report.stats),
        }
    };
    Ok(reports.iter().map(name).collect())
}

/// Runs `plan` and publishes the output if this was the last share of it.
pub fn run(
    catalog: &Catalog,
    plan: &Plan,
    options: &Options,
    progress: &Progress,
) -> Result<Finished> {
    check_apart(catalog.root.path(), &options.output)?;
    let key = plan.digest();
    let mut options = options.clone();
    let mut replanned = None;
    let mut kept = Kept::new(progress);
    loop {
        if let Some(with_kept) = kept.planned(catalog, plan, &options, &key)? {
            replanned = Some(with_kept);
        }
        let current = replanned.as_ref().unwrap_or(plan);
        let run = Run::new(catalog, current, &key, &options, progress);
        match run.execute() {
            Ok((outcome, reports)) => {
                return Ok(Finished {
                    outcome,
                    plan: current.digest(),
                    kept_nonfinite: current.request.nonfinite.clone(),
                    reports: name_reports(catalog, current, &reports)?,
                    linked: progress.linked(),
                    expected: current.expected.len(),
                });
            }
            Err(error) if error.kind == Kind::NonFinite && current.request.keep_nonfinite => {
                let tensor = error.tensor.clone().unwrap_or_default();
                let mut all = current.request.nonfinite.clone();
                all.push(tensor.clone());
                // Planned before it is recorded: a tensor that cannot be kept must not be.
                plan_keeping(catalog, plan, all).map_err(|e| refuse_keeping(error, &e))?;
                run.keep(&tensor)?;
                kept.found.insert(tensor.clone());
                progress.note(format!("{tensor} holds NaN or infinity; kept unquantised"));
                (options.force, options.resume) = (false, true);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Tensors that are kept unquantised. A journal may name one that the source, another by now, does
/// not keep: each is looked at once.
struct Kept<'a> {
    progress: &'a Progress,
    /// Those that were seen to hold NaN or infinity.
    found: HashSet<String>,
}

impl<'a> Kept<'a> {
    fn new(progress: &'a Progress) -> Self {
        Self { progress, found: HashSet::new() }
    }

    /// The plan that the journals say is being executed, if they name tensors to keep.
    fn planned(
        &mut self,
        catalog: &Catalog,
        plan: &Plan,
        options: &Options,
        key: &str,
    ) -> Result<Option<Plan>> {
        if !plan.request.keep_nonfinite || !options.resume {
            return Ok(None);
        }
        let state = State::read(&options.output)?;
        if state.plan.as_deref() != Some(key) {
            return Ok(None);
        }
        let mut kept = Vec::with_capacity(state.kept.len());
        for name in state.kept {
            if self.found.contains(&name) || self.holds(catalog, options, &name)? {
                self.found.insert(name.clone());
                kept.push(name);
            }
        }
        if kept.is_empty() { Ok(None) } else { plan_keeping(catalog, plan, kept).map(Some) }
    }

    /// Whether a tensor of the source holds NaN or infinity.
    fn holds(&self, catalog: &Catalog, options: &Options, name: &str) -> Result<bool> {
        let Some(index) = catalog.find(name) else { return Ok(false) };
        let tensor = catalog.tensor(index);
        let sources = Sources::of_tensors(catalog, once(index), options.io, self.progress)?;
        let (mut buffer, mut scratch) = (AlignedBuf::default(), AlignedBuf::default());
        let mut at = 0;
        while at < tensor.bytes {
            if self.progress.stopped() {
                return Err(Error::cancelled());
            }
            let length = (tensor.bytes - at).min(CHUNK);
            let read = sources.read(index, at, length as usize, &mut buffer, &mut scratch)?;
            if scan(&buffer.bytes()[read], tensor.dtype).non_finite.is_some() {
                return Ok(true);
            }
            at += length;
        }
        Ok(false)
    }
}

fn plan_keeping(catalog: &Catalog, plan: &Plan, nonfinite: Vec<String>) -> Result<Plan> {
    let mut request = plan.request.clone();
    request.nonfinite.extend(nonfinite);
    request.nonfinite.sort_unstable();
    request.nonfinite.dedup();
    plan::build(catalog, &request)
}

fn refuse_keeping(found: Error, reason: &Error) -> Error {
    Error { hint: None, ..found }
        .details(vec![format!("it cannot be kept: {}", reason.message)])
        .hint("download the shard again, or leave the layer's experts out with --skip")
}

/// Publishes a run whose tasks are all recorded (`run --finish`).
pub fn finish(
    catalog: &Catalog,
    plan: &Plan,
    options: &Options,
    progress: &Progress,
) -> Result<Outcome> {
    let key = plan.digest();
    let kept = Kept::new(progress).planned(catalog, plan, options, &key)?;
    let plan = kept.as_ref().unwrap_or(plan);
    Run::new(catalog, plan, &key, options, progress).finish_by_hand()
}

/// How far all workers have come.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Tasks of the plan.
    pub tasks: usize,
    /// Tasks recorded as done.
    pub done: usize,
    /// Bytes of all outputs.
    pub bytes: u64,
    /// Bytes recorded, points inside tasks included.
    pub bytes_done: u64,
    /// Whether the manifest is there.
    pub published: bool,
    /// Tasks that have begun and are not done.
    pub running: Vec<String>,
}

/// Reads all journals of `output` (`run --status`).
pub fn status(catalog: &Catalog, plan: &Plan, options: &Options) -> Result<Status> {
    let key = plan.digest();
    let progress = Progress::default();
    let kept = Kept::new(&progress).planned(catalog, plan, options, &key)?;
    let plan = kept.as_ref().unwrap_or(plan);
    let bytes: u64 = plan.tasks.iter().map(plan::Task::bytes).sum();
    let tasks = plan.tasks.len();
    let state = match output::inspect(&options.output, &key, &plan.digest(), None)? {
        output::Found::Complete => {
            let running = Vec::new();
            return Ok(Status {
                tasks,
                done: tasks,
                bytes,
                bytes_done: bytes,
                published: true,
                running,
            });
        }
        output::Found::Resumable(state) => state,
    };
    let (mut done, mut bytes_done, mut running) = (0, 0, Vec::new());
    for task in &plan.tasks {
        let digest = task.digest();
        if state.done.contains_key(&digest) {
            done += 1;
            bytes_done += task.bytes();
        } else if let Some(point) = state.points.get(&digest) {
            let length =
                point.fold.outputs.iter().fold(0, |sum: u64, o| sum.saturating_add(o.length));
            bytes_done += length.min(task.bytes());
            running.push(task.name.clone());
        }
    }
    Ok(Status { tasks, done, bytes, bytes_done, published: false, running })
}

/// Source and output must not lie in one another: the source is never written to.
pub fn check_apart(source: &Path, output: &Path) -> Result<()> {
    let (from, to) = (small::resolve(source)?, small::resolve(output)?);
    if to.starts_with(&from) || from.starts_with(&to) {
        return Err(Error::usage("the output and the source lie in one another")
            .at(output)
            .hint("choose a folder beside the source with -o"));
    }
    Ok(())
}
