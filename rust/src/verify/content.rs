//! The scan of tensor data: NaN and infinity, zeros, scales, per-tensor digests and what experts are
//! like, in one pass.

use std::collections::HashMap;

use super::digests::TensorDigest;
use super::findings::{Category, Finding};
use super::reading::FileJob;
use super::structure::Shard;
use crate::companion;
use crate::dtype::Dtype;
use crate::exec::Progress;
use crate::exec::hash::Xxh3;
use crate::experts::survey::Follower;
use crate::header::Entry;
use crate::numeric::{SCAN_PAGE, load_scales, scan};
use crate::transform::scale_dtype_of;

/// Zeros in a row, inside a tensor that is not all zero, that are worth a note, in bytes.
const ZERO_RUN: u64 = 1 << 20;
/// A tensor of zeros this small or smaller may be meant so: one block of a block format.
const BLOCK_ELEMENTS: u64 = 128 * 128;
/// Scale tensors larger than this are not held in memory for their check.
const MAX_SCALES: u64 = 64 << 20;

/// Follows one file from its first byte to its last.
pub struct FileScan<'a> {
    file: &'a str,
    shard: Option<&'a Shard>,
    /// Digests that tensors should have, by where they begin and end in the file.
    digests: HashMap<(u64, u64), &'a TensorDigest>,
    content: bool,
    experts: Option<Follower<'a>>,
    next: usize,
    current: Option<TensorScan>,
    position: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

struct TensorScan {
    xxh3: Option<Xxh3>,
    /// Bytes of an element that the last chunk cut in two.
    carry: Vec<u8>,
    seen: u64,
    non_finite: Option<u64>,
    any_set: bool,
    zero_run: u64,
    longest_run: (u64, u64),
    scales: Option<Vec<u8>>,
}

impl<'a> FileScan<'a> {
    /// A scan for what `job` asks.
    pub(super) fn new(job: &'a FileJob<'a>, progress: &'a Progress) -> Self {
        Self {
            file: &job.name,
            shard: job.shard,
            digests: job.tensors.iter().map(|d| ((d.begin, d.end), d)).collect(),
            content: job.content,
            experts: job.survey.map(|survey| survey.follow(&job.name, progress)),
            next: 0,
            current: None,
            position: 0,
            findings: Vec::new(),
        }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if let Some(experts) = &mut self.experts {
            experts.update(bytes);
        }
        let Some(shard) = self.shard else { return };
        if !self.content && self.digests.is_empty() {
            return;
        }
        while let Some(entry) = shard.tensors.get(self.next) {
            let (begin, end) = (shard.data_start + entry.begin, shard.data_start + entry.end);
            let skip = begin.saturating_sub(self.position).min(bytes.len() as u64);
            bytes = &bytes[skip as usize..];
            self.position += skip;
            let take = (end - self.position.min(end)).min(bytes.len() as u64) as usize;
            if self.position < begin || (take == 0 && self.position < end) {
                return;
            }
            let wanted = self.digests.contains_key(&(begin, end));
            let content = self.content;
            let scan = self.current.get_or_insert_with(|| TensorScan::new(entry, wanted, content));
            let (own, rest) = bytes.split_at(take);
            scan.update(own, entry.dtype, content);
            self.position += take as u64;
            bytes = rest;
            if self.position < end {
                return;
            }
            self.close(entry, begin, end);
        }
        self.position += bytes.len() as u64;
    }

    fn close(&mut self, entry: &Entry, begin: u64, end: u64) {
        self.next += 1;
        let Some(scan) = self.current.take() else { return };
        let mut fail = |category, message: String| {
            self.findings.push(Finding::failure(category, self.file, message).tensor(&*entry.name));
        };
        if let (Some(hash), Some(expected)) = (&scan.xxh3, self.digests.get(&(begin, end))) {
            let found = hash.digest();
            if found != expected.xxh3 {
                let message =
                    format!("bytes {begin}..{end} have XXH3 {found}, not {}", expected.xxh3);
                fail(Category::Checksum, message);
            }
        }
        if !self.content {
            return;
        }
        if let Some(element) = scan.non_finite {
            fail(Category::NonFinite, format!("NaN or infinity at element {element}"));
        }
        let elements: u64 = entry.shape.iter().product();
        if !scan.any_set && elements > BLOCK_ELEMENTS {
            fail(Category::ZeroTensor, format!("all {elements} elements are zero"));
        }
        if let (Some(bytes), Some(dtype)) = (&scan.scales, scale_dtype_of(entry.dtype))
            && let Err(bad) = load_scales(bytes, dtype)
        {
            let message =
                format!("scale {} is {}; a scale is positive and finite", bad.index, bad.value);
            fail(Category::Scale, message);
        }
        let (length, start) = scan.longest_run;
        if scan.any_set && length >= ZERO_RUN {
            let message =
                format!("{length} bytes of zeros from byte {} of the file", begin + start);
            let note = Finding::note(Category::ZeroRange, self.file, message);
            self.findings.push(note.tensor(&*entry.name));
        }
    }
}

impl TensorScan {
    fn new(entry: &Entry, hashed: bool, content: bool) -> Self {
        let scales = content
            && companion::is_scale(&entry.name)
            && entry.bytes() <= MAX_SCALES
            && scale_dtype_of(entry.dtype).is_some();
        Self {
            xxh3: hashed.then(Xxh3::default),
            carry: Vec::new(),
            seen: 0,
            non_finite: None,
            any_set: false,
            zero_run: 0,
            longest_run: (0, 0),
            scales: scales.then(Vec::new),
        }
    }

    fn update(&mut self, bytes: &[u8], dtype: Dtype, content: bool) {
        if let Some(hash) = &mut self.xxh3 {
            hash.update(bytes);
        }
        if !content {
            return;
        }
        if let Some(scales) = &mut self.scales {
            scales.extend_from_slice(bytes);
        }
        let width = (dtype.bits() / 8).max(1) as usize;
        let mut rest = bytes;
        if !self.carry.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(width - self.carry.len()));
            self.carry.extend_from_slice(head);
            rest = tail;
            if self.carry.len() == width {
                let element = std::mem::take(&mut self.carry);
                self.judge(&element, dtype, width);
            }
        }
        let whole = rest.len() - rest.len() % width;
        for page in rest[..whole].chunks(SCAN_PAGE) {
            self.judge(page, dtype, width);
        }
        self.carry.extend_from_slice(&rest[whole..]);
    }

    fn judge(&mut self, page: &[u8], dtype: Dtype, width: usize) {
        let found = scan(page, dtype);
        if self.non_finite.is_none() {
            self.non_finite = found.non_finite.map(|at| self.seen / width as u64 + at);
        }
        self.seen += page.len() as u64;
        self.any_set |= found.any_set;
        self.zero_run = if found.any_set { 0 } else { self.zero_run + page.len() as u64 };
        if self.zero_run > self.longest_run.0 {
            self.longest_run = (self.zero_run, self.seen - self.zero_run);
        }
    }
}
