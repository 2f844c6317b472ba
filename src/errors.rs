//! Core errors as one Python exception that carries what a message, a hint and an exit code need.

use lingconv_core::error::{Error, Result};
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use serde::Serialize;

create_exception!(_core, CoreError, PyException, "An error of the core; see its attributes.");

/// The Python exception of a core error.
pub fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    let exception = CoreError::new_err(error.to_string());
    let value = exception.value(py);
    let path = error.path.as_ref().map(|p| p.display().to_string());
    let set = || -> PyResult<()> {
        value.setattr("kind", error.kind.name())?;
        value.setattr("message", &error.message)?;
        value.setattr("details", &error.details)?;
        value.setattr("path", path)?;
        value.setattr("tensor", &error.tensor)?;
        value.setattr("hint", &error.hint)?;
        value.setattr("exit_code", error.kind.exit_code())
    };
    match set() {
        Ok(()) => exception,
        Err(other) => other,
    }
}

/// JSON text for the caller.
pub fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))
}
