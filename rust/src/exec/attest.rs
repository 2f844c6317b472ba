//! `--verify-source`: digests of the source files in the same pass that converts them.
//!
//! SHA-256 wants a file from front to back, a task reads tensors in the order of its outputs. The
//! bytes that arrive where the digest stands are taken as they are, those behind it are known
//! already, and those ahead of it wait for their turn, as many as [`AHEAD`] allows: norms and
//! routers that an output has before its matrices. What nobody has read when that is full, such as
//! headers, tensors that come later or are left out, is read by the digest itself. A shard whose
//! large tensors keep their order is so read once, but for kilobytes.

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

/// Bytes of a task that may wait for their turn.
const AHEAD: usize = 16 << 20;

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
    /// Bytes that wait, of all files.
    waiting: usize,
    reread: &'a AtomicU64,
}

struct Running {
    name: String,
    size: u64,
    position: u64,
    hash: Sha256,
    /// Bytes that arrived before their turn, by offset. They are not journaled: whoever goes on
    /// from a point reads them again.
    ahead: BTreeMap<u64, Vec<u8>>,
}

impl Running {
    /// Takes what of `bytes`, which lie at `offset`, the digest has not seen; nothing before them is
    /// missing.
    fn take(&mut self, offset: u64, bytes: &[u8]) {
        let known = self.position.saturating_sub(offset).min(bytes.len() as u64);
        let new = &bytes[known as usize..];
        self.hash.update(new);
        self.position += new.len() as u64;
    }

    /// Takes what was waiting for its turn; the bytes that wait no longer.
    fn take_waiting(&mut self) -> usize {
        let mut taken = 0;
        while let Some(first) = self.ahead.first_entry().filter(|e| *e.key() <= self.position) {
            let (offset, bytes) = first.remove_entry();
            self.take(offset, &bytes);
            taken += bytes.len();
        }
        taken
    }
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
            let (hash, ahead) = (Sha256::new(), BTreeMap::new());
            let mut file = Running { name, size, position: 0, hash, ahead };
            let saved = saved.iter().find(|s| s.name == file.name && s.position <= file.size);
            // One that cannot be restored begins anew, which costs reading the file again.
            if let Some((saved, hash)) = saved.and_then(|s| Some((s, load_sha256(&s.sha256).ok()?)))
            {
                (file.position, file.hash) = (saved.position, hash);
            }
            running.insert(number, file);
        }
        let buffer = AlignedBuf::default();
        Ok(Self { sources, known, files: running, buffer, waiting: 0, reread })
    }

    /// Takes bytes that were read at `offset` of a file.
    pub(super) fn feed(&mut self, number: u32, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        if file.position < offset && self.waiting + bytes.len() <= AHEAD {
            self.waiting += bytes.len();
            let replaced = file.ahead.insert(offset, bytes.to_vec());
            self.waiting -= replaced.map_or(0, |old| old.len());
            return Ok(());
        }
        self.catch_up(number, offset)?;
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        file.take(offset, bytes);
        self.waiting -= file.take_waiting();
        Ok(())
    }

    /// Takes or reads what lies before `offset` and has not had its turn.
    fn catch_up(&mut self, number: u32, offset: u64) -> Result<()> {
        let Some(file) = self.files.get_mut(&number) else { return Ok(()) };
        loop {
            self.waiting -= file.take_waiting();
            if file.position >= offset {
                return Ok(());
            }
            let next = file.ahead.keys().next().map_or(offset, |waiting| offset.min(*waiting));
            let (at, length) = (file.position, (next - file.position).min(CHUNK));
            let range = self.sources.read_file(number, at, length as usize, &mut self.buffer)?;
            file.take(at, &self.buffer.bytes()[range]);
            self.reread.fetch_add(length, Ordering::Relaxed);
        }
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
    let mut verified: Vec<Verified> = done.flat_map(|d| d.verified.clone()).collect();
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
