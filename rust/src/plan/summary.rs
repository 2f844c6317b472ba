//! A plan in numbers, for people and for `--json`.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::data::{Plan, Rank, Task};
use crate::catalog::Catalog;
use crate::dialect::ScaleKind;
use crate::error::Result;
use crate::model::Model;
use crate::numeric::Arith;
use crate::transform::Op;

/// Tensors and bytes.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Count {
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes in the source.
    pub bytes: u64,
}

/// What a plan does, in all.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Plan digest, 64 hex digits.
    pub digest: String,
    /// Verb as typed.
    pub verb: &'static str,
    /// Number format and dialect in words.
    pub format: String,
    /// Bytes read from shards.
    pub read_bytes: u64,
    /// Shards read.
    pub read_files: usize,
    /// Bytes written, sidecars included.
    pub write_bytes: u64,
    /// Safetensors files written.
    pub write_files: usize,
    /// Safetensors files that are linked, unless the file system refuses it.
    pub link_files: usize,
    /// Their bytes.
    pub link_bytes: u64,
    /// Independent tasks.
    pub tasks: usize,
    /// Tensors encoded.
    pub encode: Count,
    /// Tensors decoded.
    pub decode: Count,
    /// Tensors kept as they are.
    pub keep: Count,
    /// Kept tensors by group of roles.
    pub keep_groups: BTreeMap<String, Count>,
    /// Tensors left out.
    pub dropped: Count,
    /// Differences of config.json.
    pub config_changes: Vec<String>,
    /// Small files written.
    pub sidecars: Vec<String>,
    /// What to know before starting.
    pub warnings: Vec<String>,
    /// Commands that start an engine on the output; `{out}` stands for its folder.
    pub launch: Vec<String>,
    /// What each rank reads.
    pub ranks: Vec<Rank>,
    /// Files of other ranks, which this plan does not write.
    pub expected_files: usize,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.tensors += 1;
        self.bytes += bytes;
    }
}

/// Sums up `plan`.
pub fn summarize(catalog: &Catalog, plan: &Plan) -> Result<Summary> {
    let model = plan.request.load_model(catalog)?;
    let (mut encode, mut decode, mut keep) = (Count::default(), Count::default(), Count::default());
    let mut keep_groups: BTreeMap<String, Count> = BTreeMap::new();
    let mut read_bytes = 0;
    let mut counted = HashSet::new();
    for (task, step) in plan.tasks.iter().flat_map(|t| t.steps.iter().map(move |s| (t, s))) {
        let source = catalog.tensor(step.source);
        read_bytes += if task.link.is_some() { 0 } else { step.read_bytes() };
        if !counted.insert(step.source) {
            continue;
        }
        match step.op {
            Op::Encode { .. } => encode.add(source.bytes),
            Op::Decode { scale, .. } => {
                read_bytes += catalog.tensor(scale).bytes;
                decode.add(source.bytes);
            }
            Op::Copy { .. } | Op::Widen { .. } => {
                keep.add(source.bytes);
                keep_groups
                    .entry(group_of(model.as_ref(), &source.name))
                    .or_default()
                    .add(source.bytes);
            }
        }
    }
    let mut dropped = Count::default();
    plan.dropped.iter().for_each(|d| dropped.add(catalog.tensor(d.tensor).bytes));
    let written = || plan.tasks.iter().filter(|t| t.link.is_none());
    let linked = || plan.tasks.iter().filter(|t| t.link.is_some());
    Ok(Summary {
        digest: plan.digest(),
        verb: plan.request.verb.name(),
        format: format_words(plan)?,
        read_bytes,
        read_files: catalog.shards.len(),
        write_bytes: plan.bytes(),
        write_files: written().map(|t| t.outputs.len()).sum(),
        link_files: linked().map(|t| t.outputs.len()).sum(),
        link_bytes: linked().map(Task::bytes).sum(),
        tasks: plan.tasks.len(),
        encode,
        decode,
        keep,
        keep_groups,
        dropped,
        config_changes: plan.config_changes.clone(),
        sidecars: plan.sidecars.iter().map(|s| s.path.clone()).collect(),
        warnings: plan.warnings.clone(),
        launch: plan.launch.clone(),
        ranks: plan.ranks.clone(),
        expected_files: plan.expected.len(),
    })
}

fn group_of(model: Option<&Model>, name: &str) -> String {
    let placed = model.and_then(|m| m.role_of(name));
    placed.map_or("other", |p| p.rule.role.group().name()).to_owned()
}

fn format_words(plan: &Plan) -> Result<String> {
    let request = &plan.request;
    if request.verb == super::Verb::Dequantize {
        return Ok("bf16".into());
    }
    let layout = request.reshard.as_ref().map(super::reshard::Reshard::words);
    if let (Some(layout), None) = (&layout, request.reshard.as_ref().and_then(|r| r.format)) {
        return Ok(layout.clone());
    }
    let dialect = request.load_dialect()?;
    let grid = match dialect.grid() {
        crate::numeric::Grid::Block { rows, cols } => format!("{rows}×{cols}"),
        crate::numeric::Grid::Channel => "per channel".into(),
    };
    let scales = match (request.scale, dialect.scale_dtype()) {
        (ScaleKind::Ue8m0, _) => "ue8m0".to_owned(),
        (ScaleKind::F32, stored) => format!("{stored:?}").to_lowercase(),
    };
    let arith = if request.scale_arith == Arith::Cuda { ", cuda arithmetic" } else { "" };
    let layout = layout.map(|words| words + ", ").unwrap_or_default();
    Ok(format!("{layout}e4m3, {grid}, {scales} scales{arith}, dialect {}", dialect.name()))
}

/// The config and skip list aside, everything `--json` prints of a plan.
pub fn to_json(catalog: &Catalog, plan: &Plan) -> Result<Value> {
    let summary = summarize(catalog, plan)?;
    serde_json::to_value(&summary)
        .map(|mut value| {
            value["schema"] = json!("lingconv.plan/1");
            value
        })
        .map_err(|e| crate::error::Error::internal(format!("cannot write JSON: {e}")))
}
