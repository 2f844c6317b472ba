//! Digests remembered between runs, so that a verification that was stopped goes on.
//!
//! They lie in the user's own state folder, one file for each verified folder, and hold for a file
//! only while its size, times and first and last 64 KiB are the same. Device and inode numbers
//! change per mount on network file systems, so they are not asked. A disk may lose bytes without
//! any of these changing, so they hold for some days only, and the report says what rests on them.
//!
//! A memory that cannot be had never stops a verification: everything is read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::digests::{Algorithm, FileDigest};
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::io::{AlignedBuf, Ledger, SourceFile, Stamp, small};

/// Bytes at either end of a file that identify its content.
const EDGE: u64 = 64 << 10;
/// Largest state file that is read.
const MAX_STATE: u64 = 32 << 20;

/// Where digests are remembered between runs, and what is believed of them.
#[derive(Debug, Clone)]
pub struct Remembering {
    /// The user's state folder.
    pub folder: PathBuf,
    /// For how long what was read is believed.
    pub lasting: Duration,
    /// Forget what is remembered.
    pub fresh: bool,
}

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
    /// Start of the run that read the file, in seconds since 1970; older versions did not say.
    #[serde(default)]
    at: Option<u64>,
}

/// The memory of one folder.
#[derive(Debug)]
pub struct SavedState<'a> {
    known: HashMap<String, Line>,
    /// Start of this run, in seconds since 1970.
    now: u64,
    lasting: Duration,
    ledger: Mutex<Option<Ledger>>,
    problem: Mutex<Option<String>>,
    progress: &'a Progress,
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

impl<'a> SavedState<'a> {
    /// Opens the memory of `folder`. What prevents that is told, and nothing is remembered.
    pub fn open(options: &Remembering, folder: &Path, progress: &'a Progress) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut state = Self {
            known: HashMap::new(),
            now,
            lasting: options.lasting,
            ledger: Mutex::default(),
            problem: Mutex::default(),
            progress,
        };
        if let Err(error) = state.load(options, folder) {
            state.give_up(&error);
        }
        state
    }

    fn load(&mut self, options: &Remembering, folder: &Path) -> Result<()> {
        let canonical = folder.canonicalize().map_err(|e| Error::io("cannot open", folder, &e))?;
        let place = options.folder.ancestors().find_map(|folder| folder.canonicalize().ok());
        if place.is_some_and(|place| place.starts_with(&canonical)) {
            return Err(Error::usage("lies in the folder that is verified").at(&options.folder));
        }
        small::create_folder(&options.folder)?;
        let name = xxh3_64(canonical.as_os_str().as_encoded_bytes());
        let path = options.folder.join(format!("verify-{name:016x}.jsonl"));
        let (mut ledger, text) = Ledger::open(&path, MAX_STATE)?;
        if !options.fresh {
            match parse(&text) {
                Some(lines) => self.known = lines,
                None => self.tell(format!("begun anew, the file was damaged ({})", path.display())),
            }
        }
        // What was read again, or cannot be believed by anybody, is not kept for ever.
        let kept = self.lines()?;
        if kept.len() != text.len() {
            ledger.replace(&kept)?;
        }
        *self.ledger.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(ledger);
        Ok(())
    }

    fn lines(&self) -> Result<Vec<u8>> {
        let mut names: Vec<&String> = self.known.keys().collect();
        names.sort_unstable();
        let mut text = Vec::new();
        for name in names {
            text.extend(line_of(&self.known[name])?);
        }
        Ok(text)
    }

    /// What is remembered of a file and how long ago it was read, if its key is the same, as much
    /// was looked at, and that was neither too long ago nor, by a clock that moved, in the future.
    pub fn find(&self, key: &Key, content: bool) -> Option<(Remembered, Duration)> {
        let line = self.known.get(&key.name)?;
        let age = Duration::from_secs(self.now.checked_sub(line.at?)?);
        let same = line.key == *key && (line.content || !content);
        (same && age < self.lasting).then(|| (line.found.clone(), age))
    }

    /// Remembers a file.
    pub fn remember(&self, key: Key, found: &Remembered, content: bool) {
        let line = Line { key, found: found.clone(), content, at: Some(self.now) };
        let mut held = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ledger) = held.as_mut() else { return };
        if let Err(error) = line_of(&line).and_then(|text| ledger.append(&text)) {
            // Half a line may be there: whatever followed could not be read.
            *held = None;
            self.give_up(&error);
        }
    }

    /// Why not everything is remembered, if so.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn give_up(&self, error: &Error) {
        self.tell(format!("none of this run: {error}"));
    }

    /// Tells the first thing that is wrong with the memory.
    fn tell(&self, what: String) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if problem.is_none() {
            self.progress.note(format!("memory of what was verified: {what}"));
            *problem = Some(what);
        }
    }
}

/// The last line of each file, or `None` if a line is damaged. The last line may be cut.
fn parse(text: &[u8]) -> Option<HashMap<String, Line>> {
    if text.len() as u64 >= MAX_STATE {
        return None;
    }
    let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    if text.get(whole).is_some_and(|first| *first != b'{') {
        return None;
    }
    let lines = text[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(|line| serde_json::from_slice::<Line>(line).ok());
    let lines: Vec<Line> = lines.collect::<Option<_>>()?;
    let known = lines.into_iter().filter(|line| line.at.is_some());
    Some(known.map(|line| (line.key.name.clone(), line)).collect())
}

fn line_of(line: &Line) -> Result<Vec<u8>> {
    let mut text =
        serde_json::to_vec(line).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
    text.push(b'\n');
    Ok(text)
}
