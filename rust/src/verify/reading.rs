//! One pass over the bytes of each file for everything that needs them, two files at a time.
//!
//! For each file a thread of its own reads ahead, so that the disk and the hash never wait for one
//! another. One thread takes what they read: two SHA-256 at once cost little more than one.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use sha1::Sha1;
use sha2::Digest;

use super::content::FileScan;
use super::digests::{Algorithm, FileDigest, TensorDigest, git_blob_header};
use super::findings::{Category, Finding};
use super::state::{Key, Remembered, SavedState};
use super::structure::Shard;
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::exec::hash::hex;
use crate::exec::sha256::Stream;
use crate::experts::Survey;
use crate::io::{AlignedBuf, Mode, Root, SourceFile};
use crate::threads;

/// Bytes read at a time: small enough to be hashed out of the cache.
const CHUNK: usize = 1 << 20;
/// Chunks in flight: one read, one hashed, one between them.
const AHEAD: usize = 3;

/// A file to be read, and why.
#[derive(Debug)]
pub(super) struct FileJob<'a> {
    pub name: String,
    pub size: u64,
    /// Digests it should have.
    pub digests: Vec<FileDigest>,
    /// Digests its tensors should have.
    pub tensors: Vec<TensorDigest>,
    /// Its header, where that is sound.
    pub shard: Option<&'a Shard>,
    /// Judge values.
    pub content: bool,
    /// Its SHA-256 is wanted even if there is none to compare with.
    pub sum: bool,
    /// Who measures the experts in it.
    pub survey: Option<&'a Survey>,
}

/// What reading found.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub findings: Vec<Finding>,
    /// Files that were to be read.
    pub asked: usize,
    pub verified: usize,
    pub resumed: usize,
    /// How long ago the first of the resumed files was read.
    pub oldest: Option<Duration>,
    /// What is wrong with the memory.
    pub forgetful: Option<String>,
    pub bytes: u64,
    /// SHA-256 of each file that was read or remembered.
    pub sums: Vec<(String, String)>,
}

impl Reading {
    pub(super) fn merge(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.verified += other.verified;
        self.resumed += other.resumed;
        self.oldest = self.oldest.max(other.oldest);
        self.bytes += other.bytes;
        self.sums.extend(other.sums);
    }
}

/// The digests of a file that somebody asked for.
#[derive(Default)]
struct Hashes {
    sha256: Option<Stream>,
    git: Option<Sha1>,
    blake3: Option<Box<blake3::Hasher>>,
}

impl Hashes {
    fn new(job: &FileJob) -> Self {
        let sha256 = job.sum.then(Stream::default);
        let mut hashes = Self { sha256, ..Self::default() };
        for digest in &job.digests {
            match digest.algorithm {
                Algorithm::Sha256 => hashes.sha256 = Some(Stream::default()),
                Algorithm::GitBlobSha1 => {
                    hashes.git = Some(Sha1::new_with_prefix(git_blob_header(job.size)));
                }
                Algorithm::Blake3 => hashes.blake3 = Some(Box::default()),
            }
        }
        hashes
    }

    /// Takes bytes for all but SHA-256, which [`Lane::step`] makes for two files at once.
    fn update_others(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.git {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.blake3 {
            hash.update(bytes);
        }
    }

    fn finish(self) -> Remembered {
        Remembered {
            sha256: self.sha256.map(|h| hex(&h.finish())),
            git: self.git.map(|h| hex(&h.finalize())),
            blake3: self.blake3.map(|h| h.finalize().to_hex().to_string()),
        }
    }
}

/// What all files of a run have in common.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub root: &'a Root,
    pub io: Mode,
    pub saved: Option<&'a SavedState<'a>>,
    pub progress: &'a Progress,
}

/// Reads the files that `next` hands out, two at a time, until there are no more.
pub(super) fn read_files<'j>(
    pass: Pass,
    next: impl Fn() -> Option<&'j FileJob<'j>>,
) -> Result<Reading> {
    let mut reading = Reading::default();
    std::thread::scope(|scope| {
        let mut lanes: [Option<Lane>; 2] = [None, None];
        loop {
            for lane in lanes.iter_mut().filter(|lane| lane.is_none()) {
                *lane = open_next(pass, scope, &next, &mut reading)?;
            }
            if lanes.iter().all(Option::is_none) {
                return if pass.progress.stopped() { Err(Error::cancelled()) } else { Ok(()) };
            }
            Lane::step(&mut lanes, pass.progress);
            for lane in &mut lanes {
                if let Some(ended) = lane.take_if(|lane| lane.chunk.is_none()) {
                    reading.merge(ended.finish(pass)?);
                }
            }
        }
    })?;
    Ok(reading)
}

/// Opens the next file of which an earlier run does not remember all that is asked.
fn open_next<'s, 'j: 's>(
    pass: Pass<'s>,
    scope: &'s Scope<'s, '_>,
    next: &impl Fn() -> Option<&'j FileJob<'j>>,
    reading: &mut Reading,
) -> Result<Option<Lane<'s, 'j>>> {
    while let Some(job) = next().filter(|_| !pass.progress.stopped()) {
        let file = match SourceFile::open(pass.root, &job.name, pass.io) {
            Ok(file) => file,
            Err(error) => {
                let message = error.about_file()?.message;
                let finding = Finding::failure(Category::Unreadable, &job.name, message);
                reading.findings.push(finding);
                continue;
            }
        };
        // What cannot be read will be found when the file is.
        let key = pass.saved.and_then(|_| Key::of(&job.name, &file).ok());
        let known = pass.saved.zip(key.as_ref()).and_then(|(s, k)| s.find(k, job.content));
        let answers = |k: &Remembered| {
            // What experts are like is not remembered.
            k.answers(&job.digests) && (k.sha256.is_some() || !job.sum) && job.survey.is_none()
        };
        if let Some((known, age)) = known.filter(|(known, _)| answers(known)) {
            pass.progress.add_resumed(job.size);
            reading.resumed += 1;
            reading.oldest = reading.oldest.max(Some(age));
            compare(job, &known, reading, false);
            continue;
        }
        return Lane::open(pass, scope, job, file, key).map(Some);
    }
    Ok(None)
}

/// Bytes of a file, as its reader hands them over.
type Chunk = (AlignedBuf, Range<usize>);

/// A file that is being read.
struct Lane<'s, 'j> {
    job: &'j FileJob<'j>,
    key: Option<Key>,
    hashes: Hashes,
    scan: FileScan<'s>,
    full: Receiver<Chunk>,
    free: SyncSender<AlignedBuf>,
    /// `None` at the end of the file, or of reading it.
    chunk: Option<Chunk>,
    reader: ScopedJoinHandle<'s, Result<()>>,
}

impl<'s, 'j: 's> Lane<'s, 'j> {
    fn open(
        pass: Pass<'s>,
        scope: &'s Scope<'s, '_>,
        job: &'j FileJob<'j>,
        file: SourceFile,
        key: Option<Key>,
    ) -> Result<Self> {
        let (full_in, full) = sync_channel(AHEAD);
        let (free, free_out) = sync_channel(AHEAD);
        for _ in 0..AHEAD {
            let _ = free.send(AlignedBuf::default());
        }
        pass.progress.begin(&job.name);
        let (size, progress) = (job.size, pass.progress);
        let read = move || read_ahead(&file, size, progress, &free_out, &full_in);
        let reader = threads::spawn(scope, read)?;
        let scan = FileScan::new(job, pass.progress);
        Ok(Self { job, key, hashes: Hashes::new(job), scan, full, free, chunk: None, reader })
    }

    /// Waits for the next bytes of each file, and takes them.
    fn step(lanes: &mut [Option<Self>; 2], progress: &Progress) {
        for lane in lanes.iter_mut().flatten() {
            lane.chunk = lane.full.recv().ok();
        }
        let mut streams = lanes.iter_mut().flatten().filter_map(|lane| {
            let (buffer, range) = lane.chunk.as_ref()?;
            Some((lane.hashes.sha256.as_mut()?, &buffer.bytes()[range.clone()]))
        });
        match (streams.next(), streams.next()) {
            (Some(one), Some(other)) => Stream::update_two(one, other),
            (Some((one, bytes)), None) => one.update(bytes),
            _ => {}
        }
        for lane in lanes.iter_mut().flatten() {
            let Some((buffer, range)) = &mut lane.chunk else { continue };
            let bytes = &buffer.bytes()[range.clone()];
            lane.hashes.update_others(bytes);
            lane.scan.update(bytes);
            progress.add_written(bytes.len() as u64);
            // The reader may have ended already.
            let _ = lane.free.send(std::mem::take(buffer));
        }
    }

    fn finish(mut self, pass: Pass) -> Result<Reading> {
        let mut reading = Reading::default();
        pass.progress.end(&self.job.name);
        let read = self.reader.join();
        match read.unwrap_or_else(|_| Err(Error::internal("a reading thread panicked"))) {
            Err(error) => {
                let message = error.about_file()?.message;
                let finding = Finding::failure(Category::Unreadable, &self.job.name, message);
                reading.findings.push(finding);
                return Ok(reading);
            }
            Ok(()) => reading.bytes = self.job.size,
        }
        let found = self.hashes.finish();
        let clean = self.scan.findings.is_empty();
        let tensor_named = self.scan.findings.iter().any(|f| f.category == Category::Checksum);
        reading.findings.append(&mut self.scan.findings);
        compare(self.job, &found, &mut reading, tensor_named);
        if let (Some(saved), Some(key), true) = (pass.saved, self.key, clean) {
            saved.remember(key, &found, self.job.content);
        }
        Ok(reading)
    }
}

/// Compares the digests of a file with those it should have. `tensor_named`: a tensor of it is
/// known to be wrong.
pub(super) fn compare(
    job: &FileJob,
    found: &Remembered,
    reading: &mut Reading,
    tensor_named: bool,
) {
    reading.sums.extend(found.sha256.iter().map(|sum| (job.name.clone(), sum.clone())));
    let wrong = job.digests.iter().find(|d| found.get(d.algorithm) != Some(&d.hex));
    match wrong {
        None if job.digests.is_empty() => {}
        None => reading.verified += 1,
        // The tensor's own finding says more.
        Some(_) if tensor_named => {}
        Some(digest) => {
            let found = found.get(digest.algorithm).map_or("nothing", String::as_str);
            let message = format!("{} is {found}, should be {}", digest.algorithm, digest.hex);
            reading.findings.push(Finding::failure(Category::Checksum, &job.name, message));
        }
    }
}

/// Reads `file` from front to back into buffers that come back from whoever takes them.
fn read_ahead(
    file: &SourceFile,
    size: u64,
    progress: &Progress,
    free: &Receiver<AlignedBuf>,
    full: &SyncSender<Chunk>,
) -> Result<()> {
    let mut offset = 0;
    while offset < size {
        if progress.stopped() {
            return Err(Error::cancelled());
        }
        let Ok(mut buffer) = free.recv() else { return Ok(()) };
        let length = (size - offset).min(CHUNK as u64) as usize;
        let range = file.read(&mut buffer, offset, length)?;
        progress.read.fetch_add(length as u64, Ordering::Relaxed);
        offset += length as u64;
        if full.send((buffer, range)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}
