//! A file of lines in the user's own state folder, held by one process at a time.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr};

use super::lock::{Lock, Share, lock};
use super::small;
use crate::error::{Error, Kind, Result};

/// A file that lines are appended to. It ends being held when it is dropped.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    path: PathBuf,
}

impl Ledger {
    /// Opens or creates the file `path`, and reads the first `limit` bytes of it. A link, a pipe or
    /// a device is refused: none of them was made here.
    pub fn open(path: &Path, limit: u64) -> Result<(Self, Vec<u8>)> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        // A pipe would wait for whoever opens its other end.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match retry_on_intr(|| open(path, flags, Mode::RUSR | Mode::WUSR)) {
            Ok(handle) => File::from(handle),
            Err(Errno::LOOP) => return Err(Error::new(Kind::Foreign, "is a link").at(path)),
            Err(e) => return Err(Error::io("cannot open", path, &e.into())),
        };
        let fail = |e: std::io::Error| Error::io("cannot read", path, &e);
        let found = file.metadata().map_err(fail)?;
        if !found.is_file() {
            return Err(Error::new(Kind::Foreign, "is no regular file").at(path));
        }
        if found.nlink() > 1 {
            // The other name is somebody's, perhaps a copy: a file of our own takes this one.
            small::write_durable(path, &small::read(path, limit)?)?;
            return Self::open(path, limit);
        }
        // Some network file systems have no locks: then two may append, each whole lines.
        if lock(&file, Share::Exclusive, path)? == Lock::Busy {
            return Err(Error::new(Kind::Foreign, "another process holds it").at(path));
        }
        let mut text = Vec::new();
        (&file).take(limit).read_to_end(&mut text).map_err(fail)?;
        Ok((Self { file, path: path.to_owned() }, text))
    }

    /// Appends whole lines.
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        self.file.write_all(lines).map_err(|e| Error::io("cannot write", &self.path, &e))
    }

    /// Begins anew with these lines.
    pub fn replace(&mut self, lines: &[u8]) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io("cannot write", &self.path, &e))?;
        self.append(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_of_the_file_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let (copy, path) = (folder.path().join("copy"), folder.path().join("ledger"));
        std::fs::write(&copy, "one\n").unwrap();
        std::fs::hard_link(&copy, &path).unwrap();
        let (mut ledger, text) = Ledger::open(&path, 100).unwrap();
        assert_eq!(text, b"one\n");
        ledger.append(b"two\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&copy).unwrap(), b"one\n");
        std::fs::hard_link(&path, folder.path().join("third")).unwrap();
        assert!(Ledger::open(&path, 3).is_err());
    }
}
