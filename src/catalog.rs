//! Opening and describing a checkpoint.

use std::path::PathBuf;

use lingconv_core::model::Model;
use lingconv_core::{catalog, inspect, plan};
use pyo3::prelude::*;

use crate::blocking::detached;
use crate::errors::json;

/// A checkpoint folder, opened by headers only.
#[pyclass(frozen)]
pub struct Catalog {
    pub(crate) inner: catalog::Catalog,
    pub(crate) model: Option<Model>,
}

#[pymethods]
impl Catalog {
    /// Opens a checkpoint folder; `arch_file` is the text of an architecture file.
    #[staticmethod]
    #[pyo3(signature = (path, *, arch_file=None))]
    fn open(py: Python<'_>, path: PathBuf, arch_file: Option<String>) -> PyResult<Self> {
        detached(py, || {
            let inner = plan::original::open(&path)?;
            let model = plan::request::load_model(&inner, arch_file.as_deref())?;
            Ok(Self { inner, model })
        })
    }

    /// What the checkpoint is, as JSON `lingconv.inspect/1`.
    fn summary(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || json(&inspect::summarize(&self.inner, self.model.as_ref())))
    }

    /// Names of the tensors that match `glob`, numbers folded, as JSON.
    #[pyo3(signature = (*, glob=None))]
    fn names(&self, py: Python<'_>, glob: Option<String>) -> PyResult<String> {
        detached(py, || json(&inspect::names(&self.inner, glob.as_deref())?))
    }

    /// Tensors from position `first` on whose name matches `glob`, at most `count`, as JSON, and the
    /// position where to go on.
    #[pyo3(signature = (*, glob=None, first, count))]
    fn tensors(
        &self,
        py: Python<'_>,
        glob: Option<String>,
        first: usize,
        count: usize,
    ) -> PyResult<String> {
        let (glob, model) = (glob.as_deref(), self.model.as_ref());
        detached(py, || json(&inspect::tensors(&self.inner, model, glob, (first, count))?))
    }
}
