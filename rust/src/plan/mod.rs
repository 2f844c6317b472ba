//! What will be written, as data: a pure function of a catalog and a request.
//!
//! - [`data`]: tasks and outputs; [`step`]: their steps and targets
//! - [`request`]: what the user asked for, as it is saved and recorded
//! - [`check`]: the proof that a plan writes every byte once and loses nothing; shares no code
//!   with the planners
//! - `names`: the paths that an output may have
//! - [`quantize`], [`dequantize`], [`reshard`]: one planner a verb, over [`shard_task`] and [`select`]
//! - [`original`]: a re-sharded folder, opened as what it was cut from
//! - [`sidecars`]: config.json, index and the files carried over
//! - [`saved`]: plans on disk, which `run` executes only if they can be derived again exactly

pub mod check;
pub mod data;
pub mod dequantize;
pub mod explain;
mod names;
pub mod original;
pub mod quantize;
pub mod request;
pub mod reshard;
pub mod saved;
mod select;
mod shard_task;
pub mod sidecars;
pub mod step;
pub mod summary;

pub use data::{Dropped, OutputFile, Plan, Sidecar, SidecarContent, Task};
pub use request::{Request, Verb};
pub use step::{Step, Target};

use crate::catalog::Catalog;
use crate::error::{Error, Result};

/// Plans a request and proves the plan.
pub fn build(catalog: &Catalog, request: &Request) -> Result<Plan> {
    if catalog.pieces.is_some() && request.verb != Verb::Reshard {
        return Err(Error::impossible(format!(
            "{} cannot read a checkpoint that is cut for ranks or whose experts are reordered",
            request.verb.name()
        ))
        .at(catalog.root.path())
        .hint("put it together first: `lingconv reshard --target hf`"));
    }
    let plan = match request.verb {
        Verb::Quantize => quantize::plan(catalog, request)?,
        Verb::Dequantize => dequantize::plan(catalog, request)?,
        Verb::Reshard => reshard::plan(catalog, request)?,
    };
    check::check(catalog, &plan)?;
    Ok(plan)
}
