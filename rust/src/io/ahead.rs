//! A file read front to back, the next bytes on their way while these are used.

use std::ops::Range;
use std::sync::mpsc::sync_channel;

use super::{AlignedBuf, SourceFile};
use crate::error::{Error, Result};
use crate::threads;

/// Bytes read at a time.
const CHUNK: u64 = 4 << 20;
/// Chunks in memory: one is used, one is read, one waits.
const BUFFERS: usize = 3;

/// Hands the bytes of `range` to `take`, in their order.
///
/// # Errors
/// Those of reading and of `take`, and [`Kind::Cancelled`](crate::error::Kind::Cancelled) once
/// `stopped` says so.
pub fn read_ahead(
    file: &SourceFile,
    range: Range<u64>,
    stopped: impl Fn() -> bool,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (give_back, free) = sync_channel::<AlignedBuf>(BUFFERS);
        let (full, chunks) = sync_channel(BUFFERS);
        for _ in 0..BUFFERS {
            // There is room for all of them, and `free` lives.
            let _ = give_back.send(AlignedBuf::default());
        }
        threads::spawn(scope, move || {
            let mut at = range.start;
            while at < range.end {
                let Ok(mut buffer) = free.recv() else { return };
                let length = (range.end - at).min(CHUNK);
                let read = file.read(&mut buffer, at, length as usize);
                let failed = read.is_err();
                if full.send(read.map(|range| (buffer, range))).is_err() || failed {
                    return;
                }
                at += length;
            }
        })?;
        for chunk in chunks {
            if stopped() {
                return Err(Error::cancelled());
            }
            let (buffer, range) = chunk?;
            take(&buffer.bytes()[range])?;
            // The reader may have ended already.
            let _ = give_back.send(buffer);
        }
        Ok(())
    })
}
