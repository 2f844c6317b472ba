//! Whole small files, folders, locks and free space.
#![allow(clippy::disallowed_methods)]

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};

use super::PART_SUFFIX;
use crate::error::{Error, Kind, Result};

/// Reads a file whole, at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let fail = |e: std::io::Error| Error::io("cannot read", path, &e);
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(format!("larger than the limit of {limit} bytes")).at(path));
    }
    Ok(bytes)
}

/// Size of a regular file, or `None` if there is none.
pub fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|m| m.len())
}

/// Size and modification time in nanoseconds since 1970 of a regular file.
pub fn size_and_mtime(path: &Path) -> Option<(u64, i64)> {
    let metadata = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let stamp = super::Stamp::from(&metadata);
    Some((stamp.size, stamp.mtime_ns))
}

/// `path` with [`PART_SUFFIX`] appended.
pub fn part_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PART_SUFFIX);
    name.into()
}

/// Writes a small file so that it exists whole or not at all, also across a power cut.
pub fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part_path(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
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
    let sync = || File::open(folder)?.sync_all();
    match sync() {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(false),
        Err(e) => Err(Error::io("cannot sync folder", folder, &e)),
    }
}

/// Creates a folder and its parents; each new entry is made durable.
pub fn create_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
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
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
    sync_folder(parent.unwrap_or(Path::new("."))).map(drop)
}

/// Names in a folder, hidden ones included; empty if the folder does not exist.
pub fn list(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("cannot list folder", folder, &e)),
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
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

/// Removes a folder that lingconv made, with everything in it; a missing one is fine.
pub fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("cannot remove", path, &e)),
        _ => Ok(()),
    }
}

/// Removes a folder if nothing is in it.
pub fn remove_empty(path: &Path) {
    let _ = std::fs::remove_dir(path);
}

/// Creates a file that must not exist yet; `false` if it does.
pub fn claim(path: &Path, content: &[u8]) -> Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => {
            let written = file.write_all(content).and_then(|()| file.sync_all());
            written.map_err(|e| Error::io("cannot write", path, &e))?;
            Ok(true)
        }
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(Error::io("cannot create", path, &e)),
    }
}

/// Opens a file for appending under an exclusive lock that ends with the process.
pub fn open_locked(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
        .map_err(|e| Error::io("cannot open", path, &e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => {
            Err(Error::new(Kind::Foreign, "another process is writing this output")
                .at(path)
                .hint("wait for it, stop it, or give each process its share with --worker I/N"))
        }
        // Some network file systems have no locks; O_EXCL on `finish` still protects publication.
        _ => Ok(file),
    }
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
    let absolute = std::path::absolute(path).map_err(|e| Error::io("bad path", path, &e))?;
    let existing = absolute.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let stat = statvfs(existing)
        .map_err(|e| Error::io("cannot ask for free space", existing, &e.into()))?;
    let inodes = if stat.f_files == 0 { u64::MAX } else { stat.f_favail };
    Ok(Free { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), inodes })
}
