//! Executing plans.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use lingconv_core::error::{Error, Result};
use lingconv_core::exec::attest::Known;
use lingconv_core::exec::{Options, POINT_EVERY, Progress, Worker};
use lingconv_core::io::Mode;
use lingconv_core::join::{join, joined};
use lingconv_core::numeric::Level;
use lingconv_core::run as core;
use lingconv_core::trust::{known_files, known_sources};
use pyo3::prelude::*;
use serde_json::json;

use crate::blocking;
use crate::catalog::Catalog;
use crate::errors;
use crate::plan::Plan;

/// The level asked for, else the best this machine has.
pub fn kernel_level(name: Option<&str>) -> Result<Level> {
    let Some(name) = name else { return Ok(Level::detect()) };
    let level = Level::from_str(name).map_err(|e| Error::usage(e.to_string()))?;
    if level.is_available() {
        return Ok(level);
    }
    let names: Vec<String> = Level::available().iter().map(ToString::to_string).collect();
    Err(Error::usage(format!("this machine has no {name} kernels"))
        .hint(format!("choose one of: {}", names.join(", "))))
}

/// Runs a plan, or a worker's share of it; JSON of the outcome.
#[pyfunction]
#[pyo3(signature = (catalog, plan, *, output, jobs, memory, io, kernel, paranoid, verify_source, worker, resume, force, tick))]
#[expect(
    clippy::too_many_arguments,
    clippy::fn_params_excessive_bools,
    reason = "keyword arguments of a Python function"
)]
pub fn run(
    py: Python<'_>,
    catalog: &Catalog,
    plan: &Plan,
    output: PathBuf,
    jobs: usize,
    memory: u64,
    io: &str,
    kernel: Option<&str>,
    paranoid: bool,
    verify_source: bool,
    worker: (u32, u32),
    resume: bool,
    force: bool,
    tick: Py<PyAny>,
) -> PyResult<String> {
    let options = || -> Result<Options> {
        Ok(Options {
            output,
            jobs,
            memory,
            io: Mode::from_str(io)?,
            level: kernel_level(kernel)?,
            paranoid,
            worker: Worker::new(worker.0, worker.1)?,
            resume,
            force,
            point_every: POINT_EVERY,
            known: None,
            links: Known::default(),
        })
    };
    let mut options = options().map_err(|e| errors::to_py(py, &e))?;
    let progress = Progress::default();
    let finished = blocking::run(
        py,
        &progress.cancel,
        || {
            options.links = known_files(&catalog.inner)?;
            let joined = join(&catalog.inner, &plan.inner, &options, &progress)?;
            let plan = joined.as_ref().unwrap_or(&plan.inner);
            if verify_source {
                options.known = Some(known_sources(&catalog.inner, plan, &progress)?);
            }
            core::run(&catalog.inner, plan, &options, &progress)
        },
        |cancelling| report(py, &progress, cancelling, &tick),
    )?;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut answer = json!(finished);
    answer["read"] = count(&progress.read).into();
    answer["reread"] = count(&progress.reread).into();
    answer["written"] = count(&progress.written).into();
    answer["resumed"] = count(&progress.resumed).into();
    errors::json(&answer).map_err(|e| errors::to_py(py, &e))
}

pub fn report(
    py: Python<'_>,
    progress: &Progress,
    cancelling: bool,
    tick: &Py<PyAny>,
) -> PyResult<()> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let snapshot = json!({
        "total": count(&progress.total),
        "written": count(&progress.written),
        "resumed": count(&progress.resumed),
        "read": count(&progress.read),
        "busy": progress.busy(),
        "notes": progress.take_notes(),
        "cancelling": cancelling,
    });
    tick.call1(py, (snapshot.to_string(),)).map(|_| ())
}

fn folder_options(output: PathBuf) -> Options {
    Options {
        output,
        jobs: 0,
        memory: u64::MAX,
        io: Mode::Auto,
        level: Level::detect(),
        paranoid: false,
        worker: Worker::ALONE,
        resume: true,
        force: false,
        point_every: POINT_EVERY,
        known: None,
        links: Known::default(),
    }
}

/// Publishes a run whose tasks are all recorded; JSON of the outcome.
#[pyfunction]
#[pyo3(signature = (catalog, plan, *, output))]
pub fn finish(py: Python<'_>, catalog: &Catalog, plan: &Plan, output: PathBuf) -> PyResult<String> {
    blocking::detached(py, || {
        let mut options = folder_options(output);
        options.links = known_files(&catalog.inner)?;
        let joined = joined(&catalog.inner, &plan.inner, &options.output)?;
        let plan = joined.as_ref().unwrap_or(&plan.inner);
        let outcome = core::finish(&catalog.inner, plan, &options, &Progress::default())?;
        errors::json(&json!({ "outcome": outcome }))
    })
}

/// How far all workers have come, as JSON.
#[pyfunction]
#[pyo3(signature = (catalog, plan, *, output))]
pub fn status(py: Python<'_>, catalog: &Catalog, plan: &Plan, output: PathBuf) -> PyResult<String> {
    blocking::detached(py, || {
        let options = folder_options(output);
        let joined = joined(&catalog.inner, &plan.inner, &options.output)?;
        let plan = joined.as_ref().unwrap_or(&plan.inner);
        errors::json(&core::status(&catalog.inner, plan, &options)?)
    })
}
