//! Verifying a folder.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use lingconv_core::against::remake;
use lingconv_core::error::{Error, Result};
use lingconv_core::exec::Progress;
use lingconv_core::experts::Survey;
use lingconv_core::io::{Mode, Root};
use lingconv_core::model::parallel::RankOnly;
use lingconv_core::numeric;
use lingconv_core::plan::{original, request::load_model};
use lingconv_core::verify::selection::Subset;
use lingconv_core::verify::state::Remembering;
use lingconv_core::verify::{self as core, Level, Options, digests};
use pyo3::prelude::*;

use crate::run::{kernel_level, report};
use crate::{blocking, errors};

const SECONDS_A_DAY: f64 = 86_400.0;

/// A listing that was fetched: text, address, which hub, commit, repository.
type Listing = (String, String, String, Option<String>, Option<String>);

fn fetched((text, origin, hub, commit, repository): Listing) -> Result<digests::Truth> {
    let kind = match hub.as_str() {
        "modelscope" => digests::Kind::ModelScope,
        _ => digests::Kind::HubListing,
    };
    let mut truth = digests::parse(&text, &origin, Some(kind))?;
    truth.commit = truth.commit.or(commit);
    truth.repository = truth.repository.or(repository);
    Ok(truth)
}

fn survey(
    path: &Path,
    arch_file: Option<&str>,
    io: Mode,
    kernel: numeric::Level,
) -> Result<Survey> {
    let catalog = original::open(path)?;
    let model = load_model(&catalog, arch_file)?;
    Survey::new(catalog, model, io, kernel)
}

/// How digests are remembered in the folder `state`, if that is given and they last at all.
fn remembering(state: Option<PathBuf>, days: f64, fresh: bool) -> Result<Option<Remembering>> {
    let lasting = Duration::try_from_secs_f64(days * SECONDS_A_DAY)
        .map_err(|_| Error::usage(format!("{days} is no number of days to remember")))?;
    let folder = state.filter(|_| !lasting.is_zero());
    Ok(folder.map(|folder| Remembering { folder, lasting, fresh }))
}

/// Verifies a folder; JSON `lingconv.verify/1`.
///
/// The sources of truth are `against`, a file, or `listing`, fetched from a hub, or
/// else what the download left in the folder, and `source`, which it was made of. With `experts`
/// their weights are looked at in the same pass; `arch_file` is the text of an architecture file.
#[pyfunction]
#[pyo3(signature = (path, *, level, against, listing, source, subset, files, rank, strict, allow_config_edits, experts, arch_file, jobs, memory, io, kernel, state, remember_days, fresh, sums, tick))]
#[expect(
    clippy::too_many_arguments,
    clippy::fn_params_excessive_bools,
    reason = "keyword arguments of a Python function"
)]
pub fn verify(
    py: Python<'_>,
    path: PathBuf,
    level: &str,
    against: Option<PathBuf>,
    listing: Option<Listing>,
    source: Option<PathBuf>,
    subset: Option<&str>,
    files: Vec<String>,
    rank: Option<(Option<u32>, Option<u32>)>,
    strict: bool,
    allow_config_edits: bool,
    experts: bool,
    arch_file: Option<String>,
    jobs: usize,
    memory: u64,
    io: &str,
    kernel: Option<&str>,
    state: Option<PathBuf>,
    remember_days: f64,
    fresh: bool,
    sums: bool,
    tick: Py<PyAny>,
) -> PyResult<String> {
    let options = || -> Result<Options> {
        let mut damaged_truths = Vec::new();
        let truths = match (against, listing) {
            (Some(file), _) => vec![digests::read_file(&file)?],
            (None, Some(listing)) => vec![fetched(listing)?],
            (None, None) => digests::detect(&Root::open(&path)?).or_else(|e| {
                damaged_truths.push(core::damaged_truth(&path, e)?);
                Ok(Vec::new())
            })?,
        };
        let subset = subset.map(Subset::from_str).transpose()?;
        let (level, io) = (Level::from_str(level)?, Mode::from_str(io)?);
        Ok(Options {
            level,
            truths,
            damaged_truths,
            subset,
            files,
            rank: rank.map(|(tp, pp)| RankOnly { tp, pp }),
            remake: None,
            experts: None,
            strict,
            allow_config_edits,
            jobs,
            io,
            remembering: remembering(state, remember_days, fresh)?,
            sums,
        })
    };
    let kernel = kernel_level(kernel).map_err(|e| errors::to_py(py, &e))?;
    let mut options = options().map_err(|e| errors::to_py(py, &e))?;
    let progress = Progress::default();
    let found = blocking::run(
        py,
        &progress.cancel,
        || {
            if let Some(source) = &source {
                let remake = remake(&path, source, memory, kernel)?;
                options.truths.insert(0, remake.truth()?);
                options.remake = Some(remake);
            }
            let io = options.io;
            options.experts = experts.then(|| survey(&path, arch_file.as_deref(), io, kernel));
            core::verify(&path, &options, &progress)
        },
        |cancelling| report(py, &progress, cancelling, &tick),
    )?;
    errors::json(&found).map_err(|e: Error| errors::to_py(py, &e))
}
