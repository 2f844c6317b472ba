//! Synthetic checkpoints: names, shapes and dtypes of a real architecture, made-up weights.
//!
//! The bytes of a tensor depend on the seed, its name, role and shape alone, so the same tensor
//! comes out of any shard size, number of threads and machine. With `sparse` only headers are
//! written and the data is a hole that reads as zeros: a full-size rehearsal on almost no disk.

mod files;
mod layout;
mod preset;
mod weights;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};
use crate::header;
use crate::io::{Mode, PAGE, PartWriter, small};
use crate::model::Architecture;
use crate::threads;
use layout::Shard;
use preset::Preset;
pub use preset::presets;
use weights::{Generator, Producer};

/// Bytes that a shard's writer collects before it writes.
const WRITE_BUFFER: usize = 4 << 20;

/// What to synthesise.
#[derive(Debug, Clone)]
pub struct Options {
    /// One of [`presets`].
    pub preset: String,
    /// Number of layers instead of the preset's; at least one stays MoE.
    pub layers: Option<u32>,
    /// Routed experts of a layer instead of the preset's; the routing groups adapt.
    pub experts: Option<u32>,
    /// Another seed gives other weights.
    pub seed: u64,
    /// About how many bytes of data a file holds, instead of the preset's.
    pub shard_size: Option<u64>,
    /// Adds one MTP layer.
    pub mtp: bool,
    /// FP8 (E4M3, 128×128 blocks, dialect `deepseek`) instead of BF16.
    pub fp8: bool,
    /// True headers and sizes, holes instead of data.
    pub sparse: bool,
    /// Files written at a time.
    pub jobs: usize,
}

impl Options {
    /// The preset as it is: BF16, seed 0, two files at a time.
    pub fn new(preset: impl Into<String>) -> Self {
        Self {
            preset: preset.into(),
            layers: None,
            experts: None,
            seed: 0,
            shard_size: None,
            mtp: false,
            fp8: false,
            sparse: false,
            jobs: 2,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Safetensors files.
    pub files: usize,
    /// Tensors in them.
    pub tensors: usize,
    /// Bytes of tensor data.
    pub bytes: u64,
}

/// Called with bytes of tensor data just written, and those of the whole checkpoint; `false`
/// stops the run.
pub type Progress<'p> = &'p (dyn Fn(u64, u64) -> bool + Sync);
type Step<'p> = &'p (dyn Fn(u64) -> bool + Sync);

/// Writes a synthetic checkpoint into `destination`, a new or empty folder. Data files come
/// first, then the index, `config.json` last; a run that fails removes its data files.
///
/// [`Kind::Usage`] for an unknown preset or numbers out of range, [`Kind::Foreign`] if the folder
/// holds anything, [`Kind::Space`] if it does not fit, [`Kind::Cancelled`] if `progress` says so.
pub fn write(options: &Options, destination: &Path, progress: Progress<'_>) -> Result<Summary> {
    let preset = Preset::named(&options.preset)?;
    let config = preset.config(options)?;
    let model = Architecture::builtin_for(&config)
        .ok_or_else(|| Error::internal("preset of an unknown architecture"))?
        .model(&config)?;
    let tensors = layout::tensors(&model, options.fp8)?;
    let count = tensors.len();
    let shards = layout::shards(tensors, options.shard_size.unwrap_or(preset.shard_size))?;
    let bytes: u64 = shards.iter().map(|s| s.data_len).sum();
    let summary = Summary { files: shards.len(), tensors: count, bytes };

    if !small::list(destination)?.is_empty() {
        return Err(Error::new(Kind::Foreign, "the output folder is not empty")
            .at(destination)
            .hint("choose a new folder with -o"));
    }
    if !options.sparse {
        check_space(destination, bytes)?;
    }
    small::create_folder(destination)?;
    let written = write_shards(options, &shards, destination, &|written| progress(written, bytes));
    if written.is_err() {
        for path in shards.iter().map(|s| destination.join(&s.name)) {
            // The first error is the one to report.
            let _ = small::remove(&small::part_path(&path)).and_then(|()| small::remove(&path));
        }
    }
    written?;
    for (name, text) in &preset.files {
        small::write_durable(&destination.join(name), text.as_bytes())?;
    }
    write_json(&destination.join("model.safetensors.index.json"), &index(&shards, bytes))?;
    write_json(&destination.join("config.json"), &config)?;
    Ok(summary)
}

fn check_space(destination: &Path, bytes: u64) -> Result<()> {
    let free = small::free_space(destination)?.bytes;
    if free >= bytes {
        return Ok(());
    }
    let message = format!("{bytes} bytes needed, {free} free");
    Err(Error::new(Kind::Space, message)
        .at(destination)
        .hint("choose fewer --layers or --experts, or --sparse"))
}

fn index(shards: &[Shard], bytes: u64) -> Value {
    let map: Map<String, Value> = shards
        .iter()
        .flat_map(|s| s.entries.iter().map(|e| (e.name.to_string(), s.name.clone().into())))
        .collect();
    json!({"metadata": {"total_size": bytes}, "weight_map": map})
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
    text.push(b'\n');
    small::write_durable(path, &text)
}

fn write_shards(
    options: &Options,
    shards: &[Shard],
    destination: &Path,
    progress: Step<'_>,
) -> Result<()> {
    let generator = Generator::new(options.seed);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first_error = Mutex::new(None);
    let report = |bytes| !stop.load(Ordering::Relaxed) && progress(bytes);
    let work = || {
        let mut producer = Producer::new(&generator);
        while let Some(shard) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
            let path = destination.join(&shard.name);
            let done = if options.sparse {
                write_sparse(shard, &path, &report)
            } else {
                write_shard(shard, &path, &mut producer, &report)
            };
            if let Err(error) = done {
                // Stored before the others are stopped: their errors only follow from this one.
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                stop.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, shards.len().max(1)) {
            if let Err(error) = threads::spawn(scope, work) {
                first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                stop.store(true, Ordering::Relaxed);
                break;
            }
        }
    });
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn write_shard(
    shard: &Shard,
    path: &Path,
    producer: &mut Producer,
    progress: Step<'_>,
) -> Result<()> {
    let head = header::encode(&shard.entries)?;
    let size = head.len() as u64 + shard.data_len;
    let capacity = WRITE_BUFFER.min(size.next_multiple_of(PAGE) as usize);
    let mut writer = PartWriter::create(path, size, Mode::Auto, capacity)?;
    writer.write(&head)?;
    for tensor in &shard.tensors {
        producer.produce(tensor, &mut |bytes| {
            writer.write(bytes)?;
            if progress(bytes.len() as u64) { Ok(()) } else { Err(Error::cancelled()) }
        })?;
    }
    writer.complete()?;
    writer.publish()
}

fn write_sparse(shard: &Shard, path: &Path, progress: Step<'_>) -> Result<()> {
    files::write_sparse(path, &header::encode(&shard.entries)?, shard.data_len)?;
    if progress(shard.data_len) { Ok(()) } else { Err(Error::cancelled()) }
}

#[cfg(test)]
mod tests;
