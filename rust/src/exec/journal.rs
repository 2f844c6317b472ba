//! What has been done, line by line, so that a run continues where an earlier one stopped.
//!
//! Every worker appends to its own file `.lingconv/journal.I-of-N` of the output folder. A line
//! is the XXH3-64 of a JSON record and the record; a torn last line is cut off when the file is
//! opened again. Records are keyed by the digest of their task, so they stay valid for every plan
//! that holds the same task.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::attest::Verified;
use super::fold::{DoneOutput, SavedFold, TensorReport};
use super::share::Worker;
use super::sources::SourceStamp;
use crate::error::{Error, Result};
use crate::io::small;

/// Folder of a run's own files inside the output folder.
pub const FOLDER: &str = ".lingconv";
/// Longest journal; Ling-1T's has some 10 MB.
const MAX_JOURNAL: u64 = 4 << 30;

/// One line of a journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Begin(Begin),
    Point(PointRecord),
    Done(DoneRecord),
    /// A tensor that is kept unquantised for its NaN or infinity.
    Kept(String),
}

/// First line of every run: whose journal this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Digest of the plan as requested.
    pub plan: String,
    /// Source folder and host: only there do the times of source files mean anything.
    pub place: String,
}

/// A task midway.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PointRecord {
    /// Digest of the task.
    pub task: String,
    /// Source files as they were.
    pub sources: Vec<SourceStamp>,
    /// Where to go on, and all running digests.
    pub fold: SavedFold,
}

/// A task that is complete: its files have their final names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoneRecord {
    /// Digest of the task.
    pub task: String,
    /// Source files as they were.
    pub sources: Vec<SourceStamp>,
    /// What was written.
    pub outputs: Vec<DoneOutput>,
    /// Modification time of each output in nanoseconds since 1970: a later run that wrote the
    /// file again left its record in another journal, and only one of the two still holds.
    #[serde(default)]
    pub mtimes_ns: Vec<i64>,
    /// Source files whose digests were found to be those known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<Verified>,
    /// Error figures, if they were asked for.
    #[serde(default)]
    pub reports: Vec<TensorReport>,
}

impl DoneRecord {
    /// Whether the files are those that were recorded.
    pub fn stands(&self, output: &Path) -> bool {
        let stands = |(done, mtime): (&DoneOutput, &i64)| {
            let found = small::size_and_mtime(&output.join(&done.path));
            found == Some((done.size, *mtime))
        };
        self.outputs.len() == self.mtimes_ns.len()
            && self.outputs.iter().zip(&self.mtimes_ns).all(stands)
    }
}

/// All journals of an output folder, read.
#[derive(Debug, Default)]
pub struct State {
    /// Digest of the plan that the journals belong to.
    pub plan: Option<String>,
    /// Complete tasks by digest, with the place of the run that did them.
    pub done: HashMap<String, (DoneRecord, String)>,
    /// Last point of tasks by digest, with the place of the run that recorded it.
    pub points: HashMap<String, (PointRecord, String)>,
    /// Tensors kept for their NaN or infinity.
    pub kept: Vec<String>,
    /// Journals of different plans lie in one folder.
    pub mixed: bool,
}

/// Path of the folder that holds the journals of `output`.
pub fn folder(output: &Path) -> PathBuf {
    output.join(FOLDER)
}

impl State {
    /// Reads all journals of an output folder; empty if there are none.
    pub fn read(output: &Path) -> Result<Self> {
        let mut state = Self::default();
        for name in small::list(&folder(output))? {
            if name.starts_with("journal.") {
                let bytes = small::read(&folder(output).join(name), MAX_JOURNAL)?;
                state.add(&bytes, output);
            }
        }
        Ok(state)
    }

    fn add(&mut self, bytes: &[u8], output: &Path) {
        let mut place = String::new();
        for (record, _) in (Lines { bytes, position: 0 }) {
            match record {
                Record::Begin(begin) => {
                    self.mixed |= self.plan.as_ref().is_some_and(|p| *p != begin.plan);
                    self.plan = Some(begin.plan);
                    place = begin.place;
                }
                Record::Point(point) => {
                    self.points.insert(point.task.clone(), (point, place.clone()));
                }
                Record::Done(done) => {
                    self.points.remove(&done.task);
                    if done.stands(output) || !self.done.contains_key(&done.task) {
                        self.done.insert(done.task.clone(), (done, place.clone()));
                    }
                }
                Record::Kept(tensor) if !self.kept.contains(&tensor) => self.kept.push(tensor),
                Record::Kept(_) => {}
            }
        }
    }
}

/// Valid records from the start of a journal, each with the position behind it.
struct Lines<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Iterator for Lines<'_> {
    type Item = (Record, usize);
    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|b| *b == b'\n')?;
        let (sum, json) = rest[..end].split_at_checked(17)?;
        let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
        let valid = u64::from_str_radix(sum, 16).ok()? == xxh3_64(json);
        let record = valid.then(|| serde_json::from_slice(json).ok()).flatten()?;
        self.position += end + 1;
        Some((record, self.position))
    }
}

/// A worker's own journal, open for appending and locked against others.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    path: PathBuf,
}

impl Journal {
    /// Opens the journal of `worker`, cuts a torn end off and begins a new run.
    pub fn open(output: &Path, worker: Worker, begin: &Begin) -> Result<Self> {
        small::create_folder(&folder(output))?;
        let path = folder(output).join(format!("journal.{}-of-{}", worker.index, worker.count));
        let file = small::open_locked(&path)?;
        let bytes = small::read(&path, MAX_JOURNAL)?;
        let valid = Lines { bytes: &bytes, position: 0 }.last().map_or(0, |(_, end)| end);
        file.set_len(valid as u64).map_err(|e| Error::io("cannot truncate", &path, &e))?;
        let journal = Self { file: Mutex::new(file), path };
        journal.append(&Record::Begin(begin.clone()))?;
        small::sync_folder(&folder(output))?;
        Ok(journal)
    }

    /// Records a point of a task.
    pub fn point(&self, point: PointRecord) -> Result<()> {
        self.append(&Record::Point(point))
    }

    /// Records a complete task.
    pub fn done(&self, done: DoneRecord) -> Result<()> {
        self.append(&Record::Done(done))
    }

    /// Records a tensor that is kept for its NaN or infinity.
    pub fn kept(&self, tensor: &str) -> Result<()> {
        self.append(&Record::Kept(tensor.to_owned()))
    }

    fn append(&self, record: &Record) -> Result<()> {
        let json = serde_json::to_string(record)
            .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
        let line = format!("{:016x} {json}\n", xxh3_64(json.as_bytes()));
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(|e| Error::io("cannot write the journal", &self.path, &e))
    }
}
