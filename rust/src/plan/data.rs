//! Plans as data.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::request::Request;
use super::step::Step;
use crate::allowance::Allowance;
use crate::catalog::CONFIG;
use crate::error::{Error, Result};
use crate::exec::hash::hex;
use crate::header::{self, Entry};
use crate::io::link::Link;

/// Version of the planners' output; part of the plan digest.
pub const FORMAT: u32 = 1;

/// Everything that will be written.
#[derive(Debug)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// Digest of the source's headers and config.
    pub catalog_digest: String,
    /// Independent units of work.
    pub tasks: Vec<Task>,
    /// Source tensors that are in no output, each with its reason.
    pub dropped: Vec<Dropped>,
    /// Small files: config, index, tokenizer, remote code.
    pub sidecars: Vec<Sidecar>,
    /// Source tensors that only ranks need whose files are not written.
    pub elsewhere: Vec<u32>,
    /// Differences between the source's config.json and the output's, for people.
    pub config_changes: Vec<String>,
    /// What the user should know before starting.
    pub warnings: Vec<String>,
    /// Commands that start an engine on the output; `{out}` stands for its folder.
    pub launch: Vec<String>,
    /// What each rank of a re-sharded output reads.
    pub ranks: Vec<Rank>,
    /// Files of ranks that are not written.
    pub expected: Vec<Expected>,
}

/// A file of a rank that another run has to write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// Path relative to the output folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// The files of one rank.
#[derive(Debug, Clone, Serialize)]
pub struct Rank {
    /// Pipeline stage, from 0.
    pub pp: u32,
    /// Tensor parallel rank, from 0.
    pub tp: u32,
    /// Safetensors files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of their tensors, headers left out.
    pub tensor_bytes: u64,
}

impl Rank {
    /// Counts a file.
    pub fn add(&mut self, output: &OutputFile) {
        self.files += 1;
        self.bytes += output.size;
        self.tensor_bytes += output.size - output.data_start;
    }
}

/// A set of outputs fed by the same source bytes, and the steps that produce them.
///
/// Steps are in the order in which every output is written front to back: an output's targets
/// follow one another without gaps.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    /// Name for progress and messages: the first output's path.
    pub name: String,
    /// Files this task writes, and nobody else.
    pub outputs: Vec<OutputFile>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Every output is a source file as it is, and may be linked to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkedTask>,
}

/// A source file that becomes an output as it is.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LinkedTask {
    /// Shard of the catalog.
    pub shard: u32,
    /// How it is linked.
    pub mode: Link,
}

/// A safetensors file to be written.
#[derive(Debug, Clone, Serialize)]
pub struct OutputFile {
    /// Path relative to the output folder.
    pub path: String,
    /// Tensors in the order of their data.
    #[serde(serialize_with = "entries")]
    pub tensors: Vec<Entry>,
    /// Bytes of prefix and header.
    pub data_start: u64,
    /// Bytes of the whole file.
    pub size: u64,
    /// Prefix and header byte for byte, where another spelling than ours has to be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_header: Option<RawHeader>,
    /// What no source holds, by ascending tensor.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fills: Vec<Fill>,
}

/// Prefix and header of a file, shared with the catalog; plans are told apart by its digest.
#[derive(Debug, Clone)]
pub struct RawHeader(Arc<Vec<u8>>);

impl Serialize for RawHeader {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&hex(&Sha256::digest(&*self.0)))
    }
}

/// The end of a tensor, or all of it, that no source holds: a constant, or rows of padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fill {
    /// Tensor of the output.
    pub tensor: u32,
    /// Bytes, up to the tensor's end.
    pub bytes: u64,
    /// Repeated.
    pub pattern: Vec<u8>,
}

impl Fill {
    /// The bytes.
    pub fn content(&self) -> Vec<u8> {
        self.pattern.iter().copied().cycle().take(self.bytes as usize).collect()
    }
}

/// A source tensor that is not written.
#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    /// Tensor of the catalog.
    pub tensor: u32,
    /// Why.
    pub reason: &'static str,
}

/// A small file of the output.
#[derive(Debug, Clone, Serialize)]
pub struct Sidecar {
    /// Path relative to the output folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the content.
    pub sha256: String,
    /// Where the content comes from.
    #[serde(skip)]
    pub content: SidecarContent,
}

/// Content of a [`Sidecar`].
#[derive(Debug, Clone)]
pub enum SidecarContent {
    /// Carried over from this file of the source.
    Source(String),
    /// Made by the planner.
    Bytes(Vec<u8>),
}

impl OutputFile {
    /// Lays out `tensors` one after another behind their header.
    pub fn new(path: String, mut tensors: Vec<Entry>) -> Result<Self> {
        let data = header::lay_out(&mut tensors)?;
        let data_start = header::encoded_length(&tensors)?;
        let size = data_start + data;
        Ok(Self { path, tensors, data_start, size, raw_header: None, fills: Vec::new() })
    }

    /// A file with this prefix and header; `tensors` are those that it names, in the order of
    /// their data.
    pub fn restored(path: String, tensors: Vec<Entry>, raw_header: Arc<Vec<u8>>) -> Self {
        let data_start = raw_header.len() as u64;
        let size = data_start + tensors.iter().map(Entry::bytes).sum::<u64>();
        let raw_header = Some(RawHeader(raw_header));
        Self { path, tensors, data_start, size, raw_header, fills: Vec::new() }
    }

    /// Takes its header from the `allowance` of a plan; see [`take_tensors`].
    pub(super) fn within(self, allowance: &Allowance) -> Result<Self> {
        match allowance.take(self.data_start) {
            Ok(()) => Ok(self),
            Err(error) => Err(too_much(&error, &self.path)),
        }
    }

    /// Prefix and header.
    pub fn header(&self) -> Result<Cow<'_, [u8]>> {
        match &self.raw_header {
            Some(raw) => Ok(Cow::Borrowed(&raw.0)),
            None => header::encode(&self.tensors).map(Cow::Owned),
        }
    }

    /// What no source holds of a tensor.
    pub fn fill_of(&self, tensor: usize) -> Option<&Fill> {
        let found = self.fills.binary_search_by_key(&tensor, |f| f.tensor as usize);
        found.ok().map(|at| &self.fills[at])
    }
}

/// Takes the tensors of a file from the `allowance` of a plan, before they are made: no plan holds
/// more than any checkpoint that is read.
///
/// # Errors
/// [`Kind::Impossible`](crate::error::Kind::Impossible) if that had not so many.
pub(super) fn take_tensors(allowance: &Allowance, count: usize, path: &str) -> Result<()> {
    allowance.take_tensors(count).map_err(|e| too_much(&e, path))
}

fn too_much(error: &Error, path: &str) -> Error {
    Error::impossible(format!("one plan is {}", error.message))
        .at(path)
        .hint("are these the tensors of a model? `lingconv inspect --tree` shows them")
}

impl Task {
    /// Digest of everything the task does; equal digests mean equal output bytes for one source.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        feed(&mut hash, self);
        hex(&hash.finalize())
    }

    /// The step that makes the byte at `offset` of a tensor of an output; none if no source holds it.
    pub fn maker(&self, output: usize, tensor: usize, offset: u64) -> Option<&Step> {
        let scale_bytes = self.outputs[output].tensors[tensor].dtype.bits() / 8;
        let mut filled = 0;
        self.steps.iter().find(|step| {
            let own = step.targets.iter().filter(|t| t.output as usize == output);
            filled += own.map(|t| step.bytes_for(t, tensor, scale_bytes)).sum::<u64>();
            offset < filled
        })
    }

    /// Bytes of all outputs.
    pub fn bytes(&self) -> u64 {
        self.outputs.iter().map(|o| o.size).sum()
    }

    /// Bytes of all outputs, unless they are linked.
    pub fn written(&self) -> u64 {
        if self.link.is_some() { 0 } else { self.bytes() }
    }
}

impl Plan {
    /// The output's config.json.
    pub fn config_text(&self) -> Option<&str> {
        match &self.sidecars.iter().find(|s| s.path == CONFIG)?.content {
            SidecarContent::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            SidecarContent::Source(_) => None,
        }
    }

    /// Paths of all files but the manifest and the sums.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let data = self.tasks.iter().flat_map(|t| &t.outputs).map(|o| o.path.as_str());
        data.chain(self.sidecars.iter().map(|s| s.path.as_str()))
    }

    /// Whether only the files of some ranks are written.
    pub fn is_partial(&self) -> bool {
        self.request.reshard.as_ref().is_some_and(|r| r.rank.is_some())
    }

    /// Paths of all files but the manifest and the sums. Where stages have folders of their own,
    /// only what lies in them.
    pub fn files(&self) -> Vec<&str> {
        let mut files: Vec<&str> = self.names().collect();
        let folder = |path: &str| path.split_once('/').map(|(folder, _)| folder.to_owned());
        let stages = self.request.reshard.as_ref().map_or(1, |r| r.pp);
        let of_data = self.tasks.first().and_then(|t| folder(&t.outputs.first()?.path));
        if stages > 1 && of_data.is_some() {
            let folders: HashSet<String> = self
                .tasks
                .iter()
                .flat_map(|t| &t.outputs)
                .filter_map(|o| folder(&o.path))
                .collect();
            files.retain(|f| folder(f).is_some_and(|f| folders.contains(&f)));
        }
        files.sort_unstable();
        files
    }

    /// SHA-256 over what is read and what is written; the same on every machine.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        feed(&mut hash, &(FORMAT, &self.catalog_digest, &self.dropped, &self.sidecars));
        self.feed_tasks(hash)
    }

    /// SHA-256 over what becomes of the tensors alone, whatever small files lie beside them.
    pub fn tensor_digest(&self) -> String {
        let mut hash = Sha256::new();
        feed(&mut hash, &(FORMAT, &self.catalog_digest, &self.dropped));
        self.feed_tasks(hash)
    }

    fn feed_tasks(&self, mut hash: Sha256) -> String {
        for task in &self.tasks {
            feed(&mut hash, task);
        }
        hex(&hash.finalize())
    }

    /// Bytes of all files to be written; linked ones are not.
    pub fn bytes(&self) -> u64 {
        self.tasks.iter().map(Task::written).sum::<u64>()
            + self.sidecars.iter().map(|s| s.size).sum::<u64>()
    }
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn feed(hash: &mut Sha256, value: &impl Serialize) {
    let writer = std::io::BufWriter::with_capacity(1 << 16, HashWriter(hash));
    // Plans hold only strings and numbers, and the writer cannot fail.
    let _ = serde_json::to_writer(writer, value);
}

fn entries<S: Serializer>(
    tensors: &[Entry],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(tensors.iter().map(|t| (&*t.name, t.dtype, &t.shape)))
}
