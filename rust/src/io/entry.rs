//! A name inside a folder, looked at and removed without following a link on the way to it.
#![allow(clippy::disallowed_methods)]

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, openat, statat, unlinkat};
use rustix::io::Errno;

use super::root::check_name;
use super::small::is_absent;
use crate::error::{Error, Result};

/// What stands at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A symbolic link, wherever it leads.
    Link,
    /// A folder, device, pipe or socket.
    Other,
}

/// A name of a folder that exists, with every folder on the way to it held open.
#[derive(Debug)]
pub struct Entry {
    folder: OwnedFd,
    leaf: String,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a regular file.
    pub size: u64,
}

impl Entry {
    /// Looks at `name` of `root`; `None` if there is nothing, or a link on the way to it.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::error::Kind::Invalid) for a name that could lead out of the folder.
    pub fn find(root: &Path, name: &str) -> Result<Option<Self>> {
        check_name(name)?;
        let fail = |e: Errno| Error::io("cannot look at", root.join(name), &e.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let absent = |e: &Errno| [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].contains(e);
        let mut folder = match open(root, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let (folders, leaf) = name.rsplit_once('/').unwrap_or(("", name));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            folder = match openat(&folder, part, flags | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(inner) => inner,
                Err(e) if absent(&e) => return Ok(None),
                Err(e) => return Err(fail(e)),
            };
        }
        let stat = match statat(&folder, leaf, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(e) if absent(&e) => return Ok(None),
            Err(e) => return Err(fail(e)),
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Link,
            _ => EntryKind::Other,
        };
        Ok(Some(Self { folder, leaf: leaf.to_owned(), kind, size: stat.st_size as u64 }))
    }

    /// Removes the name; a link goes, and what it leads to stays.
    pub fn remove(self, root: &Path) -> Result<()> {
        match unlinkat(&self.folder, &*self.leaf, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(Error::io("cannot remove", root.join(self.leaf), &e.into())),
        }
    }
}

/// Removes the folders that lead to `name` of `root` if nothing is in them; never through a link.
pub fn remove_emptied(root: &Path, name: &str) -> Result<()> {
    let mut rest = name;
    while let Some((folders, _)) = rest.rsplit_once('/') {
        let Some(entry) = Entry::find(root, folders)? else { return Ok(()) };
        match unlinkat(&entry.folder, &*entry.leaf, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => rest = folders,
            // Something else is in it or mounted there, or a link or a file has its name.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) => return Ok(()),
            Err(e) => return Err(Error::io("cannot remove", root.join(folders), &e.into())),
        }
    }
    Ok(())
}

/// Whether anything, a link that leads nowhere included, stands at `path`.
pub fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if is_absent(&e) => Ok(false),
        Err(e) => Err(Error::io("cannot look at", path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::io::small;

    #[test]
    fn nothing_is_found_or_removed_behind_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (root, home) = (folder.path().join("out"), folder.path().join("home"));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("thesis"), "years").unwrap();
        std::fs::write(root.join("a/b/file"), "bytes").unwrap();
        symlink(&home, root.join("sub")).unwrap();
        symlink(home.join("thesis"), root.join("link")).unwrap();
        assert!(Entry::find(&root, "sub/thesis").unwrap().is_none());
        assert!(Entry::find(&root, "../home/thesis").is_err());
        let link = Entry::find(&root, "link").unwrap().unwrap();
        assert_eq!(link.kind, EntryKind::Link);
        link.remove(&root).unwrap();
        let file = Entry::find(&root, "a/b/file").unwrap().unwrap();
        assert_eq!((file.kind, file.size), (EntryKind::File, 5));
        file.remove(&root).unwrap();
        remove_emptied(&root, "a/b/file").unwrap();
        remove_emptied(&root, "sub/thesis").unwrap();
        assert!(!root.join("a").exists() && root.join("sub").exists());
        assert_eq!(std::fs::read(home.join("thesis")).unwrap(), b"years");
    }

    #[test]
    fn only_what_is_surely_not_there_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "bytes").unwrap();
        for (path, expected) in [(file.clone(), true), (file.join("below"), false)] {
            assert_eq!(exists(&path).unwrap(), expected);
            assert_eq!(small::look(&path).unwrap().is_some(), expected);
        }
        // No name can be so long, but the system does not answer that nothing has it.
        let unknown = folder.path().join("long".repeat(100));
        assert!(exists(&unknown).is_err() && small::size(&unknown).is_err());
        assert!(small::stamp(&unknown).is_err() && small::list(&unknown).is_err());
    }
}
