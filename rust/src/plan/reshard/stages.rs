//! Targets that keep the original's shards and names: a folder a pipeline stage, or, with one
//! stage, the original itself.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Context;
use crate::catalog::{Catalog, Shard, Tensor};
use crate::companion::weight_of;
use crate::error::{Error, Result};
use crate::header::Entry;
use crate::model::{Model, Role};
use crate::plan::data::{OutputFile, Rank, Step, Target, Task};
use crate::plan::shard_task::entry;
use crate::transform::Op;

/// Refuses what these targets cannot do, with everything the original had and the source has not.
pub(super) fn refuse(context: &Context) -> Result<()> {
    let Context { ask, catalog, target, .. } = context;
    if ask.ep > 1 && ask.pp == 1 && ask.tp == 1 {
        return Err(Error::impossible(format!("--ep cuts no files for target {}", target.name))
            .hint("leave out --ep"));
    }
    if ask.format.is_some() {
        return Err(Error::impossible(format!(
            "--format with target {} is not supported",
            target.name
        ))
        .hint("encode first: `lingconv quantize fp8`, then reshard the result"));
    }
    let lost = catalog.pieces.as_ref().map_or(&[][..], |p| &p.lost);
    if lost.is_empty() || ask.partial {
        return Ok(());
    }
    Err(Error::impossible(format!(
        "{} tensors of the original are not in these files as they were",
        lost.len()
    ))
    .at(catalog.root.path())
    .details(lost.to_vec())
    .hint("--partial writes the rest, and what was encoded as it is"))
}

/// A task a shard: each source tensor is read once for all stages that need it.
pub(super) fn tasks(context: &Context) -> Result<(Vec<Task>, Vec<Rank>)> {
    let Context { catalog, ask, stages, .. } = context;
    let rank = |pp| Rank { pp, tp: 0, files: 0, bytes: 0, tensor_bytes: 0 };
    let mut ranks: Vec<Rank> = (0..stages.len() as u32).map(rank).collect();
    let mut tasks = Vec::with_capacity(catalog.shards.len());
    for shard in &catalog.shards {
        let task = task(context, shard)?;
        if task.outputs.is_empty() {
            continue;
        }
        for (stage, output) in stages_of_task(context, shard).into_iter().zip(&task.outputs) {
            ranks[stage].add(output);
        }
        tasks.push(task);
    }
    ranks.retain(|r| r.files > 0);
    let of_all_tps =
        ranks.into_iter().flat_map(|rank| (0..ask.tp).map(move |tp| Rank { tp, ..rank.clone() }));
    Ok((tasks, of_all_tps.collect()))
}

fn tensors_of<'a>(catalog: &'a Catalog, shard: &Shard) -> impl Iterator<Item = (u32, &'a Tensor)> {
    (shard.first..shard.first + shard.count).map(|i| (i as u32, &catalog.tensors[i]))
}

/// Stages that need a tensor, ascending. What no architecture knows goes to all of them.
fn stages_of(context: &Context, tensor: &Tensor) -> BTreeSet<usize> {
    let Context { model, stages, target, .. } = context;
    let all = || (0..stages.len()).collect();
    let last = stages.len() - 1;
    let Some(placed) = model.role_of(weight_of(&tensor.name)) else { return all() };
    let role = placed.rule.role;
    if target.layout.every_stage.contains(&role) {
        return all();
    }
    let stage = match placed.layer {
        None if role == Role::Embedding => 0,
        None => last,
        Some(layer) if model.is_mtp(Some(layer)) => last,
        Some(layer) => stages.iter().position(|s| s.contains(&layer)).unwrap_or(last),
    };
    let tied = role == Role::Embedding && is_tied(context, model);
    if tied { BTreeSet::from([stage, last]) } else { BTreeSet::from([stage]) }
}

/// Whether the last stage needs the embeddings too, as its head.
fn is_tied(context: &Context, model: &Model) -> bool {
    let tied = context.config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    let head = model.shapes().any(|(rule, _)| rule.role == Role::Head);
    tied == Some(true) || !head
}

fn stages_of_task(context: &Context, shard: &Shard) -> BTreeSet<usize> {
    let stages = tensors_of(context.catalog, shard).flat_map(|(_, t)| stages_of(context, t));
    stages.filter(|s| !context.ask.selected(*s as u32, 0..1).is_empty()).collect()
}

fn task(context: &Context, shard: &Shard) -> Result<Task> {
    let several = context.stages.len() > 1;
    let held = stages_of_task(context, shard);
    let mut outputs = Vec::with_capacity(held.len());
    for stage in &held {
        let path = context.target.layout.shard_path(several.then_some(*stage), &shard.name);
        let own = tensors_of(context.catalog, shard)
            .filter(|(_, t)| stages_of(context, t).contains(stage));
        let entries: Vec<Entry> = own.map(|(_, t)| entry(&t.name, t.dtype, &t.shape)).collect();
        outputs.push(if entries.len() == shard.count {
            restored(context.catalog, shard, path)
        } else {
            OutputFile::new(path, entries)?
        });
    }
    let mut filled = vec![0; outputs.len()];
    let mut steps = Vec::new();
    for (index, tensor) in tensors_of(context.catalog, shard) {
        let needed = stages_of(context, tensor);
        let own = held.iter().enumerate().filter(|(_, stage)| needed.contains(stage));
        let places = own.map(|(output, _)| {
            filled[output] += 1;
            (output as u32, filled[output] - 1)
        });
        let places: Vec<(u32, u32)> = places.collect();
        if !places.is_empty() {
            let written = content(context, index, tensor)
                .map_err(|e| e.tensor(&*tensor.name).at(&shard.name))?;
            steps.extend(written.steps(tensor, &places));
        }
    }
    let name = outputs.first().map_or_else(|| shard.name.clone(), |o| o.path.clone());
    Ok(Task { name, outputs, steps })
}

/// What is written under the name of a tensor.
struct Content {
    /// Tensor of the catalog.
    source: u32,
    /// Its rows, where they lie in another order.
    rows: Option<Vec<Range<u64>>>,
}

/// The tensor itself, unless experts lie in another order.
fn content(context: &Context, index: u32, tensor: &Tensor) -> Result<Content> {
    let same = Content { source: index, rows: None };
    let placed = context.model.role_of(weight_of(&tensor.name));
    let (Some(experts), Some(placed)) = (&context.experts, placed) else { return Ok(same) };
    let Some(name) = experts.content_of(placed, &tensor.name) else {
        let rows = tensor.shape.first().copied().unwrap_or(1);
        return Ok(Content { rows: experts.rows(placed, rows)?, ..same });
    };
    let alike = |other: &u32| {
        let other = context.catalog.tensor(*other);
        (other.dtype, &other.shape) == (tensor.dtype, &tensor.shape)
    };
    let source = context.catalog.find(&name).filter(alike).ok_or_else(|| {
        Error::impossible(format!("{name} has to take its place, and is missing or unlike it"))
    })?;
    Ok(Content { source, rows: None })
}

impl Content {
    /// Its steps; `places` are outputs and their tensors. `tensor` is as the content is.
    fn steps(self, tensor: &Tensor, places: &[(u32, u32)]) -> Vec<Step> {
        let (rows, cols, unit) = match self.rows {
            Some(_) => by_rows(tensor),
            None => matrix(tensor),
        };
        let all = std::iter::once(0..rows).collect();
        let step = |rows_: Range<u64>| {
            let target = |&(output, tensor): &(u32, u32)| Target {
                output,
                tensor,
                rows: rows_.clone(),
                cols: 0..cols,
                scale: None,
            };
            let targets = places.iter().map(target).collect();
            Step { source: self.source, rows, cols, op: Op::Copy { unit }, targets }
        };
        self.rows.unwrap_or(all).into_iter().map(step).collect()
    }
}

/// The shard as it was, header included.
fn restored(catalog: &Catalog, shard: &Shard, path: String) -> OutputFile {
    let entries = tensors_of(catalog, shard).map(|(_, t)| Entry {
        name: t.name.clone(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        begin: t.offset - shard.data_start,
        end: t.offset - shard.data_start + t.bytes,
    });
    OutputFile::restored(path, entries.collect(), shard.raw_header.clone())
}

/// Rows, columns and bytes of a column, the first dimension being the rows.
fn by_rows(tensor: &Tensor) -> (u64, u64, u32) {
    let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
    (rows, tensor.bytes / rows, 1)
}

/// Rows, columns and bytes of a column: whole rows where there are several, so that what lies in
/// pieces is read row by row.
fn matrix(tensor: &Tensor) -> (u64, u64, u32) {
    let unit = tensor.dtype.bits() / 8;
    match *tensor.shape {
        [rows, cols] if unit > 0 && rows * cols * unit == tensor.bytes => (rows, cols, unit as u32),
        _ => (tensor.bytes, 1, 1),
    }
}
