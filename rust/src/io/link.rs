//! Outputs that are the source's own files: made in no time, whatever their size.
//!
//! A reflink shares blocks until one side is written to; a hard link is the same file under a second
//! name; a symbolic link is a name of a name. None of them is ever opened for writing under its final
//! name, and only a reflink has a `.part`, which is a file of its own: a hard link gets its name at
//! once, so that no leftover of it can be taken for a half-written output.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions, hard_link};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::ioctl_ficlone;
use rustix::io::{Errno, retry_on_intr};
use serde::{Deserialize, Serialize};

use super::small;
use crate::error::{Error, Result};

/// How files that stay as they are get into the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// Reflinks where the file system has them, else hard links, else copies.
    #[default]
    Auto,
    /// Reflinks or nothing.
    Reflink,
    /// Hard links or nothing.
    Hardlink,
    /// Symbolic links to the source's files.
    Symlink,
    /// Bytes are copied and hashed.
    Copy,
}

/// What a file of the output was made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Linked {
    /// Shares blocks with the source's file.
    Reflink,
    /// Is the source's file.
    Hardlink,
    /// Names the source's file.
    Symlink,
}

/// Makes `path` out of `source`; `None` if it has to be copied.
///
/// # Errors
/// [`Kind::Impossible`](crate::error::Kind::Impossible) if the file system cannot do what was asked
/// for.
pub fn make(source: &Path, path: &Path, link: Link) -> Result<Option<Linked>> {
    if let Some(folder) = path.parent() {
        small::create_folder(folder)?;
    }
    let tries: &[Linked] = match link {
        Link::Auto => &[Linked::Reflink, Linked::Hardlink],
        Link::Reflink => &[Linked::Reflink],
        Link::Hardlink => &[Linked::Hardlink],
        Link::Symlink => &[Linked::Symlink],
        Link::Copy => &[],
    };
    let mut refused = None;
    for linked in tries {
        match linked.make(source, path) {
            Ok(()) => {
                path.parent().map_or(Ok(true), small::sync_folder)?;
                return Ok(Some(*linked));
            }
            Err(e) if cannot(&e) => refused = Some(e),
            Err(e) => return Err(Error::io("cannot link", path, &e)),
        }
    }
    match refused {
        Some(e) if link != Link::Auto => {
            let name = format!("{link:?}").to_lowercase();
            Err(Error::impossible(format!("the file system makes no {name} of this file: {e}"))
                .at(path)
                .hint("leave out --link: what cannot be linked is then copied"))
        }
        _ => Ok(None),
    }
}

/// Whether files of `source` could be linked into `folder`: both lie on one file system, or names
/// are all that is made.
pub fn is_near(source: &Path, folder: &Path, link: Link) -> Result<bool> {
    match link {
        Link::Symlink => Ok(true),
        Link::Copy => Ok(false),
        Link::Auto | Link::Reflink | Link::Hardlink => {
            let (_, existing) = small::nearest(folder)?;
            Ok(small::look(source)?.is_some_and(|found| found.dev() == existing.dev()))
        }
    }
}

/// Whether both names lead to one file.
pub fn is_same_file(one: &Path, other: &Path) -> Result<bool> {
    let identity = |path| small::look(path).map(|found| found.map(|m| (m.dev(), m.ino())));
    let found = identity(one)?;
    Ok(found.is_some() && found == identity(other)?)
}

impl Linked {
    fn make(self, source: &Path, path: &Path) -> std::io::Result<()> {
        match self {
            Self::Reflink => reflink(source, path),
            Self::Hardlink => anew(path, || hard_link(source, path)),
            Self::Symlink => anew(path, || symlink(source, path)),
        }
    }
}

/// Makes a name; one that an interrupted run left is replaced.
fn anew(path: &Path, make: impl Fn() -> std::io::Result<()>) -> std::io::Result<()> {
    match make() {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            std::fs::remove_file(path)?;
            make()
        }
        done => done,
    }
}

fn reflink(source: &Path, path: &Path) -> std::io::Result<()> {
    let part = small::part_path(path);
    let clone = || {
        let from = File::open(source)?;
        let to = OpenOptions::new().write(true).create_new(true).open(&part)?;
        retry_on_intr(|| ioctl_ficlone(&to, &from))?;
        to.sync_all()
    };
    anew(&part, || {
        clone().inspect_err(|e| {
            if e.kind() != ErrorKind::AlreadyExists {
                let _ = std::fs::remove_file(&part);
            }
        })
    })?;
    std::fs::rename(&part, path)
}

/// Whether an error says that this cannot be done here, whatever is tried again.
fn cannot(error: &std::io::Error) -> bool {
    let refusals = [
        Errno::XDEV,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::ACCESS,
        Errno::MLINK,
        Errno::INVAL,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::TXTBSY,
    ];
    refusals.iter().any(|e| Some(e.raw_os_error()) == error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_the_files_they_are_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::write(&source, b"bytes").unwrap();
        for link in [Link::Auto, Link::Hardlink, Link::Symlink] {
            let path = folder.path().join(format!("out/{link:?}"));
            for _ in 0..2 {
                let linked = make(&source, &path, link).unwrap().unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), b"bytes");
                let same = path.metadata().unwrap().ino() == source.metadata().unwrap().ino();
                assert_eq!(same, linked != Linked::Reflink);
                assert!(!small::part_path(&path).exists());
            }
        }
        assert_eq!(make(&source, &folder.path().join("copy"), Link::Copy).unwrap(), None);
        assert!(is_near(&source, &folder.path().join("not/yet"), Link::Auto).unwrap());
    }
}
