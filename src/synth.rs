//! Synthetic checkpoints.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lingconv_core::synth as core;
use pyo3::prelude::*;
use serde_json::json;

use crate::blocking;

/// Names of the presets.
#[pyfunction]
pub fn presets() -> Vec<&'static str> {
    core::presets().to_vec()
}

/// Writes a synthetic checkpoint; JSON with the number of files, tensors and bytes.
#[pyfunction]
#[pyo3(signature = (*, preset, output, layers, experts, seed, shard_size, mtp, fp8, sparse, jobs, tick))]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
pub fn synth(
    py: Python<'_>,
    preset: String,
    output: PathBuf,
    layers: Option<u32>,
    experts: Option<u32>,
    seed: u64,
    shard_size: Option<u64>,
    mtp: bool,
    fp8: bool,
    sparse: bool,
    jobs: usize,
    tick: Py<PyAny>,
) -> PyResult<String> {
    let options =
        core::Options { preset, layers, experts, seed, shard_size, mtp, fp8, sparse, jobs };
    let stop = AtomicBool::new(false);
    let (written, total) = (AtomicU64::new(0), AtomicU64::new(0));
    let progress = |bytes: u64, of: u64| {
        total.store(of, Ordering::Relaxed);
        written.fetch_add(bytes, Ordering::Relaxed);
        !stop.load(Ordering::Relaxed)
    };
    let summary = blocking::run(
        py,
        &stop,
        || core::write(&options, &output, &progress),
        |cancelling| {
            let (written, total) = (written.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
            let snapshot = json!({
                "total": total, "written": written, "resumed": 0, "read": 0,
                "busy": [], "notes": [], "cancelling": cancelling,
            });
            tick.call1(py, (snapshot.to_string(),)).map(|_| ())
        },
    )?;
    let answer = json!({
        "files": summary.files, "tensors": summary.tensors, "bytes": summary.bytes,
    });
    Ok(answer.to_string())
}
