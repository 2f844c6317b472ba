//! The in-order part of a task: what must see every output from front to back.
//!
//! Slots are finished in any order; the fold takes them in the order of the plan, feeds each
//! output's SHA-256 and the current tensor's XXH3, inserts scales where their turn comes, and can
//! save its state at any moment.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::attest::SavedSource;
use super::hash::{Digest128, Xxh3, hex, load_sha256, save_sha256};
use super::slot::{Piece, Place, Slot};
use super::window::{Position, Window};
use crate::error::{Error, Result};
use crate::header;
use crate::io::link::Linked;
use crate::io::{AlignedBuf, SourceFile, read_ahead};
use crate::numeric::ErrorStats;
use crate::plan::{OutputFile, Task};

/// Error figures of one source tensor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TensorReport {
    /// Tensor of the catalog.
    pub source: u32,
    /// Its figures.
    pub stats: ErrorStats,
}

/// State of a task between two windows, as it is journaled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedFold {
    /// Where the task goes on.
    pub position: Position,
    /// Per output.
    pub outputs: Vec<SavedOutput>,
    /// Error figures so far.
    #[serde(default)]
    pub reports: Vec<TensorReport>,
    /// Running digests of source files, if they are verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SavedSource>,
}

/// State of one output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedOutput {
    /// Bytes taken so far.
    pub length: u64,
    sha256: String,
    /// Tensor that is being filled.
    pub(super) tensor: usize,
    /// How far it is filled.
    pub(super) tensor_bytes: u64,
    xxh3: Xxh3,
    digests: Vec<Digest128>,
    /// Scales that wait for their tensors, base64.
    pub(super) deferred: BTreeMap<u32, String>,
}

struct OutputFold<'a> {
    file: &'a OutputFile,
    length: u64,
    sha256: Sha256,
    /// Tensor that is being filled, and how far.
    tensor: usize,
    tensor_bytes: u64,
    xxh3: Xxh3,
    digests: Vec<Digest128>,
    deferred: BTreeMap<u32, Vec<u8>>,
}

/// An output that is complete.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DoneOutput {
    /// Path relative to the output folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the file; of a linked file, which nobody read, only if it was known.
    pub sha256: Option<String>,
    /// XXH3-128 of each tensor's bytes, in the order of the file; none of a linked file.
    pub tensors: Vec<Digest128>,
    /// What the file was linked as, if it was not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub linked: Option<Linked>,
}

pub(super) struct Fold<'a> {
    task: &'a Task,
    outputs: Vec<OutputFold<'a>>,
    position: Position,
    reports: Vec<TensorReport>,
}

impl<'a> Fold<'a> {
    /// A task from its beginning; the pieces returned are the headers.
    pub(super) fn new(task: &'a Task) -> Result<(Self, Vec<Piece>)> {
        let mut outputs = Vec::with_capacity(task.outputs.len());
        let mut pieces = Vec::new();
        for (i, file) in task.outputs.iter().enumerate() {
            let bytes = file.header()?;
            let mut output = OutputFold::new(file);
            output.sha256.update(&bytes);
            output.length = bytes.len() as u64;
            pieces.push(Piece { output: i as u32, place: Place::Owned(bytes.into_owned()) });
            output.pass_filled(i as u32, &mut pieces)?;
            outputs.push(output);
        }
        Ok((Self { task, outputs, position: Position::default(), reports: Vec::new() }, pieces))
    }

    /// A task from where `saved` left it.
    pub(super) fn resume(task: &'a Task, saved: SavedFold) -> Result<Self> {
        if saved.outputs.len() != task.outputs.len() {
            return Err(Error::internal("a journaled point has other outputs than its task"));
        }
        let outputs = task.outputs.iter().zip(saved.outputs);
        let outputs = outputs.map(|(file, saved)| saved.load(file)).collect::<Result<_>>()?;
        Ok(Self { task, outputs, position: saved.position, reports: saved.reports })
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn lengths(&self) -> Vec<u64> {
        self.outputs.iter().map(|o| o.length).collect()
    }

    /// Takes the next window in order. Scales whose turn comes are added to the slot's pieces.
    pub(super) fn take(&mut self, window: &Window, slot: &mut Slot) -> Result<()> {
        for deferred in slot.deferred.drain(..) {
            let output = &mut self.outputs[deferred.output as usize];
            output.deferred.entry(deferred.tensor).or_default().extend(deferred.bytes);
        }
        let mut all = Vec::with_capacity(slot.pieces.len() + 1);
        for piece in std::mem::take(&mut slot.pieces) {
            let output = &mut self.outputs[piece.output as usize];
            let at = piece.output;
            output.feed(slot.bytes(&piece.place))?;
            all.push(piece);
            output.pass_filled(at, &mut all)?;
        }
        slot.pieces = all;
        self.take_stats(window, slot);
        self.position = window.next;
        Ok(())
    }

    fn take_stats(&mut self, window: &Window, slot: &mut Slot) {
        let source = self.task.steps[window.step].source;
        for stats in slot.stats.drain(..) {
            match self.reports.last_mut().filter(|r| r.source == source) {
                Some(report) => report.stats.merge(&stats),
                None => self.reports.push(TensorReport { source, stats }),
            }
        }
    }

    /// The state, to be journaled.
    pub(super) fn save(&self) -> SavedFold {
        SavedFold {
            position: self.position,
            outputs: self.outputs.iter().map(OutputFold::save).collect(),
            reports: self.reports.clone(),
            sources: Vec::new(),
        }
    }

    /// The digests of the complete outputs and the error figures.
    pub(super) fn finish(self) -> Result<(Vec<DoneOutput>, Vec<TensorReport>)> {
        let outputs = self.outputs.into_iter().map(OutputFold::finish).collect::<Result<_>>()?;
        Ok((outputs, self.reports))
    }
}

impl<'a> OutputFold<'a> {
    fn new(file: &'a OutputFile) -> Self {
        Self {
            file,
            length: 0,
            sha256: Sha256::new(),
            tensor: 0,
            tensor_bytes: 0,
            xxh3: Xxh3::default(),
            digests: Vec::with_capacity(file.tensors.len()),
            deferred: BTreeMap::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<()> {
        let room = self.file.tensors.get(self.tensor).map_or(0, header::Entry::bytes);
        if self.tensor_bytes + bytes.len() as u64 > room {
            return Err(Error::internal("more bytes than a tensor holds").at(&self.file.path));
        }
        self.sha256.update(bytes);
        self.xxh3.update(bytes);
        self.length += bytes.len() as u64;
        self.tensor_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Closes tensors that are full, and writes what no source holds: the scales that were waiting
    /// for their turn, constants, padding.
    fn pass_filled(&mut self, output: u32, pieces: &mut Vec<Piece>) -> Result<()> {
        while let Some(tensor) = self.file.tensors.get(self.tensor) {
            if let Some(bytes) = self.deferred.remove(&(self.tensor as u32)) {
                self.feed(&bytes)?;
                pieces.push(Piece { output, place: Place::Owned(bytes) });
            }
            if let Some(fill) = self.file.fill_of(self.tensor)
                && self.tensor_bytes + fill.bytes == tensor.bytes()
            {
                let bytes = fill.content();
                self.feed(&bytes)?;
                pieces.push(Piece { output, place: Place::Owned(bytes) });
            }
            if self.tensor_bytes < tensor.bytes() {
                break;
            }
            self.close();
        }
        Ok(())
    }

    /// Ends the current tensor.
    fn close(&mut self) {
        self.digests.push(self.xxh3.digest());
        self.xxh3 = Xxh3::default();
        self.tensor += 1;
        self.tensor_bytes = 0;
    }

    /// Takes bytes of a file that was written, whichever tensors they belong to.
    fn take_written(&mut self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let due = self.file.tensors.get(self.tensor).map_or(u64::MAX, header::Entry::bytes);
            if self.tensor_bytes == due {
                self.close();
            } else if bytes.is_empty() {
                return Ok(());
            } else {
                let (now, rest) =
                    bytes.split_at((due - self.tensor_bytes).min(bytes.len() as u64) as usize);
                self.feed(now)?;
                bytes = rest;
            }
        }
    }

    fn save(&self) -> SavedOutput {
        let deferred = self.deferred.iter().map(|(t, bytes)| (*t, BASE64.encode(bytes)));
        SavedOutput {
            length: self.length,
            sha256: save_sha256(&self.sha256),
            tensor: self.tensor,
            tensor_bytes: self.tensor_bytes,
            xxh3: self.xxh3.clone(),
            digests: self.digests.clone(),
            deferred: deferred.collect(),
        }
    }

    fn finish(self) -> Result<DoneOutput> {
        if self.length != self.file.size || self.tensor != self.file.tensors.len() {
            return Err(Error::internal("an output is not complete").at(&self.file.path));
        }
        Ok(DoneOutput {
            path: self.file.path.clone(),
            size: self.length,
            sha256: Some(hex(&self.sha256.finalize())),
            tensors: self.digests,
            linked: None,
        })
    }
}

/// The state of an output whose first `length` bytes are on the disk, made again of these bytes:
/// what a point of the journal must say, but for scales that wait. `None` if they do not begin as
/// the output does.
///
/// # Errors
/// Those of reading, and [`Kind::Cancelled`](crate::error::Kind::Cancelled).
pub(super) fn recount(
    output: &OutputFile,
    part: &SourceFile,
    length: u64,
    stopped: impl Fn() -> bool,
) -> Result<Option<SavedOutput>> {
    let header = output.header()?;
    let mut buffer = AlignedBuf::default();
    let mut fold = OutputFold::new(output);
    let first = part.read(&mut buffer, 0, header.len())?;
    if length < header.len() as u64 || buffer.bytes()[first] != *header {
        return Ok(None);
    }
    fold.sha256.update(&header);
    fold.length = header.len() as u64;
    fold.take_written(&[])?;
    read_ahead(part, fold.length..length, stopped, |bytes| fold.take_written(bytes))?;
    Ok(Some(fold.save()))
}

impl SavedOutput {
    /// Whether it holds scales that are in no file yet.
    pub fn has_waiting(&self) -> bool {
        !self.deferred.is_empty()
    }

    /// Whether `recounted`, made of the bytes on the disk, is this state but for what waits.
    pub(super) fn is(&self, recounted: &Self) -> bool {
        let waiting = Self { deferred: self.deferred.clone(), ..recounted.clone() };
        *self == waiting
    }

    fn load(self, file: &OutputFile) -> Result<OutputFold<'_>> {
        let decode = |(tensor, text): (u32, String)| {
            let bytes = BASE64.decode(text);
            Ok((tensor, bytes.map_err(|_| Error::internal("damaged scales in the journal"))?))
        };
        Ok(OutputFold {
            file,
            length: self.length,
            sha256: load_sha256(&self.sha256)?,
            tensor: self.tensor,
            tensor_bytes: self.tensor_bytes,
            xxh3: self.xxh3,
            digests: self.digests,
            deferred: self.deferred.into_iter().map(decode).collect::<Result<_>>()?,
        })
    }
}
