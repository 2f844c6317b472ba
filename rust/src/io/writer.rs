//! One output file: preallocated as `NAME.part`, written front to back, synced, renamed.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, ftruncate};
use rustix::io::Errno;

use super::reader::set_direct;
use super::{AlignedBuf, Mode, PAGE, small};
use crate::error::{Error, Kind, Result};

/// Dirty bytes after which writeback is started, so that the final fsync stays short.
const WRITEBACK_EVERY: u64 = 64 << 20;

/// A sequential writer. Direct writes leave from the caller's memory when it happens to be
/// aligned, and through one aligned buffer otherwise.
#[derive(Debug)]
pub struct PartWriter {
    file: File,
    path: PathBuf,
    size: u64,
    direct: bool,
    buffer: AlignedBuf,
    capacity: usize,
    fill: usize,
    /// File offset of the first byte in `buffer`; page-aligned.
    base: u64,
    writeback_at: u64,
}

impl PartWriter {
    /// Starts or continues the file that will become `path`, `size` bytes long, at `position`:
    /// the bytes before it are durable in the `.part` file.
    pub fn open(
        path: &Path,
        size: u64,
        mode: Mode,
        capacity: usize,
        position: u64,
    ) -> Result<Self> {
        let part = small::part_path(path);
        if let Some(folder) = path.parent() {
            small::create_folder(folder)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(|e| Error::io("cannot create", &part, &e))?;
        if let Err(Errno::WOULDBLOCK) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            return Err(Error::new(Kind::Foreign, "another process is writing this file").at(&part));
        }
        if position == 0 {
            ftruncate(&file, 0).map_err(|e| Error::io("cannot truncate", &part, &e.into()))?;
        }
        reserve_space(&file, size, &part)?;
        let capacity = capacity.next_multiple_of(PAGE as usize);
        let base = position - position % PAGE;
        let mut writer = Self {
            file,
            path: path.to_path_buf(),
            size,
            direct: false,
            buffer: AlignedBuf::with_capacity(capacity),
            capacity,
            fill: (position - base) as usize,
            base,
            writeback_at: position + WRITEBACK_EVERY,
        };
        let tail = &mut writer.buffer.bytes_mut()[..writer.fill];
        writer.file.read_exact_at(tail, base).map_err(|e| Error::io("cannot read", &part, &e))?;
        writer.direct = mode != Mode::Buffered && set_direct(&writer.file, true);
        Ok(writer)
    }

    /// Final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes taken so far.
    pub fn position(&self) -> u64 {
        self.base + self.fill as u64
    }

    /// Appends `bytes`.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.position() + bytes.len() as u64 > self.size {
            return Err(Error::internal("more bytes than the plan says").at(&self.path));
        }
        while !bytes.is_empty() {
            if self.fill == 0
                && bytes.len() >= self.capacity
                && bytes.as_ptr().align_offset(PAGE as usize) == 0
            {
                let whole = bytes.len() - bytes.len() % PAGE as usize;
                self.write_at(&bytes[..whole], self.base)?;
                self.base += whole as u64;
                bytes = &bytes[whole..];
                continue;
            }
            let take = bytes.len().min(self.capacity - self.fill);
            self.buffer.bytes_mut()[self.fill..self.fill + take].copy_from_slice(&bytes[..take]);
            self.fill += take;
            bytes = &bytes[take..];
            if self.fill == self.capacity {
                self.flush_pages()?;
            }
        }
        self.start_writeback();
        Ok(())
    }

    /// Makes everything taken so far durable without ending the file.
    pub fn sync_point(&mut self) -> Result<()> {
        self.flush_pages()?;
        self.write_tail()?;
        self.file.sync_data().map_err(|e| Error::io("cannot sync", self.part(), &e))
    }

    /// Completes the file: exact length, fsync. It still has its `.part` name.
    pub fn complete(&mut self) -> Result<()> {
        if self.position() != self.size {
            let (position, size) = (self.position(), self.size);
            return Err(
                Error::internal(format!("{position} of {size} bytes written")).at(&self.path)
            );
        }
        self.flush_pages()?;
        self.write_tail()?;
        let part = self.part();
        ftruncate(&self.file, self.size)
            .map_err(|e| Error::io("cannot truncate", &part, &e.into()))?;
        self.file.sync_all().map_err(|e| Error::io("cannot sync", &part, &e))
    }

    /// Gives a complete file its final name.
    pub fn publish(self) -> Result<()> {
        small::publish(&self.part(), &self.path)
    }

    /// Completes the file and gives it its final name.
    pub fn finish(mut self) -> Result<()> {
        self.complete()?;
        self.publish()
    }

    fn part(&self) -> PathBuf {
        small::part_path(&self.path)
    }

    fn flush_pages(&mut self) -> Result<()> {
        let whole = self.fill - self.fill % PAGE as usize;
        if whole == 0 {
            return Ok(());
        }
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.write_at(&buffer.bytes()[..whole], self.base);
        self.buffer = buffer;
        written?;
        self.buffer.bytes_mut().copy_within(whole..self.fill, 0);
        self.base += whole as u64;
        self.fill -= whole;
        Ok(())
    }

    /// Writes the unfinished page padded with zeros, and keeps it to be written again.
    fn write_tail(&mut self) -> Result<()> {
        if self.fill == 0 {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.bytes_mut()[self.fill..PAGE as usize].fill(0);
        let end = if self.direct { PAGE as usize } else { self.fill };
        let written = self.write_at(&buffer.bytes()[..end], self.base);
        self.buffer = buffer;
        written
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => return Err(Error::new(Kind::Io, "the disk took no bytes").at(self.part())),
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput && self.direct => {
                    self.direct = false;
                    set_direct(&self.file, false);
                }
                Err(e) => {
                    return Err(Error::io("cannot write", self.part(), &e).hint(
                        "free some space or mend the disk, then run the same command again",
                    ));
                }
            }
        }
        Ok(())
    }

    fn start_writeback(&mut self) {
        if self.direct || self.position() < self.writeback_at {
            return;
        }
        self.writeback_at = self.position() + WRITEBACK_EVERY;
        start_writeback(&self.file);
    }
}

/// Asks the kernel to begin writing dirty pages; a hint, so failure does not matter.
///
/// `POSIX_FADV_DONTNEED` starts writeback of the dirty pages it cannot drop yet, which is what
/// `sync_file_range` would be used for, and keeps the output from filling the page cache.
fn start_writeback(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

fn reserve_space(file: &File, size: u64, part: &Path) -> Result<()> {
    if size == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        // Emulating it would write zeros; a file that grows as it is written does as well.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(e) => Err(Error::io("cannot reserve space", part, &e.into())
            .hint("free some space, then run the same command again")),
    }
}
