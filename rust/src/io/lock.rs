//! Locks that end with their process, and whether a path still leads to a file that is held.
//!
//! A lock protects the file that was opened, not its name: between the opening and the locking
//! another process may have given the name to another file. Whoever has locked therefore looks again
//! ([`is_still`]) before touching anything.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::small::is_absent;
use crate::error::{Error, Result};

/// What came of asking for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// It is held until the file is closed.
    Held,
    /// Another process holds it.
    Busy,
    /// The file system has none, as some network file systems.
    Unsupported,
}

/// How a lock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// With others that share it.
    Shared,
    /// With nobody.
    Exclusive,
    /// Given back.
    Unlocked,
}

/// Asks for a lock of `file` without waiting; `path` is for messages.
pub fn lock(file: &File, share: Share, path: &Path) -> Result<Lock> {
    let operation = match share {
        Share::Shared => FlockOperation::NonBlockingLockShared,
        Share::Exclusive => FlockOperation::NonBlockingLockExclusive,
        Share::Unlocked => FlockOperation::Unlock,
    };
    loop {
        return match flock(file, operation) {
            Ok(()) => Ok(Lock::Held),
            Err(Errno::WOULDBLOCK) => Ok(Lock::Busy),
            Err(Errno::INTR) => continue,
            Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                Ok(Lock::Unsupported)
            }
            Err(e) => Err(Error::io("cannot lock", path, &e.into())),
        };
    }
}

/// Whether `path` itself, and no link there, is the open file.
pub fn is_still(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().map_err(|e| Error::io("cannot stat", path, &e))?;
    match path.symlink_metadata() {
        Ok(found) => Ok((found.dev(), found.ino()) == (held.dev(), held.ino())),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(Error::io("cannot stat", path, &e)),
    }
}

/// Opens a file of lingconv's own for reading and appending, made if it is missing; a link is
/// refused.
pub fn open_own(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|e| Error::io("cannot open", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_of_the_file_and_not_of_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let (one, two) = (open_own(&path).unwrap(), open_own(&path).unwrap());
        assert_eq!(lock(&one, Share::Shared, &path).unwrap(), Lock::Held);
        assert_eq!(lock(&two, Share::Shared, &path).unwrap(), Lock::Held);
        assert_eq!(lock(&two, Share::Exclusive, &path).unwrap(), Lock::Busy);
        lock(&one, Share::Unlocked, &path).unwrap();
        assert_eq!(lock(&two, Share::Exclusive, &path).unwrap(), Lock::Held);
        std::fs::remove_file(&path).unwrap();
        let third = open_own(&path).unwrap();
        assert_eq!(lock(&third, Share::Exclusive, &path).unwrap(), Lock::Held);
        assert!(is_still(&third, &path).unwrap() && !is_still(&two, &path).unwrap());
    }

    #[test]
    fn a_link_in_place_of_an_own_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, path) = (folder.path().join("victim"), folder.path().join("lock"));
        std::fs::write(&victim, "mine").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(open_own(&path).is_err());
    }
}
