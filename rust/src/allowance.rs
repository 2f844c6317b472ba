//! Bounds of what headers become, shared by all that are kept beside one another.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::catalog;
use crate::error::{Error, Result};
use crate::header::{MAX_HEADER, MAX_TENSORS, PREFIX};

/// Most bytes of headers, where nobody asks for less.
const MAX_HEADERS: u64 = MAX_HEADER + PREFIX;
/// Most bytes of the headers of a checkpoint that is converted; those of a 4-bit Kimi-K2 have 30 MB.
const MAX_CONVERTED: u64 = 34_000_000;

/// What is left for headers that are kept beside one another: of a checkpoint all of them are.
#[derive(Debug)]
pub struct Allowance {
    bytes: AtomicU64,
    tensors: AtomicUsize,
    most_bytes: u64,
    most_tensors: usize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new(MAX_HEADERS, MAX_TENSORS)
    }
}

impl Allowance {
    /// For the headers of one checkpoint that is converted, or of what becomes of it.
    pub fn of_a_model() -> Self {
        Self::new(MAX_CONVERTED, catalog::MAX_TENSORS)
    }

    /// For headers of so many bytes and tensors.
    fn new(most_bytes: u64, most_tensors: usize) -> Self {
        let (bytes, tensors) = (AtomicU64::default(), AtomicUsize::default());
        Self { bytes, tensors, most_bytes, most_tensors }
    }

    /// Bytes of headers that may still come.
    pub fn left(&self) -> u64 {
        self.most_bytes.saturating_sub(self.bytes.load(Ordering::Relaxed))
    }

    /// Takes the bytes of a header from it; [`Error::too_large`] if it had not so many.
    pub fn take(&self, bytes: u64) -> Result<()> {
        if self.bytes.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= self.most_bytes {
            return Ok(());
        }
        Err(Error::too_large(format!("headers of more than {} bytes together", self.most_bytes)))
    }

    /// Takes more tensors from it; [`Error::too_large`] if it had not so many.
    pub fn take_tensors(&self, count: usize) -> Result<()> {
        if self.tensors.fetch_add(count, Ordering::Relaxed).saturating_add(count)
            <= self.most_tensors
        {
            return Ok(());
        }
        Err(Error::too_large(format!("more than {} tensors", self.most_tensors)))
    }
}
