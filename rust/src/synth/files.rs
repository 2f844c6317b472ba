//! The one file operation of synthesis that [`crate::io`] lacks.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::small;

/// Writes a file of `head` and a hole of `hole` bytes after it.
pub(super) fn write_sparse(path: &Path, head: &[u8], hole: u64) -> Result<()> {
    let part = small::part_path(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&part)?;
        file.write_all(head)?;
        file.set_len(head.len() as u64 + hole)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("cannot write", &part, &e))?;
    small::publish(&part, path)
}
