//! The executor: runs a plan and knows nothing of models, parallelism or number formats beyond
//! [`crate::transform`].
//!
//! - [`executor`]: a run: jobs, resume, publication
//! - `pipeline`: one task as a ring of slots; `window`, `slot`, `fold` are its stages, [`sink`] its end
//! - `linking`: tasks whose outputs are the source's own files
//! - [`replay`]: the same without writing, for whoever compares
//! - [`budget`]: buffers from `--memory`; [`share`]: which tasks a worker runs
//! - [`journal`]: what has been done; [`output`]: the folder and what is found in it
//! - [`publish`], `manifest`: the small files, the manifest last; [`figures`]: errors of encoding
//! - [`attest`]: digests of source files in the same pass
//! - [`hash`]: digests whose state can be journaled; [`sha256`]: two at once; [`progress`]: counters and the stop flag

pub mod attest;
pub mod budget;
pub mod executor;
pub mod figures;
pub mod fold;
pub mod hash;
mod jobs;
pub mod journal;
mod linking;
mod manifest;
pub mod output;
mod pipeline;
pub mod progress;
pub mod publish;
pub mod replay;
pub mod sha256;
pub mod share;
pub mod sink;
mod slot;
pub mod sources;
mod window;

pub use executor::{Options, Outcome, POINT_EVERY, Run};
pub use progress::Progress;
pub use replay::Replay;
pub use share::Worker;
pub use sink::Sink;
