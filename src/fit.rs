//! Which splits of a number of GPUs work.

use lingconv_core::plan::Request;
use lingconv_core::plan::reshard::fit as core;
use pyo3::prelude::*;

use crate::blocking::detached;
use crate::catalog::Catalog;
use crate::errors;

/// Answers `question` for the target and format of `request`, both given as JSON; as JSON.
#[pyfunction]
pub fn fit(py: Python<'_>, catalog: &Catalog, request: &str, question: &str) -> PyResult<String> {
    detached(py, || {
        let (request, question) = (Request::parse(request)?, core::Question::parse(question)?);
        errors::json(&core::fit(&catalog.inner, &request, &question)?)
    })
}
