//! A file, read while what it should hold arrives.

use std::collections::BTreeMap;
use std::ops::Range;

use super::content::FileScan;
use super::findings::{Category, Finding};
use super::reading::{FileJob, Reading, compare};
use super::state::Remembered;
use crate::error::Result;
use crate::exec::fold::DoneOutput;
use crate::exec::{Progress, Sink};
use crate::io::{AlignedBuf, Mode, Root, SourceFile};
use crate::plan::OutputFile;

/// Most tensors of one file whose differences are told.
const MAX_NAMED: usize = 20;

/// What differs inside one tensor, or inside the header.
struct Difference {
    /// First byte of the file that differs.
    at: u64,
    found: u8,
    made: u8,
    /// Bytes that differ.
    bytes: u64,
}

/// Takes what a file should hold, and compares it with what it holds.
pub(super) struct Compared<'a> {
    job: &'a FileJob<'a>,
    output: &'a OutputFile,
    /// Why there is none, if there is none.
    file: Result<SourceFile>,
    /// Bytes read at a time.
    chunk: usize,
    buffer: AlignedBuf,
    /// Bytes of the buffer that were not compared yet.
    ready: Range<usize>,
    position: u64,
    scan: FileScan<'a>,
    /// By tensor; `None` for the header.
    differences: BTreeMap<Option<usize>, Difference>,
}

impl<'a> Compared<'a> {
    pub(super) fn open(
        root: &Root,
        output: &'a OutputFile,
        job: &'a FileJob<'a>,
        io: Mode,
        chunk: usize,
        progress: &'a Progress,
    ) -> Self {
        Self {
            job,
            output,
            file: SourceFile::open(root, &job.name, io),
            chunk,
            buffer: AlignedBuf::default(),
            ready: 0..0,
            position: 0,
            scan: FileScan::new(job, progress),
            differences: BTreeMap::new(),
        }
    }

    /// Reads on; `None` at the end of the file, or if it cannot be read.
    fn read(&mut self) -> Option<()> {
        let file = self.file.as_ref().ok()?;
        let left = file.stamp().size.saturating_sub(self.position);
        let length = left.min(self.chunk as u64) as usize;
        match file.read(&mut self.buffer, self.position, length) {
            Ok(range) => self.ready = range,
            Err(error) => {
                self.file = Err(error);
                return None;
            }
        }
        (length > 0).then_some(())
    }

    /// The tensor that a byte of the file belongs to, `None` for the header, and its end.
    fn part_at(&self, position: u64) -> (Option<usize>, u64) {
        let (start, tensors) = (self.output.data_start, &self.output.tensors);
        if position < start {
            return (None, start);
        }
        let tensor = tensors.partition_point(|t| start + t.end <= position);
        (Some(tensor), tensors.get(tensor).map_or(u64::MAX, |t| start + t.end))
    }

    fn note(&mut self, found: Range<usize>, made: &[u8]) {
        let mut from = 0;
        while from < made.len() {
            let at = self.position + from as u64;
            let (part, end) = self.part_at(at);
            let to = made.len().min(from + (end - at).min(usize::MAX as u64) as usize);
            let found = &self.buffer.bytes()[found.clone()][from..to];
            let pairs = || found.iter().zip(&made[from..to]);
            if let Some(first) = pairs().position(|(f, m)| f != m) {
                let bytes = pairs().filter(|(f, m)| f != m).count() as u64;
                let difference = self.differences.entry(part).or_insert(Difference {
                    at: at + first as u64,
                    found: found[first],
                    made: made[from + first],
                    bytes: 0,
                });
                difference.bytes += bytes;
            }
            from = to;
        }
    }

    /// What was found, given what should have been; `origin` says what makes a byte of a tensor.
    pub(super) fn finish(
        self,
        made: DoneOutput,
        origin: &dyn Fn(usize, u64) -> String,
    ) -> Result<Reading> {
        let mut reading = Reading { bytes: self.position, ..Reading::default() };
        let read = self.file.and_then(|file| file.check_unchanged());
        if let Err(error) = read {
            let message = error.about_file()?.message;
            let finding = Finding::failure(Category::Unreadable, &self.job.name, message);
            reading.findings.push(finding);
            return Ok(reading);
        }
        let named = self.differences.iter().take(MAX_NAMED);
        for (part, Difference { at, found, made, bytes }) in named {
            let words = format!("byte {at} is {found:#04x}, should be {made:#04x}; {bytes} differ");
            let finding = |words| Finding::failure(Category::Difference, &self.job.name, words);
            reading.findings.push(match part {
                None => finding(format!("header: {words}")),
                Some(part) => {
                    let tensor = &self.output.tensors[*part];
                    let offset = at - self.output.data_start - tensor.begin;
                    let origin = origin(*part, offset);
                    finding(format!("{words}; byte {offset} of the tensor, made by {origin}"))
                        .tensor(&*tensor.name)
                }
            });
        }
        if let more @ 1.. = self.differences.len().saturating_sub(MAX_NAMED) {
            let words = format!("{more} more tensors differ");
            reading.findings.push(Finding::failure(Category::Difference, &self.job.name, words));
        }
        let mut scanned = self.scan.findings;
        // Where the bytes are not those of the source, a digest says nothing more.
        scanned.retain(|f| f.category != Category::Checksum || self.differences.is_empty());
        let tensor_named = scanned.iter().any(|f| f.category == Category::Checksum);
        reading.findings.append(&mut scanned);
        if self.differences.is_empty() {
            let found = Remembered { sha256: made.sha256, ..Remembered::default() };
            compare(self.job, &found, &mut reading, tensor_named);
            reading.verified += usize::from(self.job.digests.is_empty());
        }
        Ok(reading)
    }
}

impl Sink for Compared<'_> {
    fn take(&mut self, mut made: &[u8]) -> Result<()> {
        while !made.is_empty() {
            if self.ready.is_empty() && self.read().is_none() {
                break;
            }
            let length = made.len().min(self.ready.len());
            let (now, later) = made.split_at(length);
            let found = self.ready.start..self.ready.start + length;
            let bytes = &self.buffer.bytes()[found.clone()];
            self.scan.update(bytes);
            if bytes != now {
                self.note(found, now);
            }
            self.position += length as u64;
            self.ready.start += length;
            made = later;
        }
        Ok(())
    }
}
