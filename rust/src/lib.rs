//! lingconv's core. START HERE.
//!
//! A checkpoint folder becomes another one in four steps, each a noun of this crate:
//!
//! 1. [`catalog`] reads headers, index and config, and nothing else. [`header`] is the strict
//!    parser behind it; [`model`] gives tensor names their roles, from `data/architectures`;
//!    [`target`] says what engines want on disk, from `data/targets`.
//! 2. [`plan`] turns a catalog and a request into tasks, as data: which source bytes go through
//!    which operation of [`transform`] to which place of which output file. [`plan::check`] proves
//!    that nothing is lost or written twice, without using the planners.
//! 3. [`exec`] runs a plan. It streams each task through a ring of slots, hashes every output from
//!    front to back, journals how far it is, and publishes the manifest last. The arithmetic is in
//!    [`numeric`]; [`dialect`] says which arithmetic a published format uses.
//! 4. [`mod@run`] ties planner and executor together for the commands, [`join`] adds ranks to those
//!    that an output holds; [`trust`] finds what is known
//!    of a source, for runs that verify it in the same pass; [`against`] derives a plan again, for
//!    holding its output against the source.
//!
//! [`experts`] looks into the weights of experts and routers, in a pass of its own or in that of
//! `verify`. [`verify`] compares a folder with what is known of it, and shares the catalog's header reader,
//! the hashes and the I/O. [`io`] is the only module that touches the file system. [`inspect`] describes a catalog,
//! [`pieces`] lets a re-sharded folder be read as the checkpoint it was cut from,
//! [`synth`] makes checkpoints to rehearse with. Errors are [`error::Error`] everywhere, also
//! where [`threads`] cannot start or [`memory`] is short.

pub mod against;
pub mod allowance;
pub mod catalog;
pub mod companion;
pub mod dialect;
pub mod dtype;
pub mod error;
pub mod exec;
pub mod experts;
pub mod folding;
pub mod header;
pub mod inspect;
pub mod io;
pub mod join;
mod json;
pub mod memory;
pub mod model;
pub mod numeric;
pub mod pieces;
pub mod plan;
pub mod run;
pub mod shard_headers;
pub mod synth;
pub mod target;
pub mod threads;
pub mod transform;
pub mod trust;
pub mod verify;
