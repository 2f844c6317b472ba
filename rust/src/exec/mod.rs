//! The executor: runs a plan and knows nothing of models, parallelism or number formats beyond
//! [`crate::transform`].
//!
//! - [`executor`]: a run: jobs, resume, publication
//! - `pipeline`: one task as a ring of slots; `window`, `slot`, `fold` are its stages, [`sink`] its end;
//!   `strips`: rows too wide for a slot
//! - `linking`: tasks whose outputs are the source's own files
//! - [`replay`]: the same without writing, for whoever compares
//! - [`budget`]: buffers from `--memory`; [`share`]: which tasks a worker runs
//! - [`journal`]: what has been done; [`output`]: the folder and what is found in it; `presence`: who
//!   else is at work there; `force`: emptying it
//! - `standing`: whether what is recorded still holds; [`identity`], `content`: which source it was made
//!   of; `reached`: which points a task can have; `write`: a task from its point to its files
//! - [`publish`], `manifest`, `origins`: the small files, the manifest last; [`figures`]: errors of encoding
//! - [`attest`]: digests of source files in the same pass
//! - [`hash`]: digests whose state can be journaled; [`sha256`]: two at once; [`progress`]: counters and the stop flag

pub mod attest;
pub mod budget;
pub mod executor;
pub mod figures;
pub mod fold;
pub(crate) mod force;
pub mod hash;
pub mod identity;
mod jobs;
pub mod journal;
mod linking;
mod manifest;
mod origins;
pub mod output;
mod pipeline;
pub(crate) mod presence;
pub mod progress;
pub mod publish;
mod reached;
pub mod replay;
pub mod sha256;
pub mod share;
pub mod sink;
mod slot;
pub mod sources;
pub(crate) mod standing;
mod strips;
mod window;
mod write;

pub use executor::{Options, Outcome, POINT_EVERY, Run};
pub use progress::Progress;
pub use replay::Replay;
pub use share::Worker;
pub use sink::Sink;
