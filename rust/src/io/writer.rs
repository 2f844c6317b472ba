//! One output file: preallocated as `NAME.part`, written front to back, synced, renamed.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate, ftruncate};
use rustix::io::{Errno, retry_on_intr};

use super::lock::{Lock, Share, is_still, lock};
use super::reader::{refuses_direct, set_direct};
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

/// A `.part` file that this process has open, and holds where the file system has locks.
#[derive(Debug)]
pub struct Part {
    file: File,
    path: PathBuf,
    locked: bool,
}

/// What is found in place of a `.part` file.
#[derive(Debug)]
pub enum Found {
    /// None.
    Nothing,
    /// Another process is writing it.
    Busy,
    /// One that now is held.
    Held(Part),
}

impl Part {
    /// Holds the `.part` file of `path` if there is one. [`Kind::Foreign`] if something else stands
    /// in its place.
    pub fn find(path: &Path) -> Result<Found> {
        let part = small::part_path(path);
        loop {
            match part.symlink_metadata() {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
                Err(e) => return Err(Error::io("cannot stat", &part, &e)),
                // Opened only if it is a file: a pipe would wait for its other end.
                Ok(found) if !found.is_file() => return Err(in_the_way(&part)),
                Ok(_) => {}
            }
            let opened = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
                .open(&part);
            let file = match opened {
                Ok(file) => file,
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
                Err(e) => return Err(Error::io("cannot open", &part, &e)),
            };
            match Self::hold(file, path)? {
                // It went while it was opened.
                Found::Nothing => {}
                found => return Ok(found),
            }
        }
    }

    /// Takes `file`, opened at the `.part` file of `path`; nothing if it is not there any more.
    fn hold(file: File, path: &Path) -> Result<Found> {
        let part = small::part_path(path);
        let locked = match lock(&file, Share::Exclusive, &part)? {
            Lock::Busy => return Ok(Found::Busy),
            Lock::Held => true,
            Lock::Unsupported => false,
        };
        if !is_still(&file, &part)? {
            return Ok(Found::Nothing);
        }
        Ok(Found::Held(Self { file, path: path.to_path_buf(), locked }))
    }

    /// A new file in the place of `old`: whoever still has that one open writes to nobody's file.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "its lock is held until the new file has one"
    )]
    pub fn anew(path: &Path, old: Option<Self>) -> Result<Found> {
        let part = small::part_path(path);
        if let Some(folder) = path.parent() {
            small::create_folder(folder)?;
        }
        if old.is_some() {
            small::remove(&part)?;
        }
        let created = OpenOptions::new().read(true).write(true).create_new(true).open(&part);
        let file = match created {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(Found::Busy),
            Err(e) => return Err(Error::io("cannot create", &part, &e)),
        };
        Ok(match Self::hold(file, path)? {
            Found::Nothing => Found::Busy,
            found => found,
        })
    }

    /// Whether it is this process's alone. Where a file system has no locks somebody may be writing
    /// it, and a file with other names is somebody's as well: what is there must not be written to.
    pub fn is_own(&self) -> Result<bool> {
        Ok(self.locked && !small::has_other_names(&self.file, &small::part_path(&self.path))?)
    }

    /// Bytes of the file.
    pub fn size(&self) -> Result<u64> {
        let size = self.file.metadata().map(|m| m.len());
        size.map_err(|e| Error::io("cannot stat", small::part_path(&self.path), &e))
    }

    /// Removes the file.
    pub fn discard(self) -> Result<()> {
        small::remove(&small::part_path(&self.path))
    }
}

impl PartWriter {
    /// Begins `path`, `size` bytes long, in a file of its own. [`Kind::Foreign`] if another process
    /// is writing it.
    pub fn create(path: &Path, size: u64, mode: Mode, capacity: usize) -> Result<Self> {
        let busy = || {
            Error::new(Kind::Foreign, "another process is writing this file")
                .at(small::part_path(path))
        };
        let old = match Part::find(path)? {
            Found::Nothing => None,
            Found::Held(part) => Some(part),
            Found::Busy => return Err(busy()),
        };
        match Part::anew(path, old)? {
            Found::Held(part) => Self::new(part, size, mode, capacity, 0),
            Found::Busy | Found::Nothing => Err(busy()),
        }
    }

    /// Writes `part`, which will be `size` bytes long, from `position` on: the bytes before it are
    /// in the file.
    pub fn new(part: Part, size: u64, mode: Mode, capacity: usize, position: u64) -> Result<Self> {
        let Part { file, path, .. } = part;
        let part = small::part_path(&path);
        reserve_space(&file, size, &part)?;
        let capacity = capacity.next_multiple_of(PAGE as usize);
        let base = position - position % PAGE;
        let mut writer = Self {
            file,
            path,
            size,
            direct: false,
            buffer: AlignedBuf::with_capacity(capacity)?,
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
        retry_on_intr(|| ftruncate(&self.file, self.size))
            .map_err(|e| Error::io("cannot truncate", &part, &e.into()))?;
        self.file.sync_all().map_err(|e| Error::io("cannot sync", &part, &e))
    }

    /// Gives a complete file its final name. [`Kind::Foreign`] if another process has taken its
    /// place, as can happen where the file system has no locks.
    pub fn publish(self) -> Result<()> {
        let part = self.part();
        if !is_still(&self.file, &part)? {
            return Err(Error::new(Kind::Foreign, "another process has taken this file over")
                .at(part)
                .hint(
                    "let one process at a time write it, each with a --worker share of its own",
                ));
        }
        small::publish(&part, &self.path)
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
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if self.direct && refuses_direct(&e) => {
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
    match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, size)) {
        // Emulating it would write zeros; a file that grows as it is written does as well.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(e) => Err(Error::io("cannot reserve space", part, &e.into())
            .hint("free some space, then run the same command again")),
    }
}

fn in_the_way(part: &Path) -> Error {
    Error::new(Kind::Foreign, "something that is no file lies where an output is written")
        .at(part)
        .hint("move it away, or choose another folder with -o")
}
