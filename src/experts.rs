//! Looking into the weights of experts.

use std::str::FromStr;

use lingconv_core::error::Result;
use lingconv_core::exec::Progress;
use lingconv_core::experts::{Options, examine};
use lingconv_core::io::Mode;
use pyo3::prelude::*;

use crate::catalog::Catalog;
use crate::run::{kernel_level, report};
use crate::{blocking, errors};

/// What the weights of experts and routers tell; JSON `lingconv.experts/1`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "keyword arguments of a Python function")]
#[pyo3(signature = (catalog, *, against, bias_only, jobs, io, kernel, tick))]
pub fn experts(
    py: Python<'_>,
    catalog: &Catalog,
    against: Option<&Catalog>,
    bias_only: bool,
    jobs: usize,
    io: &str,
    kernel: Option<&str>,
    tick: Py<PyAny>,
) -> PyResult<String> {
    let options = || -> Result<Options> {
        let (io, level) = (Mode::from_str(io)?, kernel_level(kernel)?);
        Ok(Options { against: against.map(|a| &a.inner), bias_only, jobs, io, level })
    };
    let options = options().map_err(|e| errors::to_py(py, &e))?;
    let progress = Progress::default();
    let found = blocking::run(
        py,
        &progress.cancel,
        || examine(&catalog.inner, catalog.model.as_ref(), &options, &progress),
        |cancelling| report(py, &progress, cancelling, &tick),
    )?;
    errors::json(&found).map_err(|e| errors::to_py(py, &e))
}
