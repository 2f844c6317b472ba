//! One pass over the bytes of one file for everything that needs them.
//!
//! A thread of its own reads ahead, so that the disk and the hash never wait for one another.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::content::FileScan;
use super::digests::{Algorithm, FileDigest, TensorDigest, git_blob_header};
use super::findings::{Category, Finding};
use super::state::{Key, Remembered, SavedState};
use super::structure::Shard;
use crate::error::{Error, Kind, Result};
use crate::exec::Progress;
use crate::exec::hash::hex;
use crate::io::{AlignedBuf, Mode, Root, SourceFile};

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
}

/// What reading found.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub findings: Vec<Finding>,
    pub verified: usize,
    pub resumed: usize,
    pub bytes: u64,
    /// SHA-256 of each file that was read or remembered.
    pub sums: Vec<(String, String)>,
}

impl Reading {
    pub(super) fn merge(&mut self, other: Self) {
        self.findings.extend(other.findings);
        self.verified += other.verified;
        self.resumed += other.resumed;
        self.bytes += other.bytes;
        self.sums.extend(other.sums);
    }
}

/// The digests of a file that somebody asked for.
#[derive(Default)]
struct Hashes {
    sha256: Option<Sha256>,
    git: Option<Sha1>,
    blake3: Option<Box<blake3::Hasher>>,
}

impl Hashes {
    fn new(job: &FileJob) -> Self {
        let sha256 = job.sum.then(Sha256::new);
        let mut hashes = Self { sha256, ..Self::default() };
        for digest in &job.digests {
            match digest.algorithm {
                Algorithm::Sha256 => hashes.sha256 = Some(Sha256::new()),
                Algorithm::GitBlobSha1 => {
                    hashes.git = Some(Sha1::new_with_prefix(git_blob_header(job.size)));
                }
                Algorithm::Blake3 => hashes.blake3 = Some(Box::default()),
            }
        }
        hashes
    }

    fn update(&mut self, bytes: &[u8]) {
        if let Some(hash) = &mut self.sha256 {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.git {
            hash.update(bytes);
        }
        if let Some(hash) = &mut self.blake3 {
            hash.update(bytes);
        }
    }

    fn finish(self) -> Remembered {
        Remembered {
            sha256: self.sha256.map(|h| hex(&h.finalize())),
            git: self.git.map(|h| hex(&h.finalize())),
            blake3: self.blake3.map(|h| h.finalize().to_hex().to_string()),
        }
    }
}

/// Reads one file, or takes over what an earlier run remembered of it.
pub(super) fn read_file(
    root: &Root,
    job: &FileJob,
    io: Mode,
    saved: Option<&SavedState>,
    progress: &Progress,
) -> Result<Reading> {
    let mut reading = Reading::default();
    let file = match SourceFile::open(root, &job.name, io) {
        Ok(file) => file,
        Err(error) => {
            reading.findings.push(Finding::failure(Category::Unreadable, &job.name, error.message));
            return Ok(reading);
        }
    };
    let key = saved.map(|_| Key::of(&job.name, &file)).transpose()?;
    let known = saved.zip(key.as_ref()).and_then(|(s, k)| s.find(k, job.content));
    if let Some(known) =
        known.filter(|k| k.answers(&job.digests) && (k.sha256.is_some() || !job.sum))
    {
        progress.add_resumed(job.size);
        reading.resumed = 1;
        compare(job, &known, &mut reading, false);
        return Ok(reading);
    }
    progress.begin(&job.name);
    let mut hashes = Hashes::new(job);
    let mut scan = FileScan::new(&job.name, job.shard, &job.tensors, job.content);
    let streamed = stream(&file, job.size, progress, |bytes| {
        hashes.update(bytes);
        scan.update(bytes);
    });
    progress.end(&job.name);
    match streamed {
        Err(error) if error.kind == Kind::Cancelled => return Err(error),
        Err(error) => {
            reading.findings.push(Finding::failure(Category::Unreadable, &job.name, error.message));
            return Ok(reading);
        }
        Ok(()) => reading.bytes = job.size,
    }
    let found = hashes.finish();
    let clean = scan.findings.is_empty();
    let tensor_named = scan.findings.iter().any(|f| f.category == Category::Checksum);
    reading.findings.append(&mut scan.findings);
    compare(job, &found, &mut reading, tensor_named);
    if let (Some(saved), Some(key), true) = (saved, key, clean) {
        saved.remember(key, &found, job.content)?;
    }
    Ok(reading)
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

/// Hands the bytes of `file` to `take`, front to back, while a second thread reads ahead.
fn stream(
    file: &SourceFile,
    size: u64,
    progress: &Progress,
    mut take: impl FnMut(&[u8]),
) -> Result<()> {
    let (full_in, full_out) = sync_channel::<(AlignedBuf, std::ops::Range<usize>)>(AHEAD);
    let (free_in, free_out) = sync_channel::<AlignedBuf>(AHEAD);
    for _ in 0..AHEAD {
        let _ = free_in.send(AlignedBuf::default());
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read_ahead(file, size, progress, &free_out, &full_in));
        for (buffer, range) in full_out {
            let length = range.len() as u64;
            take(&buffer.bytes()[range]);
            progress.add_written(length);
            // The reader may have ended already.
            let _ = free_in.send(buffer);
        }
        reader.join().unwrap_or_else(|_| Err(Error::internal("a reading thread panicked")))
    })
}

fn read_ahead(
    file: &SourceFile,
    size: u64,
    progress: &Progress,
    free: &Receiver<AlignedBuf>,
    full: &SyncSender<(AlignedBuf, std::ops::Range<usize>)>,
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
