//! The source files of one task or tensor, opened once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::identity::{self, Identities};
use super::progress::Progress;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::io::{AlignedBuf, Mode, SourceFile, Stamp};
use crate::numeric::load_scales;
use crate::pieces::{InPieces, Stored};
use crate::plan::{Step, Task};
use crate::transform::Op;

/// A source file and what it looked like when a task read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStamp {
    /// Which file it is.
    pub file: identity::SourceFile,
    /// Size and times.
    pub stamp: Stamp,
}

/// What is known of files that a task read once, without reading them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agreement {
    /// Nobody has touched them.
    Untouched,
    /// They were touched, copied or moved; only their content can tell.
    Doubtful,
    /// They are other files.
    Others,
}

/// Compares files as they were recorded with what they look like now.
pub(super) fn agreement(before: &[SourceStamp], now: &[SourceStamp]) -> Agreement {
    let pairs = || before.iter().zip(now);
    if before.len() != now.len() || pairs().any(|(a, b)| !a.file.agrees(&b.file)) {
        Agreement::Others
    } else if pairs().all(|(a, b)| a.stamp.is_same(b.stamp)) {
        Agreement::Untouched
    } else {
        Agreement::Doubtful
    }
}

/// Open source files by their number in the catalog.
pub(crate) struct Sources<'a> {
    catalog: &'a Catalog,
    files: BTreeMap<u32, SourceFile>,
    progress: &'a Progress,
}

impl<'a> Sources<'a> {
    /// Opens every file that `task` reads.
    pub(super) fn open(
        catalog: &'a Catalog,
        task: &Task,
        mode: Mode,
        progress: &'a Progress,
    ) -> Result<Self> {
        Self::of_files(catalog, files_of(catalog, task), mode, progress)
    }

    /// Opens every file that holds a part of `tensors`.
    pub(crate) fn of_tensors(
        catalog: &'a Catalog,
        tensors: impl Iterator<Item = u32>,
        mode: Mode,
        progress: &'a Progress,
    ) -> Result<Self> {
        let files: BTreeSet<u32> = tensors.flat_map(|t| catalog.files_of(t)).collect();
        Self::of_files(catalog, files.into_iter().collect(), mode, progress)
    }

    fn of_files(
        catalog: &'a Catalog,
        numbers: Vec<u32>,
        mode: Mode,
        progress: &'a Progress,
    ) -> Result<Self> {
        let mut files = BTreeMap::new();
        for number in numbers {
            let (name, stamp) = catalog.file(number);
            let file = SourceFile::open(&catalog.root, name, mode)?;
            if (file.stamp().size, file.stamp().mtime_ns) != (stamp.size, stamp.mtime_ns) {
                return Err(changed(catalog, name));
            }
            files.insert(number, file);
        }
        Ok(Self { catalog, files, progress })
    }

    /// Reads part of a tensor into `buffer`; the bytes lie at the range returned. `scratch` is
    /// used if the tensor lies in pieces.
    pub(crate) fn read(
        &self,
        tensor: u32,
        start: u64,
        length: usize,
        buffer: &mut AlignedBuf,
        scratch: &mut AlignedBuf,
    ) -> Result<Range<usize>> {
        let info = self.catalog.tensor(tensor);
        let read = match &self.catalog.pieces {
            None => self.read_file(info.shard, info.offset + start, length, buffer),
            Some(pieces) => {
                let wanted = start..start + length as u64;
                let pieces = &pieces.tensors[tensor as usize];
                buffer.reserve(length).and_then(|()| {
                    let out = &mut buffer.bytes_mut()[..length];
                    self.put_together(pieces, &wanted, out, scratch).map(|()| 0..length)
                })
            }
        };
        read.map_err(|e| e.tensor(&*info.name))
    }

    pub(super) fn read_file(
        &self,
        number: u32,
        offset: u64,
        length: usize,
        buffer: &mut AlignedBuf,
    ) -> Result<Range<usize>> {
        let file = self.files.get(&number);
        let file = file.ok_or_else(|| Error::internal("a task reads a file it did not open"))?;
        self.progress.read.fetch_add(length as u64, Ordering::Relaxed);
        file.read(buffer, offset, length)
    }

    /// Fills `out` with the bytes `wanted` of a tensor, and compares what is stored twice.
    fn put_together(
        &self,
        tensor: &InPieces,
        wanted: &Range<u64>,
        out: &mut [u8],
        scratch: &mut AlignedBuf,
    ) -> Result<()> {
        let (copies, own): (Vec<_>, Vec<_>) = tensor.pieces.iter().partition(|p| p.copy);
        for piece in own.into_iter().chain(copies) {
            let Some(span) = tensor.span(piece, wanted) else { continue };
            let at = self.read_file(piece.file, span.offset, span.length as usize, scratch)?;
            let read = &mut scratch.bytes_mut()[at];
            let named =
                |e: Error| e.at(self.catalog.root.path().join(self.catalog.file(piece.file).0));
            if piece.stored == Stored::WidenedBf16 {
                narrow(read).map_err(named)?;
            }
            for (to, from) in span.rows(wanted, piece.stored.factor()) {
                let bytes = &read[from..from + to.len()];
                if !piece.copy {
                    out[to].copy_from_slice(bytes);
                } else if out[to] != *bytes {
                    return Err(named(copies_differ()));
                }
            }
        }
        Ok(())
    }

    /// The scales of a decode step, as f32; `None` for other steps.
    pub(super) fn scales(&self, step: &Step) -> Result<Option<Arc<Vec<f32>>>> {
        let Op::Decode { scale, scale_dtype, .. } = step.op else { return Ok(None) };
        let info = self.catalog.tensor(scale);
        let (mut buffer, mut scratch) = (AlignedBuf::default(), AlignedBuf::default());
        let range = self.read(scale, 0, info.bytes as usize, &mut buffer, &mut scratch)?;
        let scales = load_scales(&buffer.bytes()[range], scale_dtype).map_err(|bad| {
            Error::invalid(format!(
                "scale {} is {}; a scale is positive and finite",
                bad.index, bad.value
            ))
            .tensor(&*info.name)
            .at(self.catalog.path_of(scale))
            .hint("the download is damaged: check it with `lingconv verify`")
        })?;
        Ok(Some(Arc::new(scales)))
    }

    /// Name and size of a file of this task.
    pub(super) fn name_and_size(&self, number: u32) -> Result<(String, u64)> {
        let file = self.files.get(&number);
        let file = file.ok_or_else(|| Error::internal("a task verifies a file it did not open"))?;
        Ok((self.catalog.file(number).0.to_owned(), file.stamp().size))
    }

    /// Path of a source file, for messages.
    pub(super) fn path_of(&self, name: &str) -> std::path::PathBuf {
        self.catalog.root.path().join(name)
    }

    /// Fails if the size or a modification time of a file changed since it was opened; whether
    /// nothing else of them did. A change time moves when a link to the file is made, and also when
    /// a file was edited and its modification time set back.
    pub(super) fn check_unchanged(&self) -> Result<bool> {
        let mut untouched = true;
        for file in self.files.values() {
            untouched &= file.check_unchanged()?;
        }
        Ok(untouched)
    }

    /// Whether the run is to stop.
    pub(super) fn stopped(&self) -> bool {
        self.progress.stopped()
    }

    /// Which files these are and what they look like now.
    pub(super) fn stamps(&self, identities: &Identities) -> Result<Vec<SourceStamp>> {
        let stamped = |(number, file): (&u32, &SourceFile)| {
            let stamp = file.current_stamp()?;
            identities.stamped(*number, stamp)
        };
        self.files.iter().map(stamped).collect()
    }
}

fn changed(catalog: &Catalog, name: &str) -> Error {
    Error::new(Kind::Io, "the source changed after its header was read")
        .at(catalog.root.path().join(name))
        .hint("run the command again once nothing writes to the source")
}

/// Undoes the widening of BF16 to F32 in place, in the first half of `bytes`.
fn narrow(bytes: &mut [u8]) -> Result<()> {
    for i in 0..bytes.len() / 4 {
        if bytes[4 * i..4 * i + 2] != [0, 0] {
            return Err(Error::invalid("a value that was BF16 when it was cut is none any more")
                .hint("the files were changed; check them with `lingconv verify`"));
        }
        bytes.copy_within(4 * i + 2..4 * i + 4, 2 * i);
    }
    Ok(())
}

fn copies_differ() -> Error {
    Error::invalid("ranks hold different values of a tensor that they should share")
        .hint("the files were changed; check them with `lingconv verify`")
}

/// Files that a task reads, ascending.
pub(super) fn files_of(catalog: &Catalog, task: &Task) -> Vec<u32> {
    let of_step = |step: &Step| {
        let scale = match step.op {
            Op::Decode { scale, .. } => Some(scale),
            _ => None,
        };
        [Some(step.source), scale].into_iter().flatten()
    };
    let tensors = task.steps.iter().flat_map(of_step);
    let mut files: Vec<u32> = tensors.flat_map(|t| catalog.files_of(t)).collect();
    files.sort_unstable();
    files.dedup();
    files
}
