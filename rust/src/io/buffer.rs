//! Page-aligned byte buffers, as direct I/O wants them.

use super::PAGE;
use crate::error::Result;
use crate::memory;

/// A buffer whose first byte is page-aligned. It only ever grows.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    memory: Box<[u8]>,
    start: usize,
}

impl AlignedBuf {
    /// A buffer of at least `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Result<Self> {
        let mut buffer = Self::default();
        buffer.reserve(capacity)?;
        Ok(buffer)
    }

    /// Grows to at least `capacity` bytes; the content is unspecified afterwards.
    ///
    /// # Errors
    /// [`Kind::Space`](crate::error::Kind::Space) if there is no memory for them.
    pub fn reserve(&mut self, capacity: usize) -> Result<()> {
        if self.memory.len() < self.start + capacity || self.memory.is_empty() {
            let rounded = capacity.next_multiple_of(PAGE as usize);
            // Given back first, so that there is never room for both.
            *self = Self::default();
            self.memory = memory::zeroed(rounded + PAGE as usize)?;
            self.start = self.memory.as_ptr().align_offset(PAGE as usize);
        }
        Ok(())
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    /// All bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}
