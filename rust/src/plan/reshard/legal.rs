//! Which part of a source tensor each rank gets, and every reason why a layout cannot work: found
//! from shapes alone, before a byte is read.

use std::collections::BTreeSet;
use std::ops::Range;

use super::Context;
use super::gather::Member;
use crate::catalog::CONFIG;
use crate::companion;
use crate::dialect::ConfigFamily;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::parallel::{Heads, Rect, cut, experts_of, padded, stages, uneven};
use crate::model::{Axis, Model, TensorRule};
use crate::numeric::Grid;
use crate::target::{Layout, Rules};

/// Rows and columns of the blocks that share a scale.
const BLOCK: u64 = 128;

/// The cuts of one layout.
#[derive(Clone, Copy)]
pub(super) struct Cuts<'a> {
    context: &'a Context<'a>,
    split: Split<'a>,
}

/// What cuts depend on besides the tensor.
#[derive(Clone, Copy)]
struct Split<'a> {
    model: &'a Model,
    layout: &'a Layout,
    rules: Option<&'a Rules>,
    heads: Option<Heads>,
    tp: u32,
    ep: u32,
}

impl<'a> Split<'a> {
    fn new(context: &Context<'a>, tp: u32, ep: u32) -> Self {
        let Context { model, target, rules, .. } = *context;
        let heads = model.dim("heads").zip(model.dim("kv_heads")).zip(model.dim("head_dim"));
        let heads = heads.map(|((query, kv), dim)| Heads { query, kv, dim });
        Self { model, layout: &target.layout, rules, heads, tp, ep }
    }

    /// Shape as it is cut: the vocabulary padded.
    fn shape(&self, rule: &TensorRule, shape: &[u64]) -> (u64, u64) {
        let rows = shape.first().copied().unwrap_or(1);
        let cols = shape.get(1).copied().unwrap_or(1);
        match rule.tp {
            Axis::Vocab => (padded(rows, self.layout.vocab_multiple), cols),
            _ => (rows, cols),
        }
    }

    /// Experts are dealt out whole.
    fn whole_experts(&self, rule: &TensorRule) -> bool {
        self.ep > 1 && rule.role.is_routed_expert()
    }

    fn held(&self, rule: &TensorRule, shape: &[u64], expert: Option<u32>, rank: u32) -> Vec<Rect> {
        let (rows, cols) = self.shape(rule, shape);
        if self.whole_experts(rule) {
            let own = experts_of(self.model.experts(), self.ep, rank);
            let whole = Rect { rows: 0..rows, cols: 0..cols };
            return if expert.is_some_and(|e| own.contains(&e)) { vec![whole] } else { Vec::new() };
        }
        cut(rule.tp, (rows, cols), self.heads, (u64::from(self.tp), u64::from(rank)))
    }
}

impl<'a> Cuts<'a> {
    pub(super) fn new(context: &'a Context<'a>) -> Self {
        Self { context, split: Split::new(context, context.ask.tp, context.ask.ep) }
    }

    pub(super) fn ranks(&self) -> Range<u32> {
        0..self.split.tp
    }

    /// Number of routed experts.
    pub(super) fn experts(&self) -> u64 {
        u64::from(self.split.model.experts())
    }

    /// For each expert its position among those of `rank`, or -1, as stored I32.
    pub(super) fn expert_map(&self, rank: u32) -> Vec<u8> {
        let Split { model, ep, .. } = self.split;
        let own = experts_of(model.experts(), ep, rank);
        let position = |e| if own.contains(&e) { (e - own.start).cast_signed() } else { -1 };
        (0..model.experts()).flat_map(|e| position(e).to_le_bytes()).collect()
    }

    fn stored(&self, member: &Member) -> &'a [u64] {
        &self.context.catalog.tensor(member.source).shape
    }

    pub(super) fn is_vector(&self, member: &Member) -> bool {
        self.stored(member).len() < 2
    }

    /// Rows and columns of the source tensor.
    pub(super) fn matrix(&self, member: &Member) -> (u64, u64) {
        let shape = self.stored(member);
        (shape.first().copied().unwrap_or(1), shape.get(1).copied().unwrap_or(1))
    }

    /// What `rank` holds of a source tensor. Rows of the vocabulary may end beyond it.
    pub(super) fn of(&self, member: &Member, rank: u32) -> Vec<Rect> {
        let weight = member.placed.shape.filter(|_| member.scale);
        let shape = weight.unwrap_or_else(|| self.stored(member));
        let held = self.split.held(member.placed.rule, shape, member.placed.expert, rank);
        if !member.scale {
            return held;
        }
        let blocks = |range: Range<u64>| range.start / BLOCK..range.end.div_ceil(BLOCK);
        held.into_iter().map(|r| Rect { rows: blocks(r.rows), cols: blocks(r.cols) }).collect()
    }

    /// Rows of `rank`'s part that lie beyond the end of the source tensor.
    pub(super) fn padding(&self, member: &Member, rank: u32) -> u64 {
        let (rows, _) = self.matrix(member);
        let beyond = |r: Rect| r.rows.end.saturating_sub(r.rows.start.max(rows));
        self.of(member, rank).into_iter().map(beyond).sum()
    }
}

/// Fails for checkpoints that the target cannot hold whatever the layout, or that are incomplete.
pub(super) fn refuse_source(context: &Context) -> Result<()> {
    let set =
        |key: &str| context.config.get(key).and_then(serde_json::Value::as_bool) == Some(true);
    let config = || context.catalog.root.path().join(CONFIG);
    if let Some(key) = ["tie_word_embeddings", "norm_head"].into_iter().find(|key| set(key)) {
        return Err(Error::impossible(format!("{key} is not supported by reshard")).at(config()));
    }
    if context.ask.keep_mtp {
        return Err(Error::impossible(format!(
            "{} loads no MTP layers this way, so --keep-mtp cannot work",
            context.target.engine
        ))
        .hint("leave out --keep-mtp, or use --target hf"));
    }
    if context.ask.format.is_some() {
        let dialect = context.request.load_dialect()?;
        if dialect.config_family() != ConfigFamily::Fp8 {
            return Err(Error::impossible(format!(
                "dialect {} is not supported for {}",
                dialect.name(),
                context.target.name
            ))
            .hint("choose --dialect deepseek or ling"));
        }
    }
    refuse_scales(context)?;
    refuse_gaps(context)
}

fn refuse_scales(context: &Context) -> Result<()> {
    let catalog = context.catalog;
    let lookup = |name: &str| {
        let found = catalog.tensor(catalog.find(name)?);
        Some((found.dtype, &*found.shape))
    };
    for (index, tensor) in catalog.tensors.iter().enumerate() {
        if companion::is_scale(&tensor.name) {
            let weight = catalog.find(companion::weight_of(&tensor.name));
            if weight.is_none_or(|weight| catalog.tensor(weight).dtype != Dtype::F8E4M3) {
                return Err(Error::invalid("a scale without an FP8 weight")
                    .tensor(&*tensor.name)
                    .at(catalog.path_of(index as u32))
                    .hint("shards of two downloads are mixed; download one revision again"));
            }
        }
        if !matches!(tensor.dtype, Dtype::F8E4M3 | Dtype::F8E5M2) {
            continue;
        }
        let at = |e: Error| e.tensor(&*tensor.name).at(catalog.path_of(index as u32));
        let found = companion::find(&tensor.name, &tensor.shape, lookup)
            .map_err(|problem| at(Error::invalid(problem)))?;
        let block = found.grid == Grid::Block { rows: BLOCK as usize, cols: BLOCK as usize };
        if !block || !found.name.ends_with("_scale_inv") {
            return Err(at(Error::impossible(format!(
                "FP8 of compressed-tensors is not supported for {}",
                context.target.name
            ))
            .hint("turn it into BF16 first: `lingconv dequantize`, then `reshard --format fp8`")));
        }
    }
    Ok(())
}

/// Missing tensors and shapes that config.json does not imply.
fn refuse_gaps(context: &Context) -> Result<()> {
    let (catalog, model) = (context.catalog, context.model);
    let mut problems = Vec::new();
    for expected in model.expected().filter(|e| !model.is_mtp(e.layer)) {
        let Some(found) = catalog.find(&expected.name) else {
            problems.push(format!("{}: in no file", expected.name));
            continue;
        };
        let shape = &catalog.tensor(found).shape;
        if **shape != *expected.shape {
            let wanted = expected.shape;
            problems.push(format!("{}: {shape:?}, config.json implies {wanted:?}", expected.name));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::invalid(format!("{} tensors are missing or of another shape", problems.len()))
        .at(catalog.root.path())
        .details(problems)
        .hint("the download is incomplete: check it with `lingconv verify`"))
}

/// Fails with all reasons if the layout cannot work, and names one that does.
pub(super) fn refuse_layout(context: &Context) -> Result<()> {
    let Context { ask, target, .. } = context;
    if ask.ep != 1 && ask.ep != ask.tp {
        return Err(Error::impossible(format!(
            "{} takes an expert parallel size equal to the tensor parallel size: --ep {} with --tp {}",
            target.engine, ask.ep, ask.tp
        ))
        .hint(format!(
            "use --ep {}, or --target hf --ep {}, whose files the engine picks its experts from \
             with any data parallel size",
            ask.tp, ask.ep
        )));
    }
    let fp8 = has_blocks(context);
    let found = problems(&Split::new(context, ask.tp, ask.ep), fp8);
    if found.is_empty() {
        return Ok(());
    }
    let mut error = Error::impossible(format!(
        "{} roles cannot be cut for TP {}{}",
        found.len(),
        ask.tp,
        if ask.ep > 1 { format!(" with EP {}", ask.ep) } else { String::new() }
    ))
    .at(context.catalog.root.path())
    .details(found);
    if let Some(works) = suggestion(context, fp8) {
        error = error.hint(works);
    }
    Err(error)
}

/// Whether weights are or become FP8 in blocks that share a scale.
pub(super) fn has_blocks(context: &Context) -> bool {
    context.ask.format.is_some() || context.catalog.tensors.iter().any(|t| t.dtype == Dtype::F8E4M3)
}

/// Every reason why the layout asked for cannot work, but for the stages.
pub(super) fn reasons(context: &Context, fp8: bool) -> Vec<String> {
    problems(&Split::new(context, context.ask.tp, context.ask.ep), fp8)
}

/// Every role that cannot be cut, with its numbers.
fn problems(split: &Split, fp8: bool) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for (rule, shape) in split.model.shapes() {
        let Some(why) = problem(split, rule, shape, fp8 && rule.quantize) else { continue };
        let layers = split.model.layers_text(rule);
        let name = rule.name(layers, "*");
        if seen.insert(name.clone()) {
            lines.push(format!("{name}  {why}"));
        }
    }
    if split.ep > split.model.experts() {
        lines.push(format!("{} experts for {} ranks", split.model.experts(), split.ep));
    }
    lines
}

fn problem(split: &Split, rule: &TensorRule, shape: &[u64], fp8: bool) -> Option<String> {
    let (rows, cols) = split.shape(rule, shape);
    let tp = u64::from(split.tp);
    let whole = split.whole_experts(rule);
    if !whole && let Some(why) = uneven(rule.tp, (rows, cols), split.heads, tp) {
        return Some(why);
    }
    let kv = split.heads.map(|h| h.kv).filter(|kv| *kv < tp);
    let copied = matches!(rule.tp, Axis::Qkv | Axis::Kv) && kv.is_some();
    if copied && split.rules.is_some_and(|r| !r.kv_replication) {
        let heads = kv.unwrap_or_default();
        return Some(format!("{heads} KV heads / {tp}, and the engine does not replicate them"));
    }
    let divisor = if whole { 1 } else { tp };
    let (side, what) = match rule.tp {
        Axis::Col => (cols, "columns"),
        _ => (rows, "rows"),
    };
    let multiple = split.layout.expert_multiple;
    let each = side / divisor;
    if rule.role.is_routed_expert() && !each.is_multiple_of(multiple) {
        return Some(format!(
            "{side} {what} / {divisor} = {each}, which the engine pads to a multiple of {multiple}"
        ));
    }
    // The last of fused weights may end within a block, as engines allow it.
    let followed = rule.tp == Axis::Qkv || split.rules.is_some_and(|r| r.is_followed(rule.role));
    let off_grid = fp8
        && split.held(rule, shape, Some(0), 0).iter().any(|rect| {
            let off = |end: u64, all: u64| end != all && !end.is_multiple_of(BLOCK);
            off(rect.rows.end, rows)
                || off(rect.cols.end, cols)
                || (followed && !rect.rows.end.is_multiple_of(BLOCK))
        });
    off_grid.then(|| format!("{side} {what} / {divisor} = {each}, FP8 blocks have {BLOCK}"))
}

/// A command for as many ranks that would work.
fn suggestion(context: &Context, fp8: bool) -> Option<String> {
    let Context { ask, model, target, catalog, .. } = context;
    let all = u64::from(ask.tp) * u64::from(ask.pp);
    let mut sizes: Vec<u32> =
        (1..=ask.tp).filter(|tp| all.is_multiple_of(u64::from(*tp))).collect();
    sizes.reverse();
    let works = |tp: u32, ep: u32| {
        let pp = (all / u64::from(tp)) as u32;
        stages(model.layers(), pp, &[], target.layout.remainder).is_ok()
            && problems(&Split::new(context, tp, ep), fp8).is_empty()
    };
    let found = sizes.into_iter().find_map(|tp| {
        let asked = if ask.ep > 1 { tp } else { 1 };
        [asked, tp].into_iter().find(|ep| works(tp, *ep)).map(|ep| (tp, ep))
    });
    let (tp, ep) = found?;
    let expert = if ep > 1 { format!(" --ep {ep}") } else { String::new() };
    let format = if ask.format.is_some() { " --format fp8" } else { "" };
    Some(format!(
        "the same {all} ranks, every cut even: `lingconv reshard {} --tp {tp} --pp {}{expert}{format}`",
        catalog.root.path().display(),
        all / u64::from(tp)
    ))
}
