//! From output tensors to tasks: parts of at most one layer, one file a rank. What every stage has is
//! read once for all of them, and stands in the first parts of each.

use std::collections::BTreeMap;
use std::ops::Range;

use super::gather::{Constant, Fused, Gathered, Group, Member};
use super::legal::Cuts;
use super::request::Share;
use super::{Context, Work};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::header::Entry;
use crate::model::parallel::Rect;
use crate::numeric::{Grid, StoredScale};
use crate::plan::data::{Fill, OutputFile, Rank, Task, take_tensors};
use crate::plan::shard_task::{entry, file_order};
use crate::plan::step::{Step, Target};

/// An output tensor with its name, and its scales if encoding makes them.
pub(super) type Unit<'a> = (&'a str, &'a Fused<'a>);

/// An entry of a part: of a unit, its weight or its scales; its shape for every rank.
struct Row<'a> {
    unit: Unit<'a>,
    scales: bool,
    name: &'a str,
    dtype: Dtype,
    shapes: Vec<Vec<u64>>,
}

/// Plans the tasks of all ranks that are written, and lists the files of the others.
pub(super) fn tasks(context: &Context, gathered: &Gathered) -> Result<Work> {
    let cuts = Cuts::new(context);
    let shares = context.ask.shares();
    let mut work = Work::default();
    for share in &shares.written {
        add_share(context, &cuts, gathered, share, &mut work)?;
    }
    let mut others = Work::default();
    add_share(context, &cuts, gathered, &shares.expected, &mut others)?;
    work.expect(others);
    Ok(work)
}

/// Tasks of one share, and what each of its ranks reads.
fn add_share(
    context: &Context,
    cuts: &Cuts,
    gathered: &Gathered,
    share: &Share,
    work: &mut Work,
) -> Result<()> {
    let rank = |pp, tp| Rank { pp, tp, files: 0, bytes: 0, tensor_bytes: 0 };
    let of_stage = |(pp, tps): (u32, &Vec<u32>)| tps.iter().map(|tp| rank(pp, *tp)).collect();
    let mut ranks: Vec<Rank> = (0..).zip(share).flat_map::<Vec<_>, _>(of_stage).collect();
    if ranks.is_empty() {
        return Ok(());
    }
    let parts_of = |stage: Option<u32>| -> Vec<Vec<Unit>> {
        let groups = gathered.groups.iter().filter(|(g, _)| stage_of(context, **g) == stage);
        groups.flat_map(|(_, tensors)| parts(context, cuts, tensors)).collect()
    };
    let common = parts_of(None);
    let mut add = |units: &[Unit], part: usize, ranks: &mut [Rank]| -> Result<()> {
        let task = task(context, cuts, units, part, ranks)?;
        for (rank, output) in ranks.iter_mut().zip(&task.outputs) {
            rank.add(output);
        }
        work.tasks.push(task);
        Ok(())
    };
    for (part, units) in common.iter().enumerate() {
        add(units, part, &mut ranks)?;
    }
    for ranks in ranks.chunk_by_mut(|one, next| one.pp == next.pp) {
        for (part, units) in (common.len()..).zip(parts_of(Some(ranks[0].pp))) {
            add(&units, part, ranks)?;
        }
    }
    work.ranks.append(&mut ranks);
    Ok(())
}

/// Cuts a group's tensors into parts of about the size asked for. Scales stay with their weight, as
/// they do where encoding makes them.
fn parts<'a>(
    context: &Context,
    cuts: &Cuts,
    tensors: &'a BTreeMap<String, Fused<'a>>,
) -> Vec<Vec<Unit<'a>>> {
    let mut parts: Vec<Vec<Unit>> = Vec::new();
    let mut room = 0;
    for (name, fused) in tensors {
        let weight = name.strip_suffix("_scale_inv");
        let with_last = weight.is_some_and(|weight| {
            parts.last().and_then(|part| part.last()).is_some_and(|(last, _)| *last == weight)
        });
        if room == 0 && !with_last {
            parts.push(Vec::new());
            room = context.ask.shard_size;
        }
        let bytes = rows_of((name, fused), cuts).iter().map(Row::bytes).sum::<u64>();
        room = room.saturating_sub(bytes);
        parts.last_mut().into_iter().for_each(|part| part.push((name, fused)));
    }
    parts
}

/// The stage that holds a group; `None` if every stage does.
pub(super) fn stage_of(context: &Context, group: Group) -> Option<u32> {
    let stage = match group {
        Group::EveryStage => return None,
        Group::Before => 0,
        Group::Layer(layer) => {
            context.stages.iter().position(|s| s.contains(&layer)).unwrap_or_default()
        }
        Group::After => context.stages.len() - 1,
    };
    Some(stage as u32)
}

fn task(
    context: &Context,
    cuts: &Cuts,
    units: &[Unit],
    part: usize,
    ranks: &[Rank],
) -> Result<Task> {
    let mut rows: Vec<Row> = units.iter().flat_map(|unit| rows_of(*unit, cuts)).collect();
    rows.sort_by_cached_key(|row| (row.order(), row.name.to_owned()));
    let mut outputs = Vec::with_capacity(ranks.len());
    for &Rank { pp, tp, .. } in ranks {
        let stage = (context.stages.len() > 1).then_some(pp);
        let path = context.target.layout.path(stage, tp, part);
        take_tensors(&context.allowance, rows.len(), &path)?;
        let entries: Vec<Entry> =
            rows.iter().map(|r| entry(r.name, r.dtype, &r.shapes[tp as usize])).collect();
        let mut output = OutputFile::new(path, entries)?.within(&context.allowance)?;
        output.fills = fills(&rows, &output.tensors, cuts, tp);
        outputs.push(output);
    }
    let mut steps = Vec::new();
    for (tensor, row) in rows.iter().enumerate().filter(|(_, row)| !row.scales) {
        let scale = row.unit.1.encoded.as_ref().and_then(|(name, _)| {
            rows.iter().position(|r| r.scales && r.name == name).map(|at| at as u32)
        });
        for member in &row.unit.1.members {
            let place = (tensor as u32, scale);
            match router_rows(context, member, cuts)? {
                None => steps.push(step(member, cuts, place, ranks)),
                Some(runs) => steps.extend(runs.into_iter().map(|run| {
                    let mut step = step(member, cuts, place, ranks);
                    step.targets.iter_mut().for_each(|target| target.rows = run.clone());
                    step
                })),
            }
        }
    }
    steps.retain(|s| !s.targets.is_empty());
    Ok(Task { name: outputs[0].path.clone(), outputs, steps, link: None })
}

/// Rows of a router's tensor in the order of the experts, where that is not the original's.
fn router_rows(context: &Context, member: &Member, cuts: &Cuts) -> Result<Option<Vec<Range<u64>>>> {
    let Some(experts) = &context.experts else { return Ok(None) };
    let rows = experts.rows(member.placed, cuts.matrix(member).0);
    rows.map_err(|e| e.tensor(&*context.catalog.tensor(member.source).name))
}

fn step(member: &Member, cuts: &Cuts, (tensor, scale): (u32, Option<u32>), ranks: &[Rank]) -> Step {
    let (rows, cols) = cuts.matrix(member);
    let targets = ranks.iter().zip(0..).flat_map(|(rank, output)| {
        let target = move |Rect { rows: r, cols: c }: Rect| {
            let inside = |range: Range<u64>, end: u64| range.start.min(end)..range.end.min(end);
            Target { output, tensor, rows: inside(r, rows), cols: inside(c, cols), scale }
        };
        let held = cuts.of(member, rank.tp).into_iter().map(target);
        held.filter(|t| t.rows.start < t.rows.end)
    });
    Step { source: member.source, rows, cols, op: member.op, targets: targets.collect() }
}

/// Constants, and padding of the vocabulary.
fn fills(rows: &[Row], entries: &[Entry], cuts: &Cuts, rank: u32) -> Vec<Fill> {
    let mut fills = Vec::new();
    for (tensor, (row, entry)) in rows.iter().zip(entries).enumerate() {
        let fill = |bytes, pattern| Fill { tensor: tensor as u32, bytes, pattern };
        if let Some(constant) = row.unit.1.constant {
            let pattern = match constant {
                Constant::Scalar(value) => value.to_le_bytes().to_vec(),
                Constant::ExpertMap => cuts.expert_map(rank),
            };
            fills.push(fill(entry.bytes(), pattern));
            continue;
        }
        let missing: u64 = row.unit.1.members.iter().map(|m| cuts.padding(m, rank)).sum();
        if missing > 0 && !row.scales {
            let width = entry.bytes() / entry.shape.first().copied().unwrap_or(1).max(1);
            fills.push(fill(missing * width, vec![0]));
        }
    }
    fills
}

impl Row<'_> {
    /// Bytes for the rank that holds most.
    fn bytes(&self) -> u64 {
        self.shapes.iter().filter_map(|s| self.dtype.byte_len(s)).max().unwrap_or(0)
    }

    fn order(&self) -> u32 {
        file_order(self.shapes.iter().filter_map(|s| self.dtype.byte_len(s)))
    }
}

/// Bytes of these tensors in the files of each rank, without headers.
pub(super) fn bytes_of<'a>(units: impl Iterator<Item = Unit<'a>>, cuts: &Cuts) -> Vec<u64> {
    let mut bytes = vec![0; cuts.ranks().len()];
    for row in units.flat_map(|unit| rows_of(unit, cuts)) {
        for (sum, shape) in bytes.iter_mut().zip(&row.shapes) {
            *sum += row.dtype.byte_len(shape).unwrap_or(0);
        }
    }
    bytes
}

/// The entries of a unit.
fn rows_of<'a>(unit: Unit<'a>, cuts: &Cuts) -> Vec<Row<'a>> {
    let (name, fused) = unit;
    let shapes = |grid: Option<Grid>| {
        cuts.ranks().map(|rank| shape(fused, cuts, rank, grid)).collect::<Vec<_>>()
    };
    let row = |name, dtype, scales, grid| Row { unit, scales, name, dtype, shapes: shapes(grid) };
    let mut rows = vec![row(name, fused.dtype, false, None)];
    if let Some((name, encoding)) = &fused.encoded {
        let dtype = match encoding.rule.stored {
            StoredScale::F32 => Dtype::F32,
            StoredScale::Bf16 => Dtype::BF16,
        };
        rows.push(row(name, dtype, true, Some(encoding.grid)));
    }
    rows
}

/// Shape of an output tensor for `rank`; with `grid`, of its scales.
fn shape(fused: &Fused, cuts: &Cuts, rank: u32, grid: Option<Grid>) -> Vec<u64> {
    match fused.constant {
        Some(Constant::Scalar(_)) => return Vec::new(),
        Some(Constant::ExpertMap) => return vec![cuts.experts()],
        None => {}
    }
    let (mut rows, mut cols, mut experts) = (0, 0, 0);
    let mut last = None;
    for member in &fused.members {
        let held = cuts.of(member, rank);
        if !held.is_empty() && last.replace(member.placed.expert) != Some(member.placed.expert) {
            experts += 1;
        }
        for Rect { rows: r, cols: c } in held {
            let (high, wide) = (r.end - r.start, c.end - c.start);
            let (high, wide) = match grid {
                Some(grid) => {
                    let (high, wide) = grid.scale_shape(high as usize, wide as usize);
                    (high as u64, wide as u64)
                }
                None => (high, wide),
            };
            rows += high;
            cols = wide;
        }
    }
    match (fused.stack, fused.members.first().is_some_and(|m| cuts.is_vector(m))) {
        (true, _) => vec![experts, rows / experts.max(1), cols],
        (false, true) => vec![rows],
        (false, false) => vec![rows, cols],
    }
}
