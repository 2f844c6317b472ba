//! `--verify-source`: digests of the source files in the same pass that converts them.
//!
//! SHA-256 wants a file from front to back, a task reads tensors in the order of its outputs. The
//! bytes that arrive where the digest stands are taken as they are, those behind it are known
//! already, and what nobody has read before a piece arrives, such as headers, tensors that come
//! later or are left out, is read by the digest itself. A shard whose tensors keep their order is
//! so read once, but for kilobytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::executor::Run;
use super::hash::{hex, load_sha256, save_sha256};
use super::journal::State;
use super::sources::{Sources, files_of};
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::io::AlignedBuf;
use crate::plan::Task;

/// Bytes that the digest reads at a time.
const CHUNK: u64 = 4 << 20;

/// What source files are known to be.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// SHA-256 by file name.
    pub sha256: HashMap<String, String>,
    /// Who says so, for messages and the manifest.
    pub origin: String,
}

/// A source file whose digest is the one known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// File name relative to the source folder.
    pub name: String,
    /// SHA-256.
    pub sha256: String,
}

/// A running digest, as it is journaled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSource {
    name: String,
    position: u64,
    sha256: String,
}

/// Digests of the files that one task answers for.
pub(super) struct Attest<'a> {
    sources: &'a Sources<'a>,
    known: &'a Known,
    files: BTreeMap<u32, Running>,
    buffer: AlignedBuf,
    reread: &'a AtomicU64,
}

struct Running {
    name: String,
    size: u64,
    position: u64,
    hash: Sha256,
}

impl<'a> Attest<'a> {
    /// Digests of `files`, going on from `saved` where that names them.
    pub(super) fn new(
        sources: &'a Sources<'a>,
        known: &'a Known,
        files: &[u32],
        saved: &[SavedSource],
        reread: &'a AtomicU64,
    ) -> Result<Self> {
        let mut running = BTreeMap::new();
        for &number in files {
            let (name, size) = sources.name_and_size(number)?;
            let mut file = Running { name, size, position: 0, hash: Sha256::new() };
            if let Some(saved) = saved.iter().find(|s| s.name == file.name) {
                (file.position, file.hash) = (saved.position, load_sha256(&saved.sha256)?);
            }
            running.insert(number, file);
        }
        Ok(Self { sources, known, files: running, buffer: AlignedBuf::default(), reread })
    }

    /// Takes bytes that were read at `offset` of a file.
    pub(super) fn feed(&mut self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        self.catch_up(number, offset)?;
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        let known = file.position.saturating_sub(offset).min(bytes.len() as u64);
        let new = &bytes[known as usize..];
        file.hash.update(new);
        file.position += new.len() as u64;
        Ok(())
    }

    /// Reads what lies before `offset` and has not arrived.
    fn catch_up(&mut self, number: u32, offset: u64) -> Result<()> {
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        while file.position < offset {
            let length = (offset - file.position).min(CHUNK);
            let at = file.position;
            let range = self.sources.read_file(number, at, length as usize, &mut self.buffer)?;
            file.hash.update(&self.buffer.bytes()[range]);
            file.position += length;
            self.reread.fetch_add(length, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The state, to be journaled.
    pub(super) fn save(&self) -> Vec<SavedSource> {
        let save = |file: &Running| SavedSource {
            name: file.name.clone(),
            position: file.position,
            sha256: save_sha256(&file.hash),
        };
        self.files.values().map(save).collect()
    }

    /// Reads the files to their ends and compares. [`Kind::Check`] if one is not what it is known
    /// to be.
    pub(super) fn finish(mut self) -> Result<Vec<Verified>> {
        let ends: Vec<(u32, u64)> = self.files.iter().map(|(n, f)| (*n, f.size)).collect();
        for (number, size) in ends {
            self.catch_up(number, size)?;
        }
        let mut verified = Vec::with_capacity(self.files.len());
        for file in std::mem::take(&mut self.files).into_values() {
            let found = hex(&file.hash.finalize());
            let expected = self.known.sha256.get(&file.name).map_or("", String::as_str);
            if found != expected {
                return Err(self.mismatch(&file.name, &found, expected));
            }
            verified.push(Verified { name: file.name, sha256: found });
        }
        Ok(verified)
    }

    fn mismatch(&self, name: &str, found: &str, expected: &str) -> Error {
        let short = |digest: &str| digest.get(..12).unwrap_or("nothing").to_owned();
        Error::new(
            Kind::Check,
            format!(
                "the source is not what it should be: SHA-256 {}…, {}… by {}",
                short(found),
                short(expected),
                self.known.origin
            ),
        )
        .at(self.sources.path_of(name))
        .hint("download the file again; `lingconv verify` finds all such files")
    }
}

/// For each task of a plan the files that it answers for: those that no task before it reads.
pub(super) fn answers(catalog: &Catalog, tasks: &[Task]) -> Vec<Vec<u32>> {
    let mut seen = HashSet::new();
    let new =
        |task: &Task| files_of(catalog, task).into_iter().filter(|f| seen.insert(*f)).collect();
    tasks.iter().map(new).collect()
}

/// All files whose digests were found to be those known. What was converted before they were asked
/// for is read now.
pub(super) fn verified(run: &Run, state: &State) -> Result<Vec<Verified>> {
    let done = run.digests.iter().filter_map(|d| state.done.get(d));
    let mut verified: Vec<Verified> = done.flat_map(|(d, _)| d.verified.clone()).collect();
    if let Some(known) = &run.options.known {
        for task in &run.plan.tasks {
            let left = |number: &u32| {
                let name = run.catalog.file(*number).0;
                !verified.iter().any(|v| v.name == name)
            };
            let files: Vec<u32> = files_of(run.catalog, task).into_iter().filter(left).collect();
            if files.is_empty() {
                continue;
            }
            let sources = Sources::open(run.catalog, task, run.options.io, run.progress)?;
            let reread = &run.progress.reread;
            verified.extend(Attest::new(&sources, known, &files, &[], reread)?.finish()?);
        }
    }
    verified.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(verified)
}
