//! A re-sharded folder, opened as the checkpoint that it was cut from.
//!
//! Its manifest holds the original's headers and the request. The plan is derived from them again,
//! as it was when the files were written, and read backwards: where a target of a step says which
//! rectangle went to which place of which file, a piece says where it can be found.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::read::ZlibDecoder;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::data::{OutputFile, Plan, Task};
use super::request::Request;
use super::reshard::Reshard;
use super::shard_task::plan_shards;
use super::step::{Step, Target};
use crate::allowance::Allowance;
use crate::catalog::{Catalog, MANIFEST, MAX_INDEX, MAX_MANIFEST};
use crate::dialect::Dialect;
use crate::error::{Error, Result};
use crate::exec::hash::hex;
use crate::header::{self, Header};
use crate::io::{Root, Stamp};
use crate::json;
use crate::numeric::{Float, Grid};
use crate::pieces::{InPieces, Piece, PieceFile, Pieces, Stored};
use crate::shard_headers::{ReadHeader, read_headers};
use crate::target::Form;
use crate::transform::Op;

#[derive(Deserialize)]
struct Glance {
    request: GlanceRequest,
}

#[derive(Deserialize)]
struct GlanceRequest {
    reshard: Option<Reshard>,
}

impl GlanceRequest {
    /// Whether tensors lie elsewhere than in the original; a target that keeps names and has one
    /// stage moves none, unless the experts are in another order.
    fn is_cut(&self) -> bool {
        let whole = |ask: &Reshard| {
            ask.pp == 1
                && ask.ep == 1
                && ask.experts.is_none()
                && ask.load_target().is_ok_and(|t| t.layout.form == Form::Stages)
        };
        self.reshard.as_ref().is_some_and(|ask| !whole(ask))
    }
}

#[derive(Deserialize)]
struct Manifest {
    tensors: String,
    request: Request,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    digest: String,
    config: Option<String>,
    index: Option<String>,
    shards: Vec<SourceShard>,
}

#[derive(Deserialize)]
struct SourceShard {
    name: String,
    size: u64,
    header_sha256: String,
    header: String,
}

/// Opens a checkpoint folder; one that `reshard` wrote as the checkpoint it was cut from.
pub fn open(path: &Path) -> Result<Catalog> {
    let root = Root::open(path)?;
    let Some(bytes) = root.read(MANIFEST, MAX_MANIFEST)? else { return Catalog::open(path) };
    if !json::manifest(&bytes).is_ok_and(|g: Glance| g.request.is_cut()) {
        return Catalog::open(path);
    }
    let damaged = |e: Error| {
        e.at(path.join(MANIFEST)).hint(
            "the manifest was changed, or another version of lingconv wrote it; \
             without it the files cannot be put together",
        )
    };
    let manifest: Manifest = json::manifest(&bytes).map_err(damaged)?;
    drop(bytes);
    manifest.request.check().map_err(damaged)?;
    let mut original = manifest.source.catalog(&root).map_err(damaged)?;
    // Its shards are no files here, which the planner has to know.
    original.pieces = Some(Pieces::default());
    let plan = super::build(&original, &manifest.request).map_err(damaged)?;
    if plan.tensor_digest() != manifest.tensors {
        return Err(damaged(Error::invalid("the manifest's plan cannot be derived from it again")));
    }
    if !plan.expected.is_empty() {
        let missing = plan.expected.iter().map(|e| e.path.clone()).collect();
        return Err(Error::invalid(format!(
            "only a part of the ranks is here: {} files are still expected",
            plan.expected.len()
        ))
        .at(path)
        .details(missing)
        .hint("write the other ranks into the same folder with `lingconv reshard --rank`"));
    }
    let files = piece_files(&root, &plan)?;
    let lost = lost(&original, &plan);
    let changed = if lost.is_empty() { None } else { Some(written(&original, &plan)?) };
    let written = changed.as_ref().unwrap_or(&original);
    let tensors = vec![InPieces::default(); written.tensors.len()];
    let tensors =
        Inversion { original: &original, written, dialect: plan.request.load_dialect()?, tensors };
    let tensors = tensors.run(&plan)?;
    for (tensor, held) in written.tensors.iter().zip(&tensors) {
        if !held.covers(tensor.bytes.checked_div(held.row_bytes).unwrap_or(0)) {
            return Err(Error::internal("a tensor is not whole").tensor(&*tensor.name).at(path));
        }
    }
    let mut catalog = changed.unwrap_or(original);
    let ask = plan.request.reshard;
    let layout = ask.as_ref().map(Reshard::words).unwrap_or_default();
    let experts = ask.and_then(|ask| ask.experts);
    catalog.pieces = Some(Pieces { files, tensors, layout, lost, experts });
    Ok(catalog)
}

impl Source {
    /// The catalog of the original, from the headers that the manifest holds.
    fn catalog(self, root: &Root) -> Result<Catalog> {
        let mut shards = Vec::with_capacity(self.shards.len());
        let allowance = Allowance::of_a_model();
        for shard in self.shards {
            crate::io::root::check_name(&shard.name)?;
            let name = shard.name.clone();
            let read = shard
                .read(&allowance)
                .map_err(|e| Error { message: format!("header of {name}: {}", e.message), ..e })?;
            shards.push((name, read));
        }
        let mut catalog = Catalog::assemble(root.clone(), self.config, shards)?;
        catalog.raw_index = self.index.map(|text| inflate(&text, MAX_INDEX)).transpose()?;
        if catalog.digest() == self.digest {
            return Ok(catalog);
        }
        Err(Error::invalid("the source's headers are not those that its digest was made of"))
    }
}

impl SourceShard {
    fn read(&self, allowance: &Allowance) -> Result<ReadHeader> {
        let raw = inflate(&self.header, allowance.left().min(self.size))?;
        allowance.take(raw.len() as u64)?;
        if hex(&Sha256::digest(&raw)) != self.header_sha256 {
            return Err(Error::invalid("its digest is another"));
        }
        let (prefix, json) = raw
            .split_first_chunk::<{ header::PREFIX as usize }>()
            .ok_or_else(|| Error::invalid("shorter than its prefix"))?;
        let length = header::json_length(*prefix, self.size)?;
        if length != json.len() as u64 {
            return Err(Error::invalid("its prefix gives another length"));
        }
        let mut header =
            Header::parse_within(json, self.size - header::PREFIX - length, allowance)?;
        header.metadata = Vec::new();
        let stamp = Stamp { size: self.size, mtime_ns: 0, ctime_ns: 0, shared: false };
        Ok(ReadHeader { header, raw, stamp })
    }
}

/// Undoes zlib and base64; more than `limit` bytes are refused.
fn inflate(text: &str, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let packed = BASE64.decode(text).map_err(|_| Error::invalid("not base64"))?;
    let mut bytes = Vec::new();
    ZlibDecoder::new(&*packed)
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::invalid(format!("not zlib: {e}")))?;
    if bytes.len() as u64 > limit {
        return Err(Error::too_large(format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

/// The files of the plan's outputs, whose headers must be the planned ones.
fn piece_files(root: &Root, plan: &Plan) -> Result<Vec<PieceFile>> {
    let outputs: Vec<&OutputFile> = plan.tasks.iter().flat_map(|t| &t.outputs).collect();
    let names: Vec<String> = outputs.iter().map(|o| o.path.clone()).collect();
    let mut missing: Vec<String> = Vec::new();
    for name in &names {
        if root.resolve(name)?.is_none() {
            missing.push(name.clone());
        }
    }
    if !missing.is_empty() {
        return Err(Error::invalid(format!(
            "{} of {} files of this layout are missing",
            missing.len(),
            names.len()
        ))
        .at(root.path())
        .details(missing)
        .hint("bring the files of all ranks together in one folder"));
    }
    let mut files = Vec::with_capacity(names.len());
    for (output, read) in outputs.iter().zip(read_headers(root, &names)?) {
        let mut planned: Vec<_> = output.tensors.iter().collect();
        planned.sort_unstable_by_key(|t| (t.begin, t.end, &t.name));
        let mut found: Vec<_> = read.header.tensors.iter().collect();
        found.sort_unstable_by_key(|t| (t.begin, t.end, &t.name));
        if planned != found || read.raw.len() as u64 != output.data_start {
            return Err(Error::invalid("the header is not the one that the manifest implies")
                .at(root.path().join(&output.path))
                .hint("check the folder with `lingconv verify`"));
        }
        files.push(PieceFile { name: output.path.clone(), stamp: read.stamp });
    }
    Ok(files)
}

/// The catalog of what was written where the plan encoded or left out tensors: shard by shard what
/// `quantize` would have made of the original.
fn written(original: &Catalog, plan: &Plan) -> Result<Catalog> {
    let mut encoded: HashMap<u32, Op> = HashMap::new();
    for step in plan.tasks.iter().flat_map(|t| &t.steps) {
        if matches!(step.op, Op::Encode { .. }) {
            encoded.insert(step.source, step.op);
        }
    }
    let dropped: HashSet<u32> = plan.dropped.iter().map(|d| d.tensor).collect();
    let dialect = plan.request.load_dialect()?;
    let tasks = plan_shards(original, |task, index, tensor| {
        match encoded.get(&index) {
            Some(op @ Op::Encode { encoding, .. }) => {
                let scale = dialect.scale_name(&tensor.name);
                task.encode(index, tensor, (*op, *encoding), &scale);
            }
            _ if dropped.contains(&index) => {}
            _ => task.copy(index, tensor),
        }
        Ok(())
    })?;
    let shards = tasks.iter().flat_map(|t| &t.outputs).map(|output| {
        let raw = header::encode(&output.tensors)?;
        let (_, json) = raw.split_at(header::PREFIX as usize);
        let header = Header::parse(json, output.size - raw.len() as u64)?;
        let stamp = Stamp { size: output.size, mtime_ns: 0, ctime_ns: 0, shared: false };
        Ok((output.path.clone(), ReadHeader { header, raw, stamp }))
    });
    let config = plan.config_text().map(str::to_owned).or_else(|| original.config_text.clone());
    let mut catalog =
        Catalog::assemble(original.root.clone(), config, shards.collect::<Result<_>>()?)?;
    catalog.raw_index.clone_from(&original.raw_index);
    Ok(catalog)
}

/// What the original had and these files do not, for people.
fn lost(original: &Catalog, plan: &Plan) -> Vec<String> {
    let line = |tensor: u32, what: &str| format!("{}: {what}", original.tensor(tensor).name);
    let dropped = plan.dropped.iter().map(|d| line(d.tensor, "left out"));
    let steps = plan.tasks.iter().flat_map(|t| &t.steps);
    let encoded = steps.filter(|s| matches!(s.op, Op::Encode { .. }));
    dropped.chain(encoded.map(|s| line(s.source, "encoded"))).collect()
}

/// Walks a plan and notes where every rectangle went.
struct Inversion<'a> {
    original: &'a Catalog,
    written: &'a Catalog,
    dialect: Dialect,
    tensors: Vec<InPieces>,
}

/// A task while it is walked.
struct Walk<'t> {
    task: &'t Task,
    /// Number of its first file.
    first: u32,
    /// Bytes of each tensor of each output so far.
    filled: Vec<Vec<u64>>,
}

impl Inversion<'_> {
    fn run(mut self, plan: &Plan) -> Result<Vec<InPieces>> {
        let mut first = 0;
        for task in &plan.tasks {
            let filled = task.outputs.iter().map(|o| vec![0; o.tensors.len()]).collect();
            let mut walk = Walk { task, first, filled };
            for step in &task.steps {
                for target in step.targets.iter().filter(|t| !t.rows.is_empty()) {
                    self.place(&mut walk, step, target)?;
                }
            }
            first += task.outputs.len() as u32;
        }
        Ok(self.tensors)
    }

    fn place(&mut self, walk: &mut Walk, step: &Step, target: &Target) -> Result<()> {
        let stored = match step.op {
            Op::Widen { float: Float::Bf16 } => Stored::WidenedBf16,
            Op::Widen { .. } => {
                return Err(Error::impossible("F16 that was widened to F32 cannot be turned back"));
            }
            _ => Stored::Plain,
        };
        let unit = step.op.result_unit() / stored.factor();
        let weight = self.find(&self.original.tensor(step.source).name.clone())?;
        let rect = (target.rows.clone(), target.cols.clone());
        self.add(weight, step.cols * unit, walk.piece(target, target.tensor, rect, (unit, stored)));
        let (Op::Encode { encoding, .. }, Some(scale)) = (step.op, target.scale) else {
            return Ok(());
        };
        let Grid::Block { rows: high, cols: wide } = encoding.grid else {
            return Err(Error::impossible("scales of channels cannot be put together"));
        };
        let blocks = |r: &Range<u64>, n: usize| r.start / n as u64..r.end.div_ceil(n as u64);
        let rect = (blocks(&target.rows, high), blocks(&target.cols, wide));
        let entry = &walk.task.outputs[target.output as usize].tensors[scale as usize];
        let unit = entry.dtype.bits() / 8;
        let name = self.dialect.scale_name(&self.original.tensor(step.source).name);
        let index = self.find(&name)?;
        let all = step.cols.div_ceil(wide as u64) * unit;
        self.add(index, all, walk.piece(target, scale, rect, (unit, Stored::Plain)));
        Ok(())
    }

    fn find(&self, name: &str) -> Result<u32> {
        let found = self.written.find(name);
        found.ok_or_else(|| Error::internal("a tensor of the plan is nowhere").tensor(name))
    }

    fn add(&mut self, tensor: u32, row_bytes: u64, piece: Piece) {
        let held = &mut self.tensors[tensor as usize];
        held.row_bytes = row_bytes;
        held.add(piece);
    }
}

impl Walk<'_> {
    /// The next rectangle of an output tensor, of `unit` bytes a column.
    fn piece(
        &mut self,
        target: &Target,
        tensor: u32,
        (rows, cols): (Range<u64>, Range<u64>),
        (unit, stored): (u64, Stored),
    ) -> Piece {
        let output = &self.task.outputs[target.output as usize];
        let filled = &mut self.filled[target.output as usize][tensor as usize];
        let offset = output.data_start + output.tensors[tensor as usize].begin + *filled;
        let bytes = cols.start * unit..cols.end * unit;
        *filled += (rows.end - rows.start) * (bytes.end - bytes.start) * stored.factor();
        Piece { file: self.first + target.output, offset, rows, bytes, stored, copy: false }
    }
}
