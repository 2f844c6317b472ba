//! The Python face of `lingconv-core`: a table of names, and one file a verb.
//!
//! Large things are handles, small ones cross as JSON text; tensor bytes never cross.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]

mod blocking;
mod catalog;
mod env;
mod errors;
mod experts;
mod fit;
mod plan;
mod run;
mod synth;
mod verify;

use lingconv_core::memory::{self, Allocator};
use pyo3::prelude::*;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Lets this process end with `code`, and `text` on stderr, where the core has no memory left.
#[pyfunction]
fn last_words(text: &str, code: i32) {
    memory::last_words(text, code);
}

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("CoreError", module.py().get_type::<errors::CoreError>())?;
    module.add_function(wrap_pyfunction!(last_words, module)?)?;
    module.add_class::<catalog::Catalog>()?;
    module.add_class::<plan::Plan>()?;
    module.add_function(wrap_pyfunction!(run::run, module)?)?;
    module.add_function(wrap_pyfunction!(run::finish, module)?)?;
    module.add_function(wrap_pyfunction!(run::status, module)?)?;
    module.add_function(wrap_pyfunction!(synth::synth, module)?)?;
    module.add_function(wrap_pyfunction!(verify::verify, module)?)?;
    module.add_function(wrap_pyfunction!(experts::experts, module)?)?;
    module.add_function(wrap_pyfunction!(synth::presets, module)?)?;
    module.add_function(wrap_pyfunction!(env::dialects, module)?)?;
    module.add_function(wrap_pyfunction!(plan::target, module)?)?;
    module.add_function(wrap_pyfunction!(plan::held, module)?)?;
    module.add_function(wrap_pyfunction!(fit::fit, module)?)?;
    module.add_function(wrap_pyfunction!(env::kernels, module)?)
}
