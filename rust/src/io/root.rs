//! Files named by untrusted text, opened only if they lie inside one folder.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::small;
use crate::error::{Error, Result};

/// A checkpoint folder; everything is opened through it.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// Canonical folders that a file may lie in after its links are resolved.
    allowed: Vec<PathBuf>,
}

/// Longest path of a file in its folder, as Linux takes them.
const MAX_PATH: usize = 4_096;

/// Refuses names that could mean a place outside the folder, on any system.
pub fn check_name(name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes.len() > MAX_PATH {
        return Err(Error::invalid(format!("a file name of {} bytes", bytes.len())));
    }
    let drive = bytes.len() >= 2 && bytes[1] == b':' && bytes[0].is_ascii_alphabetic();
    let plain = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if drive || !plain || name.contains(['\\', '\0']) {
        return Err(Error::invalid(format!("{name:?} is not the name of a file in this folder"))
            .hint("the index or manifest is hostile or damaged; take it from its source again"));
    }
    Ok(())
}

/// Whether it is the name or the link that is wrong, and not the disk.
fn leads_nowhere(error: &std::io::Error) -> bool {
    let found = error.raw_os_error().map(Errno::from_raw_os_error);
    found.is_some_and(|e| [Errno::LOOP, Errno::NOTDIR, Errno::NAMETOOLONG].contains(&e))
}

impl Root {
    /// Opens a folder. A snapshot of the Hugging Face cache may link into its own `blobs`.
    pub fn open(path: &Path) -> Result<Self> {
        let canonical = path.canonicalize().map_err(|e| {
            if small::is_absent(&e) || leads_nowhere(&e) {
                return Error::invalid(format!("cannot open folder: {e}")).at(path);
            }
            Error::io("cannot open folder", path, &e)
        })?;
        if !small::is_folder(&canonical)? {
            return Err(Error::invalid("not a folder")
                .at(path)
                .hint("name the folder that holds the checkpoint's files"));
        }
        let mut allowed = vec![canonical.clone()];
        let snapshots = canonical.parent().filter(|p| p.ends_with("snapshots"));
        if let Some(blobs) = snapshots.and_then(Path::parent).map(|repo| repo.join("blobs")) {
            match blobs.canonicalize() {
                Ok(found) if found == blobs => allowed.push(blobs),
                Err(e) if !small::is_absent(&e) => {
                    return Err(Error::io("cannot look at", blobs, &e));
                }
                _ => {}
            }
        }
        Ok(Self { path: path.to_path_buf(), allowed })
    }

    /// The folder as the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder without links.
    pub fn canonical(&self) -> &Path {
        &self.allowed[0]
    }

    /// Whether the folder is a snapshot inside a Hugging Face cache.
    pub fn is_hub_snapshot(&self) -> bool {
        self.allowed.len() > 1
    }

    /// Canonical path of `name`, or `None` if there is no such file.
    pub fn resolve(&self, name: &str) -> Result<Option<PathBuf>> {
        check_name(name)?;
        let joined = self.path.join(name);
        let canonical = match joined.canonicalize() {
            Ok(path) => path,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) if leads_nowhere(&e) => {
                return Err(Error::invalid(format!("a link or name that leads nowhere: {e}"))
                    .at(joined)
                    .hint("replace it by the file itself"));
            }
            Err(e) => return Err(Error::io("cannot open", joined, &e)),
        };
        if self.allowed.iter().any(|folder| canonical.starts_with(folder)) {
            return Ok(Some(canonical));
        }
        Err(Error::invalid("a link that leads outside the folder")
            .at(joined)
            .hint("replace the link by the file itself"))
    }

    /// Opens `name` for reading.
    #[allow(clippy::disallowed_methods)]
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.resolve(name)?.ok_or_else(|| {
            Error::invalid("file is missing").at(self.path.join(name)).hint("download it again")
        })?;
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !small::is_file(&path)? {
            return Err(Error::invalid("not a regular file").at(self.path.join(name)));
        }
        File::open(&path).map_err(|e| Error::io("cannot open", self.path.join(name), &e))
    }

    /// Reads a small file whole; `None` if it does not exist, an error above `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match self.resolve(name)? {
            Some(path) if !small::is_file(&path)? => {
                Err(Error::invalid("not a regular file").at(self.path.join(name)))
            }
            Some(path) => small::read(&path, limit).map(Some),
            None => Ok(None),
        }
    }

    /// Names of the files in the folder, sorted; subfolders as deep as `depth`, hidden ones left out.
    pub fn names(&self, depth: usize) -> Result<Vec<String>> {
        let mut names = Vec::new();
        collect(&self.path, "", depth, &mut names)?;
        names.sort_unstable();
        Ok(names)
    }
}

/// Most directory entries that are looked at; a checkpoint has some hundreds.
pub const MAX_ENTRIES: usize = 100_000;

#[allow(clippy::disallowed_methods)]
fn collect(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("cannot list folder", folder, &e);
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        if names.len() == MAX_ENTRIES {
            return Err(Error::too_large(format!("more than {MAX_ENTRIES} files")).at(folder));
        }
        let kind = entry.file_type().map_err(fail)?;
        if !kind.is_dir() {
            names.push(format!("{prefix}{name}"));
        } else if depth > 0 {
            collect(&entry.path(), &format!("{prefix}{name}/"), depth - 1, names)?;
        }
    }
    Ok(())
}
