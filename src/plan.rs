//! Making, loading and describing plans.

use std::path::PathBuf;

use lingconv_core::exec::{budget, output};
use lingconv_core::io::small;
use lingconv_core::plan::reshard::held as ranks;
use lingconv_core::plan::saved::SavedPlan;
use lingconv_core::plan::{self, Request, explain, summary};
use lingconv_core::run;
use lingconv_core::target::Target;
use pyo3::prelude::*;
use serde_json::json;

use crate::blocking::detached;
use crate::catalog::Catalog;
use crate::errors;

/// Name and engine of the target that `name` or `engine@version` stands for, as JSON.
#[pyfunction]
pub fn target(py: Python<'_>, text: &str, installed: Option<&str>) -> PyResult<String> {
    let found = Target::named(text, installed).map_err(|e| errors::to_py(py, &e))?;
    Ok(json!({ "name": found.name, "engine": found.engine }).to_string())
}

/// What the files of each rank hold in a folder that `reshard` wrote, as JSON.
#[pyfunction]
pub fn held(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    detached(py, || errors::json(&ranks::written(&path)?))
}

/// What will be written, proved.
#[pyclass(frozen)]
pub struct Plan {
    pub(crate) inner: plan::Plan,
    summary: summary::Summary,
}

#[pymethods]
impl Plan {
    /// Plans a request, given as JSON.
    #[staticmethod]
    fn build(py: Python<'_>, catalog: &Catalog, request: &str) -> PyResult<Self> {
        detached(py, || {
            let inner = plan::build(&catalog.inner, &Request::parse(request)?)?;
            let summary = summary::summarize(&catalog.inner, &inner)?;
            Ok(Self { inner, summary })
        })
    }

    /// Derives a saved plan again; refuses if source or plan differ from what was saved.
    #[staticmethod]
    fn load(py: Python<'_>, catalog: &Catalog, saved: &str) -> PyResult<Self> {
        detached(py, || {
            let inner = SavedPlan::parse(saved)?.derive(&catalog.inner)?;
            let summary = summary::summarize(&catalog.inner, &inner)?;
            Ok(Self { inner, summary })
        })
    }

    /// The plan in numbers, as JSON `lingconv.plan/1`.
    fn summary(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || errors::json(&self.summary))
    }

    /// Where a tensor comes from and goes to, as JSON.
    fn explain(&self, py: Python<'_>, catalog: &Catalog, tensor: &str) -> PyResult<String> {
        detached(py, || errors::json(&explain::explain(&catalog.inner, &self.inner, tensor)?))
    }

    /// What the files of each rank will hold, as JSON.
    fn held(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || errors::json(&ranks::planned(&self.inner)?))
    }

    /// Text of the saved plan.
    fn save(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || errors::json(&SavedPlan::new(&self.inner, &self.summary)?))
    }

    /// Paths of all files but the manifest and the sums, as a JSON list.
    fn files(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || errors::json(&self.inner.files()))
    }

    /// The request, as JSON.
    fn request(&self, py: Python<'_>) -> PyResult<String> {
        detached(py, || errors::json(&self.inner.request))
    }

    /// Disk space needed and free at `output`, and the buffers that `memory` and `jobs` give;
    /// refuses an output that lies in the source.
    #[pyo3(signature = (catalog, output, *, memory, jobs))]
    fn space(
        &self,
        py: Python<'_>,
        catalog: &Catalog,
        output: PathBuf,
        memory: u64,
        jobs: usize,
    ) -> PyResult<String> {
        detached(py, || {
            run::check_apart(catalog.inner.root.path(), &output)?;
            let buffers =
                budget::budget(&self.inner, memory, jobs, budget::Together::of(&self.inner))?;
            let free = small::free_space(&output)?.bytes;
            let needed = output::needed(&output, &catalog.inner, &self.inner)?;
            errors::json(&json!({
                "needed": needed,
                "free": free,
                "jobs": buffers.jobs,
                "window": buffers.window,
                "output_buffer": buffers.output_buffer,
                "buffers": buffers.total,
                "read_twice": buffers.read_twice,
            }))
        })
    }
}
