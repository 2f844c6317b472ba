//! Page-aligned byte buffers, as direct I/O wants them.

use super::PAGE;

/// A buffer whose first byte is page-aligned. It only ever grows.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
}

impl AlignedBuf {
    /// A buffer of at least `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(capacity);
        buffer
    }

    /// Grows to at least `capacity` bytes; the content is unspecified afterwards.
    pub fn reserve(&mut self, capacity: usize) {
        if self.memory.len() < self.start + capacity || self.memory.is_empty() {
            let rounded = capacity.next_multiple_of(PAGE as usize);
            self.memory = vec![0; rounded + PAGE as usize];
            self.start = self.memory.as_ptr().align_offset(PAGE as usize);
        }
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
