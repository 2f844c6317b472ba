//! The proof of a plan, independent of the planners.
//!
//! It knows only what the executor will do, and walks every output as the executor would fill it:
//! every byte is written exactly once, in order; every source tensor is used or listed as dropped;
//! every rectangle lies inside its source and on the number format's grid; dtypes, shapes and
//! sizes agree. A plan that fails is a bug, so every failure is
//! [`Kind::Internal`](crate::error::Kind::Internal); but for its paths, which the world names.

use super::data::{OutputFile, Plan, Task};
use super::names;
use super::step::{Step, Target};
use crate::allowance::Allowance;
use crate::catalog::{Catalog, Tensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::header::{self, Entry};
use crate::numeric::{Grid, StoredScale};
use crate::transform::{Op, float_of, grid_steps, scale_dtype_of};

/// Proves `plan` against `catalog`.
pub fn check(catalog: &Catalog, plan: &Plan) -> Result<()> {
    let broken =
        |e: Error| Error { message: format!("the plan does not hold: {}", e.message), ..e };
    names::check(catalog, plan)?;
    let mut used = vec![false; catalog.tensors.len()];
    for task in &plan.tasks {
        check_link(catalog, task).map_err(|e| broken(e.at(&task.name)))?;
        Walk::new(task)?
            .run(catalog, !plan.is_partial(), &mut used)
            .map_err(|e| broken(e.at(&task.name)))?;
    }
    check_use(catalog, plan, &used).map_err(broken)
}

fn fail(what: impl Into<String>) -> Error {
    Error::internal(what).hint("please report this with the command and the source's name")
}

/// Outputs that are linked have the source file's header, and its tensors where it has them.
fn check_link(catalog: &Catalog, task: &Task) -> Result<()> {
    let Some(link) = task.link else { return Ok(()) };
    let shard = catalog.shards.get(link.shard as usize).filter(|_| catalog.shards_are_files());
    let shard = shard.ok_or_else(|| fail("a link to no file"))?;
    let held = &catalog.tensors[shard.first..shard.first + shard.count];
    let same_place = |(entry, tensor): (&Entry, &Tensor)| {
        entry.name == tensor.name && shard.data_start + entry.begin == tensor.offset
    };
    for output in &task.outputs {
        let header = *output.header()? == **shard.raw_header && output.size == shard.stamp.size;
        let tensors = output.tensors.len() == held.len();
        if !header || !tensors || !output.tensors.iter().zip(held).all(same_place) {
            return Err(fail("a linked output is not the file that it is linked to"));
        }
    }
    let copied = |step: &Step| {
        let same = |t: &Target| {
            (t.rows.clone(), t.cols.clone()) == (0..step.rows, 0..step.cols)
                && shard.first + t.tensor as usize == step.source as usize
        };
        step.op.is_copy() && step.targets.iter().all(same)
    };
    if task.steps.iter().all(copied) { Ok(()) } else { Err(fail("a link changes what it holds")) }
}

fn check_use(catalog: &Catalog, plan: &Plan, used: &[bool]) -> Result<()> {
    let mut dropped = vec![false; catalog.tensors.len()];
    for tensor in plan.dropped.iter().map(|d| d.tensor).chain(plan.elsewhere.iter().copied()) {
        dropped[tensor as usize] = true;
    }
    let wrong = used.iter().zip(&dropped).position(|(used, dropped)| used == dropped);
    match wrong {
        None => Ok(()),
        Some(i) => {
            let what = if used[i] { "used, yet listed as dropped" } else { "lost" };
            Err(fail(format!("a source tensor is {what}")).tensor(&*catalog.tensors[i].name))
        }
    }
}

/// How far an output is filled.
struct Cursor<'a> {
    output: &'a OutputFile,
    tensor: usize,
    bytes: u64,
    /// Bytes of scales waiting for a tensor behind the current one.
    deferred: Vec<(usize, u64)>,
}

struct Walk<'a> {
    task: &'a Task,
    cursors: Vec<Cursor<'a>>,
}

impl<'a> Walk<'a> {
    fn new(task: &'a Task) -> Result<Self> {
        let mut cursors = Vec::with_capacity(task.outputs.len());
        for output in &task.outputs {
            check_layout(output).map_err(|e| e.at(&output.path))?;
            cursors.push(Cursor { output, tensor: 0, bytes: 0, deferred: Vec::new() });
        }
        Ok(Self { task, cursors })
    }

    fn run(mut self, catalog: &Catalog, whole: bool, used: &mut [bool]) -> Result<()> {
        let mut taken: Vec<&Step> = Vec::with_capacity(self.task.steps.len());
        for step in &self.task.steps {
            let source =
                catalog.tensors.get(step.source as usize).ok_or_else(|| fail("no such source"))?;
            check_source(catalog, step, source).map_err(|e| e.tensor(&*source.name))?;
            check_rectangles(step).map_err(|e| e.tensor(&*source.name))?;
            taken.push(step);
            for target in &step.targets {
                self.fill(step, source, target).map_err(|e| e.tensor(&*source.name))?;
            }
            used[step.source as usize] = true;
            if let Op::Decode { scale, .. } = step.op {
                used[scale as usize] = true;
            }
        }
        taken.sort_by_key(|step| step.source);
        for steps in taken.chunk_by(|a, b| a.source == b.source).filter(|_| whole) {
            let source = &catalog.tensors[steps[0].source as usize];
            check_cover(steps).map_err(|e| e.tensor(&*source.name))?;
        }
        for cursor in &mut self.cursors {
            cursor.pass_filled()?;
            if cursor.tensor != cursor.output.tensors.len() {
                let name = &cursor.output.tensors[cursor.tensor].name;
                return Err(fail("an output tensor is not filled").tensor(&**name));
            }
        }
        Ok(())
    }

    fn fill(&mut self, step: &Step, source: &Tensor, target: &Target) -> Result<()> {
        let cursor = self
            .cursors
            .get_mut(target.output as usize)
            .ok_or_else(|| fail("a target names no output of its task"))?;
        cursor.pass_filled()?;
        let (rows, cols) =
            (target.rows.end - target.rows.start, target.cols.end - target.cols.start);
        let at = target.tensor as usize;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        if cursor.tensor != at {
            return Err(fail(format!("tensor {at} is written while {} is due", cursor.tensor)));
        }
        let tensor = &cursor.output.tensors[at];
        let expected = match step.op {
            Op::Copy { .. } => source.dtype,
            Op::Widen { .. } => Dtype::F32,
            Op::Encode { .. } => Dtype::F8E4M3,
            Op::Decode { .. } => Dtype::BF16,
        };
        if tensor.dtype != expected {
            return Err(fail(format!("{} becomes {}, not {expected}", source.dtype, tensor.dtype)));
        }
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(step.op.result_unit()))
            .ok_or_else(|| fail("a target's size overflows"))?;
        cursor.bytes += bytes;
        if cursor.bytes > tensor.bytes() {
            return Err(fail("an output tensor is written beyond its end"));
        }
        match (step.op, target.scale) {
            (Op::Encode { encoding, .. }, Some(scale)) => {
                let (high, wide) = encoding.grid.scale_shape(rows as usize, cols as usize);
                let width = match encoding.rule.stored {
                    StoredScale::F32 => Dtype::F32,
                    StoredScale::Bf16 => Dtype::BF16,
                };
                cursor.defer(scale as usize, (high * wide) as u64, width)
            }
            (Op::Encode { .. }, None) => Err(fail("an encoded tensor has no place for its scales")),
            (_, Some(_)) => Err(fail("scales of a step that makes none")),
            (_, None) => Ok(()),
        }
    }
}

impl Cursor<'_> {
    /// Moves past complete tensors, taking scales that were waiting for them, constants and padding.
    fn pass_filled(&mut self) -> Result<()> {
        while let Some(tensor) = self.output.tensors.get(self.tensor) {
            if let Some(i) = self.deferred.iter().position(|d| d.0 == self.tensor) {
                if self.bytes != 0 {
                    return Err(fail("scales and data in one tensor").tensor(&*tensor.name));
                }
                self.bytes = self.deferred.swap_remove(i).1;
            }
            if let Some(fill) = self.output.fill_of(self.tensor)
                && self.bytes + fill.bytes == tensor.bytes()
            {
                self.bytes += fill.bytes;
            }
            if self.bytes != tensor.bytes() {
                return Ok(());
            }
            self.tensor += 1;
            self.bytes = 0;
        }
        if self.deferred.is_empty() { Ok(()) } else { Err(fail("scales are written nowhere")) }
    }

    fn defer(&mut self, tensor: usize, elements: u64, dtype: Dtype) -> Result<()> {
        let held = self.output.tensors.get(tensor).ok_or_else(|| fail("no such scale tensor"))?;
        if tensor <= self.tensor || held.dtype != dtype {
            return Err(
                fail("a scale tensor of the wrong dtype or before its weight").tensor(&*held.name)
            );
        }
        let bytes = elements * dtype.bits() / 8;
        match self.deferred.iter_mut().find(|d| d.0 == tensor) {
            Some(d) => d.1 += bytes,
            None => self.deferred.push((tensor, bytes)),
        }
        Ok(())
    }
}

/// The header as it will be written parses back, strictly, and says the same.
fn check_layout(output: &OutputFile) -> Result<()> {
    let bytes = output.header()?;
    let (_, json) = bytes.split_at(header::PREFIX as usize);
    let size = bytes.len() as u64;
    if size != output.data_start || output.size < size {
        return Err(fail("an output's size is not that of its header and data"));
    }
    let mut by_name: Vec<u32> = (0..output.tensors.len() as u32).collect();
    let name_of = |i: &u32| &*output.tensors[*i as usize].name;
    by_name.sort_unstable_by_key(name_of);
    // One by one: a second list of as many tensors would double what a plan takes.
    let (mut seen, mut same) = (vec![false; by_name.len()], true);
    header::each_entry(json, &Allowance::default(), |read| {
        same &= by_name.binary_search_by(|i| name_of(i).cmp(&read.name)).is_ok_and(|at| {
            let first = !std::mem::replace(&mut seen[at], true);
            first && output.tensors[by_name[at] as usize] == read
        });
    })?;
    if !same || seen.contains(&false) {
        return Err(fail("an output's header does not read back"));
    }
    let mut by_range = by_name;
    by_range.sort_unstable_by_key(|i| {
        let tensor = &output.tensors[*i as usize];
        (tensor.begin, tensor.end)
    });
    header::check_ranges(by_range.iter().map(|i| &output.tensors[*i as usize]), output.size - size)
}

fn check_source(catalog: &Catalog, step: &Step, source: &Tensor) -> Result<()> {
    let size = step.rows.checked_mul(step.cols).and_then(|n| n.checked_mul(step.op.source_unit()));
    if size != Some(source.bytes) {
        return Err(fail(format!(
            "{} rows × {} columns are not the source's {} bytes",
            step.rows, step.cols, source.bytes
        )));
    }
    match step.op {
        Op::Copy { .. } => Ok(()),
        Op::Widen { float } | Op::Encode { float, .. } if float_of(source.dtype) == Some(float) => {
            Ok(())
        }
        Op::Decode { grid, scale, scale_dtype } if source.dtype == Dtype::F8E4M3 => {
            let companion =
                catalog.tensors.get(scale as usize).ok_or_else(|| fail("no such scale"))?;
            let (high, wide) = grid.scale_shape(step.rows as usize, step.cols as usize);
            let count: u64 = companion.shape.iter().product();
            if scale_dtype_of(companion.dtype) == Some(scale_dtype) && count == (high * wide) as u64
            {
                Ok(())
            } else {
                Err(fail("a scale of the wrong dtype or size").tensor(&*companion.name))
            }
        }
        _ => Err(fail(format!("{} of a {} tensor", step.op.name(), source.dtype))),
    }
}

/// Rectangles lie inside the matrix and on the grid, and follow one another within each output.
fn check_rectangles(step: &Step) -> Result<()> {
    let steps = step.op.grid().map_or((1, 1), |grid: Grid| grid_steps(grid));
    let on_grid = |edge: u64, end: u64, unit: u64| {
        edge == 0 || edge == end || (unit > 0 && edge.is_multiple_of(unit))
    };
    let mut reached: Vec<(u32, u64)> = Vec::new();
    for t in &step.targets {
        let inside = t.rows.start <= t.rows.end
            && t.rows.end <= step.rows
            && t.cols.start <= t.cols.end
            && t.cols.end <= step.cols;
        let aligned = [t.rows.start, t.rows.end].iter().all(|e| on_grid(*e, step.rows, steps.0))
            && [t.cols.start, t.cols.end].iter().all(|e| on_grid(*e, step.cols, steps.1));
        if !inside || !aligned {
            return Err(fail("a rectangle is out of bounds or off the grid"));
        }
        match reached.iter_mut().find(|r| r.0 == t.output) {
            Some(r) if t.rows.start < r.1 => {
                return Err(fail("rectangles of one output do not follow one another"));
            }
            Some(r) => r.1 = t.rows.end,
            None => reached.push((t.output, t.rows.end)),
        }
    }
    Ok(())
}

/// The rectangles of all steps of one source together cover its matrix.
fn check_cover(steps: &[&Step]) -> Result<()> {
    let step = steps[0];
    if steps.iter().any(|s| (s.rows, s.cols) != (step.rows, step.cols)) {
        return Err(fail("a source is read as matrices of different shapes"));
    }
    let targets = || steps.iter().flat_map(|s| &s.targets);
    let cuts = |edges: fn(&Target) -> [u64; 2], end: u64| {
        let mut cuts: Vec<u64> = targets().flat_map(edges).chain([0, end]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    };
    let (rows, cols) = (
        cuts(|t| [t.rows.start, t.rows.end], step.rows),
        cuts(|t| [t.cols.start, t.cols.end], step.cols),
    );
    let covered = rows.windows(2).all(|r| {
        let over: Vec<&Target> = targets().filter(|t| t.rows.contains(&r[0])).collect();
        cols.windows(2).all(|c| over.iter().any(|t| t.cols.contains(&c[0])))
    });
    if covered { Ok(()) } else { Err(fail("a part of the source goes nowhere")) }
}
