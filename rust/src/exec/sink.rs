//! Where the bytes of an output go: to the disk, or to whoever compares them with it.

use crate::error::Result;
use crate::io::PartWriter;

/// Takes an output from front to back.
pub trait Sink: Send {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// Whatever ends the task.
    fn take(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes what it has taken durable, before a point of the journal says so.
    ///
    /// # Errors
    /// Whatever ends the task.
    fn sync_point(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Sink for PartWriter {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    fn sync_point(&mut self) -> Result<()> {
        Self::sync_point(self)
    }
}

/// An output that nobody wants is dropped.
impl<S: Sink> Sink for Option<S> {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.as_mut().map_or(Ok(()), |sink| sink.take(bytes))
    }

    fn sync_point(&mut self) -> Result<()> {
        self.as_mut().map_or(Ok(()), Sink::sync_point)
    }
}
