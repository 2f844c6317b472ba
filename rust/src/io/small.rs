//! Whole small files, folders and free space.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, Metadata, OpenOptions};
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::PART_SUFFIX;
use super::lock::{Lock, Share, is_still, lock, open_own};
use crate::error::{Error, Kind, Result};

/// Longest file of our own that is copied.
const MAX_OWN: u64 = 1 << 30;
/// Bytes of a streamed file that are written at a time.
const STREAM_BUFFER: usize = 1 << 20;

/// Reads a file whole, at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::io("cannot read", path, &e);
    let file = File::open(path).map_err(fail)?;
    let size = file.metadata().map_err(fail)?.len();
    let mut bytes = Vec::new();
    if size <= limit {
        bytes.reserve_exact(size as usize);
        file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    }
    if size.max(bytes.len() as u64) > limit {
        return Err(Error::too_large(format!("more than {limit} bytes")).at(path));
    }
    Ok(bytes)
}

/// A file of lingconv's own, to be read line by line. [`Kind::Foreign`] if it is none.
pub fn reader(path: &Path) -> Result<BufReader<File>> {
    let fail = |e: std::io::Error| Error::io("cannot read", path, &e);
    if !path.symlink_metadata().map_err(fail)?.is_file() {
        return Err(Error::new(Kind::Foreign, "not a regular file")
            .at(path)
            .hint("choose another folder with -o"));
    }
    Ok(BufReader::new(File::open(path).map_err(fail)?))
}

/// Whether an error says that there is nothing. No other says so: what a disk cannot tell just now
/// may well be there.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What is at `path`, links followed; `None` if there is nothing.
pub fn look(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(Error::io("cannot look at", path, &e)),
    }
}

/// Whether a folder is at `path`, links followed.
pub fn is_folder(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_dir()))
}

/// Whether a regular file is at `path`, links followed.
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some_and(|found| found.is_file()))
}

/// Size of a regular file, or `None` if there is none.
pub fn size(path: &Path) -> Result<Option<u64>> {
    Ok(look(path)?.filter(Metadata::is_file).map(|found| found.len()))
}

/// What a file looks like, links followed; `None` if it is missing or no regular file.
pub fn stamp(path: &Path) -> Result<Option<super::Stamp>> {
    Ok(look(path)?.filter(Metadata::is_file).map(|found| super::Stamp::from(&found)))
}

/// `path` without links, as far as it exists.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("bad path", path, &e))?;
    for folder in absolute.ancestors() {
        match folder.canonicalize() {
            Ok(found) => {
                let rest = absolute.strip_prefix(folder).unwrap_or(Path::new(""));
                return Ok(found.join(rest));
            }
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(Error::io("cannot look at", folder, &e)),
        }
    }
    Ok(absolute)
}

/// The nearest folder on the way to `path` that exists, perhaps itself.
pub(super) fn nearest(path: &Path) -> Result<(PathBuf, Metadata)> {
    let absolute = std::path::absolute(path).map_err(|e| Error::io("bad path", path, &e))?;
    for folder in absolute.ancestors() {
        if let Some(found) = look(folder)? {
            return Ok((folder.to_path_buf(), found));
        }
    }
    Err(Error::new(Kind::Io, "the root folder is gone").at(path))
}

/// `path` with [`PART_SUFFIX`] appended.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART_SUFFIX);
    name.into()
}

/// Writes a small file so that it exists whole or not at all, also across a power cut. The `.part`
/// file is a new one: whatever had its name, a link perhaps, is not written to.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    stream_durable(path, |file| file.write_all(bytes))
}

/// As [`write_durable`], for what is not whole in memory: `content` writes it, in pieces of any size.
pub fn stream_durable(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> Result<()> {
    let part = part_path(path);
    remove(&part)?;
    let write = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(&part)?;
        let mut writer = BufWriter::with_capacity(STREAM_BUFFER, file);
        content(&mut writer)?;
        writer.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(|e| Error::io("cannot write", &part, &e))?;
    publish(&part, path)
}

/// Renames a synced file to its final name and makes the rename durable.
pub fn publish(part: &Path, path: &Path) -> Result<()> {
    std::fs::rename(part, path).map_err(|e| Error::io("cannot rename", part, &e))?;
    path.parent().map_or(Ok(()), |folder| sync_folder(folder).map(drop))
}

/// Moves a file; both folders are made durable.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    publish(from, to)?;
    from.parent().map_or(Ok(true), sync_folder).map(drop)
}

/// Makes renames and removals in a folder durable; `false` on file systems that cannot do it.
pub fn sync_folder(folder: &Path) -> Result<bool> {
    // The parent of a bare name.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |e| Error::io("cannot sync folder", folder, &e);
    match File::open(folder).map_err(failed)?.sync_all() {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// Creates a folder and its parents; each new entry is made durable.
pub fn create_folder(folder: &Path) -> Result<()> {
    if is_folder(folder)? {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match std::fs::create_dir(folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(Error::io("cannot create folder", folder, &e));
        }
        _ => {}
    }
    folder.parent().map_or(Ok(true), sync_folder).map(drop)
}

/// Names in a folder, hidden ones included; empty if the folder does not exist.
pub fn list(folder: &Path) -> Result<Vec<String>> {
    let fail = |e: std::io::Error| Error::io("cannot list folder", folder, &e);
    let mut names = Vec::new();
    match std::fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(fail)?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(fail(e)),
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes a file; a missing one is fine.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("cannot remove", path, &e)),
        _ => Ok(()),
    }
}

/// Creates a file that must not exist yet; `false` if it does.
pub fn claim(path: &Path, content: &[u8]) -> Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            let written = file.write_all(content).and_then(|()| file.sync_all());
            written.map_err(|e| {
                // A claim that says nothing of whose it is would stand for ever.
                let _ = std::fs::remove_file(path);
                Error::io("cannot write", path, &e)
            })?;
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("cannot create", path, &e)),
    }
}

/// Opens a file of lingconv's own for appending under an exclusive lock that ends with the process.
/// [`Kind::Foreign`] if another process has it; a file system without locks gives none.
pub fn open_locked(path: &Path) -> Result<File> {
    loop {
        let file = open_own(path)?;
        match lock(&file, Share::Exclusive, path)? {
            Lock::Busy => {
                return Err(Error::new(Kind::Foreign, "another process is writing this output")
                    .at(path)
                    .hint(
                        "wait for it, stop it, or give each process its share with --worker I/N",
                    ));
            }
            Lock::Held | Lock::Unsupported if is_still(&file, path)? => {
                if !has_other_names(&file, path)? {
                    return Ok(file);
                }
                // A link to it is somebody's, perhaps a copy: a file of our own takes the name.
                write_durable(path, &read(path, MAX_OWN)?)?;
            }
            // It was removed meanwhile, by a process that ended.
            Lock::Held | Lock::Unsupported => {}
        }
    }
}

/// Whether a file has more names than the one it was opened by.
pub(super) fn has_other_names(file: &File, path: &Path) -> Result<bool> {
    let found = file.metadata().map_err(|e| Error::io("cannot stat", path, &e))?;
    Ok(found.nlink() > 1)
}

/// What a file system has left.
#[derive(Debug, Clone, Copy)]
pub struct Free {
    /// Bytes an unprivileged user may still write.
    pub bytes: u64,
    /// Files that can still be created; `u64::MAX` where the file system does not count them.
    pub inodes: u64,
}

/// Space left on the file system that holds `path` or its nearest existing parent.
pub fn free_space(path: &Path) -> Result<Free> {
    let (existing, _) = nearest(path)?;
    let stat = statvfs(&existing)
        .map_err(|e| Error::io("cannot ask for free space", existing, &e.into()))?;
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Free { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}
