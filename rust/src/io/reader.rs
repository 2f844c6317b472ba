//! Source files: positioned reads into reused buffers, direct or through the page cache.

use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, OFlags, fadvise, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use serde::{Deserialize, Serialize};

use super::{AlignedBuf, Mode, PAGE, Root};
use crate::error::{Error, Kind, Result};

/// Below this size direct I/O costs more than it saves.
const DIRECT_FROM: u64 = 16 << 20;
/// Places of a file that are asked whether they are in the page cache.
const PROBES: u64 = 16;

/// Identity of a source file's content between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes.
    pub size: u64,
    /// Modification time in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Change time in nanoseconds since 1970.
    pub ctime_ns: i64,
    /// Whether the file has several names: making or removing one changes the change time.
    #[serde(default)]
    pub shared: bool,
}

impl From<&Metadata> for Stamp {
    fn from(m: &Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            size: m.len(),
            mtime_ns: nanoseconds(m.mtime(), m.mtime_nsec()),
            ctime_ns: nanoseconds(m.ctime(), m.ctime_nsec()),
            shared: m.nlink() > 1,
        }
    }
}

impl Stamp {
    /// Whether nobody has touched a file that had one of these and has the other. Where it says no,
    /// the content may be the same for all that.
    pub fn is_same(self, other: Self) -> bool {
        (self.size, self.mtime_ns, self.ctime_ns) == (other.size, other.mtime_ns, other.ctime_ns)
    }

    /// Stamp of an open file.
    pub fn of(file: &File) -> std::io::Result<Self> {
        file.metadata().map(|m| Self::from(&m))
    }
}

/// A source file, shared by the reading threads of a task.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    path: PathBuf,
    stamp: Stamp,
    direct: AtomicBool,
    /// The file was not cached when it was opened: what is read of it is dropped from the cache
    /// again, so that a run over terabytes does not evict everything else.
    cold: bool,
}

impl SourceFile {
    /// Opens `name` of `root` for reading.
    pub fn open(root: &Root, name: &str, mode: Mode) -> Result<Self> {
        let path = root.path().join(name);
        let file = root.file(name)?;
        let stamp = Stamp::of(&file).map_err(|e| Error::io("cannot stat", &path, &e))?;
        let cold = stamp.size >= DIRECT_FROM && !is_cached(&file, stamp.size);
        let direct = match mode {
            Mode::Auto => cold,
            Mode::Direct => true,
            Mode::Buffered => false,
        };
        let direct = direct && set_direct(&file, true);
        if !direct {
            let _ = fadvise(&file, 0, None, Advice::Sequential);
        }
        Ok(Self { file, path, stamp, direct: AtomicBool::new(direct), cold })
    }

    /// What the file looked like when it was opened.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// What the file looks like now.
    pub fn current_stamp(&self) -> Result<Stamp> {
        Stamp::of(&self.file).map_err(|e| Error::io("cannot stat", &self.path, &e))
    }

    /// Fails if the file has been changed or replaced in place since it was opened; whether it has
    /// not been touched in any other way.
    pub fn check_unchanged(&self) -> Result<bool> {
        let now = self.current_stamp()?;
        if now.size == self.stamp.size && now.mtime_ns == self.stamp.mtime_ns {
            return Ok(now.is_same(self.stamp));
        }
        Err(Error::new(Kind::Io, "the source changed while it was read")
            .at(&self.path)
            .hint("run the command again once nothing writes to the source"))
    }

    /// Drops the file from the page cache, so that reads come from the disk.
    pub fn drop_cache(&self) {
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    /// Reads `length` bytes at `offset`; they lie in `buffer` at the range returned, behind
    /// whatever direct I/O had to read before them.
    pub fn read(
        &self,
        buffer: &mut AlignedBuf,
        offset: u64,
        length: usize,
    ) -> Result<Range<usize>> {
        let direct = self.direct.load(Ordering::Acquire);
        let lead = if direct { (offset % PAGE) as usize } else { 0 };
        let needed = lead + length;
        let end = if direct { needed.next_multiple_of(PAGE as usize) } else { needed };
        buffer.reserve(end)?;
        let target = &mut buffer.bytes_mut()[..end];
        self.fill(target, offset - lead as u64, needed, direct)?;
        if self.cold && !direct {
            let span = std::num::NonZeroU64::new(length as u64);
            let _ = fadvise(&self.file, offset, span, Advice::DontNeed);
        }
        Ok(lead..needed)
    }

    fn fill(&self, target: &mut [u8], start: u64, needed: usize, mut direct: bool) -> Result<()> {
        let mut done = 0;
        while done < needed {
            match self.file.read_at(&mut target[done..], start + done as u64) {
                Ok(0) => {
                    return Err(Error::new(
                        Kind::Io,
                        format!("the file ended {} bytes early while it was read", needed - done),
                    )
                    .at(&self.path)
                    .hint("it was truncated meanwhile; download it again"));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // File systems differ in what direct I/O they take; buffered always works.
                Err(e) if direct && refuses_direct(&e) => {
                    direct = false;
                    // In this order: whoever reads at any place must not meet the flag any more.
                    set_direct(&self.file, false);
                    self.direct.store(false, Ordering::Release);
                }
                Err(e) => return Err(Error::io("cannot read", &self.path, &e)),
            }
        }
        Ok(())
    }
}

/// Whether an error says that the file system does not take this by direct I/O: some refuse it by a
/// flag of the file, some by size and place, some not before the transfer.
pub(super) fn refuses_direct(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported)
}

/// Switches `O_DIRECT` of an open file; `false` if the file system refuses.
pub(super) fn set_direct(file: &File, on: bool) -> bool {
    let Ok(flags) = fcntl_getfl(file) else { return false };
    fcntl_setfl(file, if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT }).is_ok()
}

/// Whether at least half of a sample of the file's pages is in the page cache.
fn is_cached(file: &File, size: u64) -> bool {
    let mut byte = [0u8; 1];
    let hits = (0..PROBES)
        .filter(|i| {
            let offset = size / PROBES * i;
            let mut slices = [std::io::IoSliceMut::new(&mut byte)];
            match preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
                Ok(n) => n > 0,
                Err(e) => e != Errno::AGAIN,
            }
        })
        .count() as u64;
    hits * 2 >= PROBES
}
