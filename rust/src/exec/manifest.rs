//! The manifest: what was written, from what, and the source's own headers.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::attest::Verified;
use super::executor::Run;
use super::figures::Figures;
use super::fold::{DoneOutput, TensorReport};
use super::hash::hex;
use super::identity::SourceFile;
use super::journal::{DoneRecord, State};
use super::publish::UNSYNCED;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::io::link::Linked;
use crate::io::small;
use crate::plan::data::Expected;
use crate::plan::{OutputFile, Request, Sidecar, Task};

/// Name and version of the manifest's form.
const SCHEMA: &str = "lingconv.manifest/1";

/// The whole manifest.
#[derive(Debug, Serialize)]
pub(super) struct Manifest<'a> {
    schema: &'static str,
    tool: &'static str,
    plan: String,
    requested: &'a str,
    /// Digest of what becomes of the tensors alone.
    tensors: String,
    request: &'a Request,
    /// config.json as it was written: a digest would not tell which keys were edited since.
    config: Option<&'a str>,
    source: Source<'a>,
    files: Vec<File<'a>>,
    sidecars: &'a [Sidecar],
    dropped: Vec<Dropped<'a>>,
    /// Errors of source tensors that became parts of larger ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<PartError<'a>>,
    /// Files of other ranks that are still to come.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    expected: &'a [Expected],
    warnings: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
struct Source<'a> {
    digest: &'a str,
    /// Who says what the shards should be, if they were verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_by: Option<String>,
    /// config.json as it was.
    config: Option<&'a str>,
    /// The index as it was: zlib, base64.
    index: Option<String>,
    /// Its files, told from others with the same headers.
    files: Vec<SourceFile>,
    shards: Vec<SourceShard<'a>>,
}

/// A source shard; its header makes it possible to restore the file byte for byte.
#[derive(Debug, Serialize)]
struct SourceShard<'a> {
    name: &'a str,
    size: u64,
    /// Of the whole file, if it was verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    header_sha256: String,
    /// Prefix and header, zlib, base64.
    header: String,
}

#[derive(Debug, Serialize)]
struct File<'a> {
    path: &'a str,
    size: u64,
    /// Absent for a linked file of which none was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    /// What the file was linked as; nobody read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    linked: Option<Linked>,
    /// Who knew the digest of a linked file.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256_by: Option<&'a str>,
    data_start: u64,
    tensors: Vec<Tensor<'a>>,
}

#[derive(Debug, Serialize)]
struct Tensor<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: &'a [u64],
    /// First byte and one past the last, relative to `data_start`.
    range: [u64; 2],
    /// XXH3-128 of the bytes as stored; absent in a linked file.
    #[serde(skip_serializing_if = "Option::is_none")]
    xxh3: Option<&'a str>,
    /// Source tensor, the first of several, and what was done with it.
    from: &'a str,
    op: &'static str,
    /// Error of encoding, if it was measured and there is one source.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Figures>,
}

#[derive(Debug, Serialize)]
struct PartError<'a> {
    tensor: &'a str,
    error: Figures,
}

#[derive(Debug, Serialize)]
struct Dropped<'a> {
    tensor: &'a str,
    reason: &'a str,
}

impl<'a> Manifest<'a> {
    /// Puts together what the plan says and what the journals recorded.
    pub(super) fn new(
        run: &'a Run<'a>,
        state: &'a State,
        verified: &'a [Verified],
    ) -> Result<Self> {
        let (mut files, mut errors) = (Vec::new(), Vec::new());
        let known_by = run.options.links.origin.as_str();
        for (task, digest) in run.plan.tasks.iter().zip(&run.digests) {
            let done = state
                .done
                .get(digest)
                .ok_or_else(|| Error::internal("a task is not in the journal").at(&task.name))?;
            let origins = Origins::of(run, task, done);
            for (i, output) in task.outputs.iter().enumerate() {
                files.push(file(output, &done.outputs[i], &origins, i, known_by)?);
            }
            errors.extend(origins.parts);
        }
        let dropped = run
            .plan
            .dropped
            .iter()
            .map(|d| Dropped { tensor: &run.catalog.tensor(d.tensor).name, reason: d.reason });
        let mut warnings: Vec<&str> = run.plan.warnings.iter().map(String::as_str).collect();
        if !small::sync_folder(&run.options.output)? {
            warnings.push(UNSYNCED);
        }
        Ok(Self {
            schema: SCHEMA,
            tool: concat!("lingconv ", env!("CARGO_PKG_VERSION")),
            plan: run.plan.digest(),
            requested: run.key,
            tensors: run.plan.tensor_digest(),
            request: &run.plan.request,
            config: run.plan.config_text(),
            source: source(run, verified)?,
            files,
            sidecars: &run.plan.sidecars,
            dropped: dropped.collect(),
            errors,
            expected: &run.plan.expected,
            warnings,
        })
    }
}

struct Origins<'a> {
    /// For each tensor of each output of a task: its source's name and the operation.
    of: HashMap<(u32, u32), Origin<'a>>,
    /// Errors that no single tensor of the outputs has.
    parts: Vec<PartError<'a>>,
}

#[derive(Clone, Copy)]
struct Origin<'a> {
    from: &'a str,
    op: &'static str,
    error: Option<Figures>,
}

impl<'a> Origins<'a> {
    fn of(run: &Run<'a>, task: &'a Task, done: &DoneRecord) -> Self {
        let errors: HashMap<u32, Figures> =
            done.reports.iter().map(|r| (r.source, Figures::from(&r.stats))).collect();
        let mut origins = HashMap::new();
        for step in &task.steps {
            let from = &*run.catalog.tensor(step.source).name;
            let (op, error) = (step.op.name(), errors.get(&step.source).copied());
            for target in &step.targets {
                let origin = Origin { from, op, error };
                let known = origins.entry((target.output, target.tensor)).or_insert(origin);
                known.error = known.error.filter(|_| known.from == from);
                if let Some(scale) = target.scale {
                    let origin = Origin { error: None, ..origin };
                    origins.entry((target.output, scale)).or_insert(origin);
                }
            }
        }
        let whole = origins.values().filter(|o| o.error.is_some()).map(|o| o.from);
        let whole: HashSet<&str> = whole.collect();
        let part = |report: &TensorReport| {
            let tensor = &*run.catalog.tensor(report.source).name;
            let error = Figures::from(&report.stats);
            (!whole.contains(tensor)).then_some(PartError { tensor, error })
        };
        let parts = done.reports.iter().filter_map(part).collect();
        Self { of: origins, parts }
    }
}

fn file<'a>(
    output: &'a OutputFile,
    done: &'a DoneOutput,
    origins: &Origins<'a>,
    index: usize,
    known_by: &'a str,
) -> Result<File<'a>> {
    if done.linked.is_none() && done.tensors.len() != output.tensors.len() {
        return Err(Error::internal("the journal has other tensors than the plan").at(&output.path));
    }
    let tensors = output.tensors.iter().enumerate().map(|(i, entry)| {
        let origin = origins.of.get(&(index as u32, i as u32)).copied();
        let empty = Origin { from: &entry.name, op: "copy", error: None };
        let Origin { from, op, error } = origin.unwrap_or(empty);
        Tensor {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            range: [entry.begin, entry.end],
            xxh3: done.tensors.get(i).map(String::as_str),
            from,
            op,
            error,
        }
    });
    Ok(File {
        path: &output.path,
        size: output.size,
        sha256: done.sha256.as_deref(),
        linked: done.linked,
        sha256_by: done.linked.and(done.sha256.as_ref()).map(|_| known_by),
        data_start: output.data_start,
        tensors: tensors.collect(),
    })
}

fn source<'a>(run: &Run<'a>, verified: &'a [Verified]) -> Result<Source<'a>> {
    let shard = |shard: &'a crate::catalog::Shard| {
        Ok(SourceShard {
            name: &shard.name,
            size: shard.stamp.size,
            header_sha256: hex(&Sha256::digest(&shard.raw_header)),
            sha256: verified.iter().find(|v| v.name == shard.name).map(|v| v.sha256.as_str()),
            header: compressed(&shard.raw_header)?,
        })
    };
    let shards = run.catalog.shards.iter().map(shard).collect::<Result<_>>()?;
    let index = run.catalog.raw_index.as_deref().map(compressed).transpose()?;
    let config = run.catalog.config_text.as_deref();
    let verified_by = run.options.known.as_ref().map(|known| known.origin.clone());
    let files = run.identities.all()?;
    Ok(Source { digest: &run.plan.catalog_digest, verified_by, config, index, files, shards })
}

fn compressed(bytes: &[u8]) -> Result<String> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    let packed = encoder.write_all(bytes).and_then(|()| encoder.finish());
    let packed = packed.map_err(|e| Error::internal(format!("cannot compress: {e}")))?;
    Ok(BASE64.encode(packed))
}
