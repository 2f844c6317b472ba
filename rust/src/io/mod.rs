//! The only place that touches the file system.
//!
//! - [`root`]: names from indexes and manifests become files inside one folder, never outside it.
//! - [`reader`]: sources, read with `pread` into reused aligned buffers, direct or buffered.
//! - [`ahead`]: a whole file, read in a thread of its own.
//! - [`writer`]: outputs, written as `NAME.part` front to back, made durable, then renamed.
//! - [`link`]: outputs that are the source's own files.
//! - [`entry`]: names of a folder, looked at and removed without following links.
//! - [`ledger`]: lines in the user's own state folder.
//! - [`lock`]: locks of files, and whether a name still leads to a file that is held.
//! - [`sample`]: a few pages of a file, for telling it from another of the same size.
//! - [`small`]: whole small files, folders and free space.
//!
//! Sources are opened read-only. There is no `mmap`: a file that shrinks while it is read is an
//! error, not a SIGBUS.

pub mod ahead;
pub mod buffer;
pub mod entry;
pub mod ledger;
pub mod link;
pub mod lock;
pub mod reader;
pub mod root;
pub mod sample;
pub mod small;
pub mod writer;

use std::str::FromStr;

pub use ahead::read_ahead;
pub use buffer::AlignedBuf;
pub use entry::{Entry, EntryKind};
pub use ledger::Ledger;
pub use reader::{SourceFile, Stamp};
pub use root::Root;
pub use writer::{Part, PartWriter};

/// Unit of direct I/O: offsets, lengths and addresses are multiples of this.
pub const PAGE: u64 = 4096;
/// Suffix of a file that is not complete.
pub const PART_SUFFIX: &str = ".part";

/// How bulk data moves; the bytes never depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Direct for large files that are not in the page cache, buffered otherwise.
    #[default]
    Auto,
    /// `O_DIRECT` wherever the file system takes it.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl FromStr for Mode {
    type Err = crate::error::Error;
    fn from_str(text: &str) -> crate::error::Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "direct" => Ok(Self::Direct),
            "buffered" => Ok(Self::Buffered),
            _ => Err(crate::error::Error::usage(format!("unknown I/O mode {text:?}"))),
        }
    }
}
