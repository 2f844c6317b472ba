//! What has been done, line by line, so that a run continues where an earlier one stopped.
//!
//! Every worker appends to its own file `.lingconv/journal.I-of-N` of the output folder. A line
//! is the XXH3-64 of a JSON record and the record; a torn last line is cut off when the file is
//! opened again. Records are keyed by the digest of their task, so they stay valid for every plan
//! that holds the same task.
//!
//! Nothing here is believed without a look at the disk: the executor compares parts, outputs and
//! sources with what a record says before it builds on it. A record that cannot be read is passed
//! over, and its task begins anew.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::attest::Verified;
use super::fold::{DoneOutput, SavedFold, TensorReport};
use super::share::Worker;
use super::sources::SourceStamp;
use crate::error::{Error, Result};
use crate::io::entry::remove_emptied;
use crate::io::{PART_SUFFIX, Stamp, small};

/// Folder of a run's own files inside the output folder.
pub const FOLDER: &str = ".lingconv";
/// How the names of journals begin.
const PREFIX: &str = "journal.";
/// What stands between the numbers of a worker.
const BETWEEN: &str = "-of-";
/// Ends the name of the journal that claims files for whoever removes them.
const CLAIMS: &str = "of-claims";
/// Longest line of a journal; a point of 32 ranks has some hundred kilobytes.
const MAX_LINE: u64 = 64 << 20;
/// Bytes of the checksum before a record, and the space behind it.
const SUM: usize = 17;

/// One line of a journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Record {
    Begin(Begin),
    /// Files that are about to be made. Recorded before the first of them, so that whatever has
    /// such a name, or that of its `.part`, is known to be ours.
    Claim(Vec<String>),
    Point(Box<PointRecord>),
    Done(Box<DoneRecord>),
    /// A tensor that is kept unquantised for its NaN or infinity.
    Kept(String),
}

/// First line of every run: whose journal this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Digest of the plan as requested.
    pub plan: String,
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
    /// What each output looked like when it had its name: a later run that wrote the file again
    /// left its record in another journal, and only one of the two still holds.
    pub stamps: Vec<Stamp>,
    /// Source files whose digests were found to be those known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verified: Vec<Verified>,
    /// Error figures, if they were asked for.
    #[serde(default)]
    pub reports: Vec<TensorReport>,
}

impl DoneRecord {
    /// Whether nobody has touched the files since; never if it names none.
    fn stands(&self, output: &Path) -> Result<bool> {
        for (done, stamp) in self.outputs.iter().zip(&self.stamps) {
            let found = small::stamp(&output.join(&done.path))?;
            if !found.is_some_and(|found| found.is_same(*stamp)) {
                return Ok(false);
            }
        }
        Ok(!self.outputs.is_empty() && self.outputs.len() == self.stamps.len())
    }
}

/// All journals of an output folder, read.
#[derive(Debug, Default)]
pub struct State {
    /// Digest of the plan that the journals belong to.
    pub plan: Option<String>,
    /// Complete tasks by digest.
    pub done: HashMap<String, DoneRecord>,
    /// Last point of tasks by digest.
    pub points: HashMap<String, PointRecord>,
    /// Tensors kept for their NaN or infinity.
    pub kept: Vec<String>,
    /// Names that runs of this output gave to files.
    pub claims: HashSet<String>,
    /// Journals of different plans lie in one folder.
    pub mixed: bool,
    /// Journals that hold lines nobody can read: what they said is not known any more.
    pub unreadable: Vec<String>,
}

/// Name of the lock of an output's folder.
pub(super) const LOCK: &str = "lock";
/// Name of the claim of publication, where there are no locks.
pub(super) const FINISH: &str = "finish";
/// Name of the manifest of ranks that are added to.
pub(crate) const EARLIER: &str = "earlier.json";

/// Whether a name is one that journals have; what looks like it, as a copy of one, is somebody's.
fn is_journal(name: &str) -> bool {
    let Some(worker) = name.strip_prefix(PREFIX) else { return false };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = worker.split_once(BETWEEN);
    worker == CLAIMS || numbers.is_some_and(|(index, count)| is_number(index) && is_number(count))
}

/// Removes our own files of the folder for journals that `which` names, and the folder once nothing
/// is in it: what somebody else put there stays.
pub(super) fn remove(output: &Path, which: impl Fn(&str) -> bool) -> Result<()> {
    let folder = folder(output);
    let own = |name: &str| {
        let name = name.strip_suffix(PART_SUFFIX).unwrap_or(name);
        [LOCK, FINISH, EARLIER].contains(&name) || is_journal(name)
    };
    for name in small::list(&folder)?.iter().filter(|name| own(name) && which(name)) {
        small::remove(&folder.join(name))?;
    }
    remove_emptied(output, &format!("{FOLDER}/{LOCK}"))
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
            if is_journal(&name) {
                let read = read_records(&folder(output).join(&name), |r| state.add(r, output))?;
                if !read.sound {
                    state.unreadable.push(name);
                }
            }
        }
        Ok(state)
    }

    /// Whether a run of this output made what stands at `name`, as far as anybody knows: where
    /// journals cannot be read, whatever has the name of an output is taken to be one.
    pub fn is_claimed(&self, name: &str) -> bool {
        let name = name.strip_suffix(PART_SUFFIX).unwrap_or(name);
        !self.unreadable.is_empty() || self.claims.contains(name)
    }

    fn add(&mut self, record: Record, output: &Path) -> Result<()> {
        match record {
            Record::Begin(begin) => {
                self.mixed |= self.plan.as_ref().is_some_and(|p| *p != begin.plan);
                self.plan = Some(begin.plan);
            }
            Record::Claim(names) => self.claims.extend(names),
            Record::Point(point) => {
                self.points.insert(point.task.clone(), *point);
            }
            Record::Done(done) => {
                self.points.remove(&done.task);
                if !self.done.contains_key(&done.task) || done.stands(output)? {
                    self.done.insert(done.task.clone(), *done);
                }
            }
            Record::Kept(tensor) if !self.kept.contains(&tensor) => self.kept.push(tensor),
            Record::Kept(_) => {}
        }
        Ok(())
    }
}

/// What came of reading a journal.
struct Reading {
    /// Bytes up to the last whole line.
    end: u64,
    /// Whether every whole line could be read.
    sound: bool,
}

/// Hands out the records of a journal, line by line.
fn read_records(path: &Path, mut take: impl FnMut(Record) -> Result<()>) -> Result<Reading> {
    let fail = |e: std::io::Error| Error::io("cannot read", path, &e);
    let mut reader = small::reader(path)?;
    let (mut line, mut reading) = (Vec::new(), Reading { end: 0, sound: true });
    loop {
        line.clear();
        let count = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(fail)?;
        if line.pop() != Some(b'\n') {
            // Torn by a crash, or longer than any line of ours.
            reading.sound &= (count as u64) < MAX_LINE;
            return Ok(reading);
        }
        match parse(&line) {
            Some(record) => take(record)?,
            None => reading.sound = false,
        }
        reading.end += count as u64;
    }
}

fn parse(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(SUM)?;
    let sum = std::str::from_utf8(sum.strip_suffix(b" ")?).ok()?;
    let valid = u64::from_str_radix(sum, 16).ok()? == xxh3_64(json);
    valid.then(|| serde_json::from_slice(json).ok()).flatten()
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
        let name = format!("{}{BETWEEN}{}", worker.index, worker.count);
        let journal = Self::open_file(output, &name)?;
        journal.append(&Record::Begin(begin.clone()))?;
        Ok(journal)
    }

    /// A journal that says no more than which files are ours, for whoever is about to remove them.
    pub fn of_claims(output: &Path, names: Vec<String>) -> Result<()> {
        Self::open_file(output, CLAIMS)?.claim(names)
    }

    fn open_file(output: &Path, name: &str) -> Result<Self> {
        small::create_folder(&folder(output))?;
        let path = folder(output).join(format!("{PREFIX}{name}"));
        let file = small::open_locked(&path)?;
        let end = read_records(&path, |_| Ok(()))?.end;
        file.set_len(end).map_err(|e| Error::io("cannot truncate", &path, &e))?;
        small::sync_folder(&folder(output))?;
        Ok(Self { file: Mutex::new(file), path })
    }

    /// Records names that are about to be given to files.
    pub fn claim(&self, names: Vec<String>) -> Result<()> {
        self.append(&Record::Claim(names))
    }

    /// Records a point of a task.
    pub fn point(&self, point: PointRecord) -> Result<()> {
        self.append(&Record::Point(Box::new(point)))
    }

    /// Records a complete task.
    pub fn done(&self, done: DoneRecord) -> Result<()> {
        self.append(&Record::Done(Box::new(done)))
    }

    /// Records a tensor that is kept for its NaN or infinity.
    pub fn kept(&self, tensor: &str) -> Result<()> {
        self.append(&Record::Kept(tensor.to_owned()))
    }

    fn append(&self, record: &Record) -> Result<()> {
        let mut line = vec![b' '; SUM];
        serde_json::to_writer(&mut line, record)
            .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
        let sum = format!("{:016x}", xxh3_64(&line[SUM..]));
        line[..sum.len()].copy_from_slice(sum.as_bytes());
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)
            .and_then(|()| file.sync_data())
            .map_err(|e| Error::io("cannot write the journal", &self.path, &e))
    }
}
