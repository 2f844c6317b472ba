//! What this build and this machine offer.

use lingconv_core::dialect::Dialect;
use lingconv_core::numeric::Level;
use pyo3::prelude::*;
use serde_json::{Value, json};

/// Built-in dialects with a line of description each, as JSON.
#[pyfunction]
pub fn dialects() -> String {
    let list: Vec<Value> = Dialect::names()
        .filter_map(Dialect::builtin)
        .map(|d| json!({ "name": d.name(), "description": d.description() }))
        .collect();
    Value::from(list).to_string()
}

/// Kernel levels that this machine can run, as JSON.
#[pyfunction]
pub fn kernels() -> String {
    let available: Vec<String> = Level::available().iter().map(ToString::to_string).collect();
    json!({ "detected": Level::detect().to_string(), "available": available }).to_string()
}
