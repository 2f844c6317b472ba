//! Which checkpoint a task was made of: more than its headers say.
//!
//! A base model and its fine-tune have equal names, sizes and headers. A source file is therefore
//! known by a sample of its content, taken at the same places wherever it lies, and by the SHA-256
//! that its download left, where there is one. Both are recorded with every task and in the manifest,
//! and compared on any host and path.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::attest::Known;
use super::sources::{SourceStamp, files_of};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::io::{PAGE, Stamp, sample};
use crate::plan::Task;

/// Files up to this size are sampled whole.
const WHOLE: u64 = 4 << 20;
/// Pages that are sampled in a file whose tensors are not looked at.
const SPREAD: u64 = 1024;

/// A source file as the manifest records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Name relative to the source folder.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// XXH3-128 of the sampled pages.
    pub sample: String,
    /// SHA-256 that the download left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl SourceFile {
    /// Whether both can be the same file.
    pub fn agrees(&self, other: &Self) -> bool {
        let known = self.sha256.as_ref().zip(other.sha256.as_ref());
        (&self.name, self.size, &self.sample) == (&other.name, other.size, &other.sample)
            && known.is_none_or(|(one, two)| one == two)
    }
}

/// The identities of a catalog's files, each sampled once.
#[derive(Debug)]
pub struct Identities<'a> {
    catalog: &'a Catalog,
    known: &'a Known,
    samples: Mutex<HashMap<u32, String>>,
}

impl<'a> Identities<'a> {
    /// Nothing is read yet; `known` are the digests that the download left.
    pub fn new(catalog: &'a Catalog, known: &'a Known) -> Self {
        Self { catalog, known, samples: Mutex::default() }
    }

    /// A file by its number in the catalog.
    pub(super) fn of(&self, number: u32) -> Result<SourceFile> {
        let (name, stamp) = self.catalog.file(number);
        let known =
            self.samples.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        let sample = if let Some(sample) = known {
            sample
        } else {
            let taken = sample::take(&self.catalog.root, name, &self.places(number))?;
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            samples.entry(number).or_insert(taken).clone()
        };
        let sha256 = self.known.sha256.get(name).cloned();
        Ok(SourceFile { name: name.to_owned(), size: stamp.size, sample, sha256 })
    }

    pub(super) fn stamped(&self, number: u32, stamp: Stamp) -> Result<SourceStamp> {
        Ok(SourceStamp { file: self.of(number)?, stamp })
    }

    /// What the files that `task` reads look like now, as the catalog saw them.
    pub(crate) fn of_task(&self, task: &Task) -> Result<Vec<SourceStamp>> {
        let files = files_of(self.catalog, task).into_iter();
        files.map(|number| self.stamped(number, self.catalog.file(number).1)).collect()
    }

    /// All files of the source, as the manifest records them.
    ///
    /// # Errors
    /// Those of reading the samples.
    pub fn all(&self) -> Result<Vec<SourceFile>> {
        (0..self.catalog.file_count()).map(|number| self.of(number)).collect()
    }

    /// Files that a manifest records of its source and that this one has not, or the other way
    /// round.
    ///
    /// # Errors
    /// Those of reading the samples.
    pub fn changed(&self, recorded: &[SourceFile]) -> Result<Vec<String>> {
        let mut then: BTreeMap<&str, &SourceFile> =
            recorded.iter().map(|file| (file.name.as_str(), file)).collect();
        let mut changed = Vec::new();
        for now in self.all()? {
            if !then.remove(now.name.as_str()).is_some_and(|then| then.agrees(&now)) {
                changed.push(now.name);
            }
        }
        changed.extend(then.into_keys().map(str::to_owned));
        Ok(changed)
    }

    /// First bytes of the pages to look at: all of a small file, else its ends and the middle of
    /// every tensor, since a fine-tune may have changed a single expert.
    fn places(&self, number: u32) -> Vec<u64> {
        let size = self.catalog.file(number).1.size;
        let last = size.saturating_sub(PAGE);
        let mut places = vec![0, last];
        if size <= WHOLE {
            places.extend((0..size).step_by(PAGE as usize));
        } else if self.catalog.pieces.is_some() {
            places.extend((0..SPREAD).map(|i| last / SPREAD * i));
        } else {
            let shard = &self.catalog.shards[number as usize];
            places.push(shard.data_start);
            let tensors = &self.catalog.tensors[shard.first..shard.first + shard.count];
            places.extend(tensors.iter().map(|t| t.offset + t.bytes.saturating_sub(PAGE) / 2));
        }
        places.sort_unstable();
        places.dedup();
        places
    }
}
