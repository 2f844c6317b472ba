//! The manifest: what was written, from what, and the source's own headers.

use std::collections::HashMap;
use std::io::Write;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde::ser::{Error as _, SerializeSeq};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::attest::Verified;
use super::executor::Run;
use super::figures::Figures;
use super::fold::{DoneOutput, TensorReport};
use super::hash::{Digest128, hex};
use super::identity::SourceFile;
use super::journal::{DoneRecord, State};
use super::origins::Origins;
use super::publish::UNSYNCED;
use crate::catalog::{Catalog, MAX_MANIFEST, Shard};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::io::link::Linked;
use crate::io::small;
use crate::plan::data::Expected;
use crate::plan::step::Step;
use crate::plan::{OutputFile, Plan, Request, Sidecar, Task};

/// Name and version of the manifest's form.
const SCHEMA: &str = "lingconv.manifest/1";
/// Bytes of a tensor's row beside its names and what the header holds of it, and of its figures.
const ROW: u64 = 120;
const FIGURES: u64 = 200;

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
    files: Files<'a>,
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
    index: Option<Packed<'a>>,
    /// Its files, told from others with the same headers.
    files: Vec<SourceFile>,
    shards: SourceShards<'a>,
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
    header: Packed<'a>,
}

#[derive(Serialize)]
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
    tensors: Tensors<'a>,
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
    xxh3: Option<Digest128>,
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
    /// Puts together what the plan says and what the journals recorded. Nothing of the size of the
    /// checkpoint is held: rows are made as they are written.
    pub(super) fn new(
        run: &'a Run<'a>,
        state: &'a State,
        verified: &'a [Verified],
    ) -> Result<Self> {
        let mut tasks = Vec::with_capacity(run.plan.tasks.len());
        for (task, digest) in run.plan.tasks.iter().zip(&run.digests) {
            let done = state
                .done
                .get(digest)
                .ok_or_else(|| Error::internal("a task is not in the journal").at(&task.name))?;
            check_rows(task, done)?;
            tasks.push((task, done));
        }
        let errors = tasks.iter().flat_map(|(task, done)| part_errors(run.catalog, task, done));
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
            errors: errors.collect(),
            files: Files { catalog: run.catalog, tasks, known_by: &run.options.links.origin },
            sidecars: &run.plan.sidecars,
            dropped: dropped.collect(),
            expected: &run.plan.expected,
            warnings,
        })
    }
}

/// Refuses a plan whose manifest nobody could read, before anything is written.
///
/// # Errors
/// [`Error::too_large`].
pub(super) fn check_size(catalog: &Catalog, plan: &Plan) -> Result<()> {
    let row = if plan.request.report { ROW + FIGURES } else { ROW };
    let outputs = plan.tasks.iter().flat_map(|task| &task.outputs);
    let rows: u64 = outputs.map(|o| o.data_start + row * o.tensors.len() as u64).sum();
    let from = |step: &Step| step.targets.len() * catalog.tensor(step.source).name.len();
    let from: usize = plan.tasks.iter().flat_map(|task| &task.steps).map(from).sum();
    let headers = || catalog.shards.iter().map(|shard| shard.raw_header.as_slice());
    let packed = || headers().chain(catalog.raw_index.as_deref());
    // Deflate adds little to what it cannot make smaller; base64 makes four bytes of three.
    let most = packed().map(|bytes| bytes.len() as u64 + bytes.len() as u64 / 64 + 64).sum::<u64>();
    let others = rows + from as u64;
    if others + most / 3 * 4 <= MAX_MANIFEST {
        return Ok(());
    }
    let exact = packed().map(|bytes| pack(bytes).map(|packed| packed.len() as u64));
    let exact = exact.sum::<std::io::Result<u64>>();
    let exact = exact.map_err(|e| Error::internal(format!("cannot compress: {e}")))?;
    let size = others + exact / 3 * 4;
    if size <= MAX_MANIFEST {
        return Ok(());
    }
    Err(Error::too_large(format!("a manifest of {size} bytes, more than {MAX_MANIFEST}")))
}

fn check_rows(task: &Task, done: &DoneRecord) -> Result<()> {
    for (i, output) in task.outputs.iter().enumerate() {
        let made = done.outputs.get(i);
        if !made.is_some_and(|d| d.linked.is_some() || d.tensors.len() == output.tensors.len()) {
            let what = "the journal has other tensors than the plan";
            return Err(Error::internal(what).at(&output.path));
        }
    }
    Ok(())
}

/// The files of all outputs.
#[derive(Debug)]
struct Files<'a> {
    catalog: &'a Catalog,
    tasks: Vec<(&'a Task, &'a DoneRecord)>,
    known_by: &'a str,
}

impl Serialize for Files<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut rows = serializer.serialize_seq(None)?;
        for (task, done) in &self.tasks {
            let origins = Origins::new(task, done);
            for (i, (output, done)) in task.outputs.iter().zip(&done.outputs).enumerate() {
                rows.serialize_element(&File {
                    path: &output.path,
                    size: output.size,
                    sha256: done.sha256.as_deref(),
                    linked: done.linked,
                    sha256_by: done.linked.and(done.sha256.as_ref()).map(|_| self.known_by),
                    data_start: output.data_start,
                    tensors: Tensors { catalog: self.catalog, output, done, i, origins: &origins },
                })?;
            }
        }
        rows.end()
    }
}

/// The tensors of one output, the `i`th of its task.
struct Tensors<'a> {
    catalog: &'a Catalog,
    output: &'a OutputFile,
    done: &'a DoneOutput,
    i: usize,
    origins: &'a Origins<'a>,
}

impl Serialize for Tensors<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let row = |number: usize| {
            let entry = &self.output.tensors[number];
            let origin = self.origins.of(self.i, number);
            let step = origin.step(self.origins.task);
            let from = step.map_or(&*entry.name, |step| &*self.catalog.tensor(step.source).name);
            Tensor {
                name: &entry.name,
                dtype: entry.dtype,
                shape: &entry.shape,
                range: [entry.begin, entry.end],
                xxh3: self.done.tensors.get(number).copied(),
                from,
                op: step.map_or("copy", |step| step.op.name()),
                error: step.and_then(|step| self.origins.error(origin, step)),
            }
        };
        serializer.collect_seq((0..self.output.tensors.len()).map(row))
    }
}

/// Errors that no single tensor of a task's outputs has.
fn part_errors<'a>(
    catalog: &'a Catalog,
    task: &'a Task,
    done: &'a DoneRecord,
) -> Vec<PartError<'a>> {
    if done.reports.is_empty() {
        return Vec::new();
    }
    let origins = Origins::new(task, done);
    let whole = origins.measured();
    let parts = done.reports.iter().filter(|report| !whole.contains(&report.source));
    let row = |report: &TensorReport| PartError {
        tensor: &catalog.tensor(report.source).name,
        error: Figures::from(&report.stats),
    };
    parts.map(row).collect()
}

fn source<'a>(run: &Run<'a>, verified: &'a [Verified]) -> Result<Source<'a>> {
    let by_name = verified.iter().map(|v| (v.name.as_str(), v.sha256.as_str())).collect();
    Ok(Source {
        digest: &run.plan.catalog_digest,
        verified_by: run.options.known.as_ref().map(|known| known.origin.clone()),
        config: run.catalog.config_text.as_deref(),
        index: run.catalog.raw_index.as_deref().map(Packed),
        files: run.identities.all()?,
        shards: SourceShards { shards: &run.catalog.shards, verified: by_name },
    })
}

/// The shards of a source; `verified` digests by name.
#[derive(Debug)]
struct SourceShards<'a> {
    shards: &'a [Shard],
    verified: HashMap<&'a str, &'a str>,
}

impl Serialize for SourceShards<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.shards.iter().map(|shard| SourceShard {
            name: &shard.name,
            size: shard.stamp.size,
            sha256: self.verified.get(&*shard.name).copied(),
            header_sha256: hex(&Sha256::digest(&*shard.raw_header)),
            header: Packed(&shard.raw_header),
        }))
    }
}

fn pack(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Bytes that are written as zlib in base64.
#[derive(Debug)]
struct Packed<'a>(&'a [u8]);

impl Serialize for Packed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let packed = pack(self.0).map_err(|e| S::Error::custom(format!("cannot compress: {e}")))?;
        serializer.collect_str(&Base64Display::new(&packed, &BASE64))
    }
}
