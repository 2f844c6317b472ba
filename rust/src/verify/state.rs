//! Digests remembered between runs, so that a verification that was stopped goes on.
//!
//! They lie in the user's own state folder, one file for each verified folder, and hold for a file
//! only while its size, times and first and last 64 KiB are the same. Device and inode numbers
//! change per mount on network file systems, so they are not asked.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::digests::{Algorithm, FileDigest};
use crate::error::{Error, Result};
use crate::io::{AlignedBuf, SourceFile, Stamp, small};

/// Bytes at either end of a file that identify its content.
const EDGE: u64 = 64 << 10;
/// Largest state file that is read.
const MAX_STATE: u64 = 256 << 20;

/// What identifies the content of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    name: String,
    stamp: Stamp,
    edges: String,
}

/// Digests of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// SHA-256.
    pub sha256: Option<String>,
    /// SHA-1 of the git blob.
    pub git: Option<String>,
    /// BLAKE3.
    pub blake3: Option<String>,
}

impl Remembered {
    /// The digest by this algorithm.
    pub fn get(&self, algorithm: Algorithm) -> Option<&String> {
        match algorithm {
            Algorithm::Sha256 => self.sha256.as_ref(),
            Algorithm::GitBlobSha1 => self.git.as_ref(),
            Algorithm::Blake3 => self.blake3.as_ref(),
        }
    }

    /// Whether it agrees with all of `digests`. A disagreement is never believed from memory: the
    /// file is read again.
    pub fn answers(&self, digests: &[FileDigest]) -> bool {
        digests.iter().all(|d| self.get(d.algorithm) == Some(&d.hex))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    key: Key,
    found: Remembered,
    /// Values were judged too, and nothing was found.
    content: bool,
}

/// The memory of one folder.
#[derive(Debug)]
pub struct SavedState {
    known: HashMap<String, Line>,
    file: Mutex<File>,
}

impl Key {
    /// The key of an open file.
    pub fn of(name: &str, file: &SourceFile) -> Result<Self> {
        let stamp = file.stamp();
        let mut buffer = AlignedBuf::default();
        let mut edges = Vec::new();
        let length = EDGE.min(stamp.size);
        for offset in [0, stamp.size - length] {
            let range = file.read(&mut buffer, offset, length as usize)?;
            edges.extend_from_slice(&buffer.bytes()[range]);
        }
        Ok(Self { name: name.to_owned(), stamp, edges: format!("{:032x}", xxh3_128(&edges)) })
    }
}

impl SavedState {
    /// Opens the memory of `folder` under `state`; `fresh` forgets it.
    pub fn open(state: &Path, folder: &Path, fresh: bool) -> Result<Self> {
        let canonical = folder.canonicalize().map_err(|e| Error::io("cannot open", folder, &e))?;
        small::create_folder(state)?;
        let name = xxh3_64(canonical.as_os_str().as_encoded_bytes());
        let path = state.join(format!("verify-{name:016x}.jsonl"));
        if fresh {
            small::remove(&path)?;
        }
        let file = small::open_locked(&path)?;
        let text = small::read(&path, MAX_STATE)?;
        let lines =
            text.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Line>(l).ok());
        let known = lines.map(|line| (line.key.name.clone(), line)).collect();
        Ok(Self { known, file: Mutex::new(file) })
    }

    /// What is remembered of a file, if its key is the same and as much was looked at.
    pub fn find(&self, key: &Key, content: bool) -> Option<Remembered> {
        let line = self.known.get(&key.name)?;
        (line.key == *key && (line.content || !content)).then(|| line.found.clone())
    }

    /// Remembers a file.
    pub fn remember(&self, key: Key, found: &Remembered, content: bool) -> Result<()> {
        let line = Line { key, found: found.clone(), content };
        let mut text = serde_json::to_vec(&line)
            .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&text)
            .map_err(|e| Error::internal(format!("cannot write the verification state: {e}")))
    }
}
