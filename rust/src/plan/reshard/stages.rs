//! Targets that keep the original's shards and names: a folder a pipeline stage, or, with one
//! stage, the original itself.

use std::collections::BTreeSet;
use std::ops::Range;

use super::request::Share;
use super::{Context, Work};
use crate::catalog::{Catalog, Shard, Tensor};
use crate::companion::weight_of;
use crate::error::{Error, Result};
use crate::header::Entry;
use crate::io::link::Link;
use crate::model::parallel::experts_of;
use crate::model::{Model, Role};
use crate::plan::data::{LinkedTask, OutputFile, Rank, Task, take_tensors};
use crate::plan::shard_task::entry;
use crate::plan::step::{Step, Target};
use crate::transform::Op;

/// Refuses what these targets cannot do, with everything the original had and the source has not.
pub(super) fn refuse(context: &Context) -> Result<()> {
    let Context { ask, catalog, target, .. } = context;
    if ask.ep > 1 && ask.pp == 1 && ask.tp == 1 && !target.layout.deals_experts() {
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

/// Where a tensor goes: a stage, and within it the files of one expert parallel rank or of none.
type Place = (usize, Option<u32>);

/// The places that need a tensor.
#[derive(Clone, Copy)]
enum Places {
    /// All stages, which share no experts of a tensor that they all need.
    EveryStage,
    /// One or two.
    Some(Place, Option<Place>),
}

impl Places {
    fn contains(self, place: &Place) -> bool {
        match self {
            Self::EveryStage => place.1.is_none(),
            Self::Some(one, other) => one == *place || other == Some(*place),
        }
    }

    /// All of them, of so many stages.
    fn iter(self, stages: usize) -> impl Iterator<Item = Place> {
        let (every, one, other) = match self {
            Self::EveryStage => (0..stages, None, None),
            Self::Some(one, other) => (0..0, Some(one), other),
        };
        every.map(|stage| (stage, None)).chain(one).chain(other)
    }
}

/// A shard's tensors with the places that need each, of those that are written.
struct Dealt<'a> {
    tensors: Vec<(u32, &'a Tensor, Places)>,
    places: BTreeSet<Place>,
}

impl<'a> Dealt<'a> {
    fn new(context: &Context<'a>, shard: &Shard, wanted: &Share) -> Self {
        let catalog = context.catalog;
        let deal = |i: usize| {
            let tensor = &catalog.tensors[i];
            (i as u32, tensor, places_of(context, tensor))
        };
        let tensors: Vec<_> = (shard.first..shard.first + shard.count).map(deal).collect();
        let stages = context.stages.len();
        let needed = tensors.iter().flat_map(|(_, _, places)| places.iter(stages));
        let places = needed.filter(|(stage, _)| !wanted[*stage].is_empty()).collect();
        Self { tensors, places }
    }
}

/// A task a shard: each source tensor is read once for all stages that a run writes.
pub(super) fn tasks(context: &Context) -> Result<Work> {
    let shares = context.ask.shares_of_stages();
    let mut work = Work::default();
    for share in &shares.written {
        add_share(context, share, &mut work)?;
    }
    let mut others = Work::default();
    add_share(context, &shares.expected, &mut others)?;
    work.expect(others);
    Ok(work)
}

/// Tasks of one share, and what each of its ranks reads: all of a stage the same.
fn add_share(context: &Context, share: &Share, work: &mut Work) -> Result<()> {
    let Context { catalog, ask, .. } = context;
    let rank = |pp| Rank { pp, tp: 0, files: 0, bytes: 0, tensor_bytes: 0 };
    let mut ranks: Vec<Rank> = (0..ask.pp).map(rank).collect();
    for (number, shard) in (0..).zip(&catalog.shards) {
        let dealt = Dealt::new(context, shard, share);
        if dealt.places.is_empty() {
            continue;
        }
        let task = task(context, (number, shard), &dealt)?;
        for ((stage, _), output) in dealt.places.iter().zip(&task.outputs) {
            ranks[*stage].add(output);
        }
        work.tasks.push(task);
    }
    ranks.retain(|r| r.files > 0);
    let of_all_tps =
        ranks.into_iter().flat_map(|rank| (0..ask.tp).map(move |tp| Rank { tp, ..rank.clone() }));
    work.ranks.extend(of_all_tps);
    Ok(())
}

/// Places that need a tensor. What no architecture knows goes to every stage.
fn places_of(context: &Context, tensor: &Tensor) -> Places {
    let Context { model, stages, target, ask, .. } = context;
    let last = stages.len() - 1;
    let Some(placed) = model.role_of(weight_of(&tensor.name)) else { return Places::EveryStage };
    let role = placed.rule.role;
    if context.on_every_stage(role) {
        return Places::EveryStage;
    }
    let stage = match placed.layer {
        None if role == Role::Embedding => 0,
        None => last,
        Some(layer) if model.is_mtp(Some(layer)) => last,
        Some(layer) => stages.iter().position(|s| s.contains(&layer)).unwrap_or(last),
    };
    if role == Role::Embedding && is_tied(context, model) {
        return Places::Some((stage, None), Some((last, None)));
    }
    let deals = ask.ep > 1 && target.layout.deals_experts();
    let expert = placed.expert.filter(|_| deals);
    let owner = |expert| {
        (0..ask.ep).find(|rank| experts_of(model.experts(), ask.ep, *rank).contains(&expert))
    };
    Places::Some((stage, expert.and_then(owner)), None)
}

/// Whether the last stage needs the embeddings too, as its head.
fn is_tied(context: &Context, model: &Model) -> bool {
    let tied = context.config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    let head = model.shapes().any(|(rule, _)| rule.role == Role::Head);
    tied == Some(true) || !head
}

fn task(context: &Context, (number, shard): (u32, &Shard), dealt: &Dealt) -> Result<Task> {
    let several = context.stages.len() > 1;
    let mut outputs = Vec::with_capacity(dealt.places.len());
    let mut whole = true;
    for place in &dealt.places {
        let (stage, expert) = *place;
        let path = context.target.layout.shard_path(several.then_some(stage), expert, &shard.name);
        let own = || dealt.tensors.iter().filter(|(_, _, places)| places.contains(place));
        let count = own().count();
        take_tensors(&context.allowance, count, &path)?;
        let output = if count == shard.count {
            restored(context.catalog, shard, path)
        } else {
            whole = false;
            let entries = own().map(|(_, t, _)| entry(t.name.clone(), t.dtype, &t.shape));
            OutputFile::new(path, entries.collect())?
        };
        outputs.push(output.within(&context.allowance)?);
    }
    let mut filled = vec![0; outputs.len()];
    let mut steps = Vec::new();
    for (index, tensor, places) in &dealt.tensors {
        let own = dealt.places.iter().enumerate().filter(|(_, place)| places.contains(place));
        let targets = own.map(|(output, _)| {
            filled[output] += 1;
            (output as u32, filled[output] - 1)
        });
        let targets: Vec<(u32, u32)> = targets.collect();
        if !targets.is_empty() {
            let written = content(context, *index, tensor)
                .map_err(|e| e.tensor(&*tensor.name).at(&shard.name))?;
            whole &= written.source == *index && written.rows.is_none();
            steps.extend(written.steps(tensor, &targets));
        }
    }
    let name = outputs.first().map_or_else(|| shard.name.clone(), |o| o.path.clone());
    // The shards of a folder in pieces are no files that could be linked.
    let linkable = whole && context.catalog.shards_are_files() && context.ask.link != Link::Copy;
    let link = linkable.then_some(LinkedTask { shard: number, mode: context.ask.link });
    Ok(Task { name, outputs, steps, link })
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
    let tensors = catalog.tensors[shard.first..shard.first + shard.count].iter();
    let entries = tensors.map(|t| Entry {
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
