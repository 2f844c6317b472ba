//! `fit`: which splits of a number of GPUs work, and how much their fullest rank holds. From
//! headers alone, with the planner's own rules and cuts.
//!
//! Layers whose tensors have the same shapes are cut alike, so each kind of layer is cut once for
//! every split: all splits of 32 GPUs cost less than one plan.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::gather::{Fused, Gathered, Group, Member, gather};
use super::legal::{self, Cuts};
use super::tasks::{Unit, bytes_of};
use super::{Context, Loaded, Reshard};
use crate::catalog::Catalog;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::parallel::MAX_RANKS;
use crate::plan::quantize;
use crate::plan::request::Request;

/// Bytes of an element of the KV cache, which engines keep in BF16 unless they are told otherwise.
const KV_ELEMENT: u64 = 2;

/// What the GPUs are and what they have to hold besides the weights.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// GPUs in all: TP × PP.
    pub gpus: u32,
    /// Bytes of one GPU.
    pub gpu_memory: u64,
    /// Share of them that the engine may use.
    pub utilization: f64,
    /// Tokens of a sequence; without, what config.json says the model can take.
    pub max_model_len: Option<u64>,
    /// Sequences of that length at a time.
    pub max_num_seqs: u64,
}

/// All splits of the GPUs.
#[derive(Debug, Serialize)]
pub struct Fit {
    /// Name of the target.
    pub target: String,
    /// GPUs in all.
    pub gpus: u32,
    /// Bytes that weights and KV cache may take of one GPU.
    pub usable: u64,
    /// Tokens of a sequence.
    pub max_model_len: u64,
    /// Sequences at a time.
    pub max_num_seqs: u64,
    /// Bytes of a token in the KV caches of all ranks together, none of them replicated; `None` if
    /// the architecture does not say.
    pub kv_bytes_per_token: Option<u64>,
    /// What to know of the source.
    pub warnings: Vec<String>,
    /// One a split, by rising TP.
    pub rows: Vec<Split>,
}

/// A split and its fullest rank.
#[derive(Debug, Serialize)]
pub struct Split {
    /// Tensor parallel size.
    pub tp: u32,
    /// Pipeline parallel size.
    pub pp: u32,
    /// Expert parallel size.
    pub ep: u32,
    /// Ranks that hold the same part of the KV cache.
    pub kv_copies: u32,
    /// Bytes of the weights of the rank that has most of them; 0 for a split that cannot work.
    pub weights: u64,
    /// Bytes of the KV cache of the rank that has most of it.
    pub kv_cache: u64,
    /// Bytes of weights and KV cache of the fullest rank.
    pub bytes: u64,
    /// Whether the split can work and every rank has room for both.
    pub fits: bool,
    /// Every reason why it cannot work.
    pub problems: Vec<String>,
}

impl Question {
    /// Parses a question. [`Kind::Usage`](crate::error::Kind::Usage) for numbers that make no sense.
    pub fn parse(json: &str) -> Result<Self> {
        let question: Self = serde_json::from_str(json)
            .map_err(|e| Error::usage(format!("malformed question: {e}")))?;
        if !(1..=MAX_RANKS).contains(&question.gpus) {
            return Err(Error::usage(format!("--gpus takes 1 to {MAX_RANKS}")));
        }
        if !(question.utilization > 0.0 && question.utilization <= 1.0) {
            return Err(Error::usage("--gpu-memory-utilization takes a share above 0, at most 1"));
        }
        Ok(question)
    }
}

/// Answers for every TP × PP that makes up the GPUs, experts cut and experts whole.
///
/// # Errors
/// As planning: for a source that the target cannot hold whatever the split.
pub fn fit(catalog: &Catalog, request: &Request, question: &Question) -> Result<Fit> {
    let loaded = Loaded::new(catalog, request)?;
    let base = loaded.context(catalog, request, loaded.ask, Vec::new());
    legal::refuse_source(&base)?;
    let choices = match &loaded.ask.format {
        Some(_) => Some(quantize::choose(catalog, Some(&loaded.model), request)?),
        None => None,
    };
    // Whether experts stay whole decides which constants there are.
    let asks = [1, 2].map(|ep| Reshard { ep, ..loaded.ask.clone() });
    let bases = asks.each_ref().map(|ask| loaded.context(catalog, request, ask, Vec::new()));
    let [cut, whole] = &bases;
    let gathered = [gather(cut, choices.as_deref())?, gather(whole, choices.as_deref())?];
    let kinds = [Kinds::of(cut, &gathered[0]), Kinds::of(whole, &gathered[1])];
    let fp8 = legal::has_blocks(&base);
    let positions =
        loaded.config.get("max_position_embeddings").and_then(serde_json::Value::as_u64);
    let mut found = Fit {
        target: loaded.target.name.clone(),
        gpus: question.gpus,
        usable: (question.gpu_memory as f64 * question.utilization) as u64,
        max_model_len: question.max_model_len.or(positions).unwrap_or(0),
        max_num_seqs: question.max_num_seqs,
        kv_bytes_per_token: kv_of_layer(&loaded.model, 1)
            .map(|(bytes, _)| bytes * u64::from(loaded.model.layers())),
        warnings: catalog.warnings.clone(),
        rows: Vec::new(),
    };
    let dropped = gathered[0].mtp.len();
    if dropped > 0 {
        found.warnings.push(format!("{dropped} tensors of MTP layers are not counted"));
    }
    for tp in (1..=question.gpus).filter(|tp| question.gpus.is_multiple_of(*tp)) {
        let whole = (tp > 1 && loaded.model.experts() > 0).then_some(tp);
        for ep in [Some(1), whole].into_iter().flatten() {
            let ask = Reshard { tp, pp: question.gpus / tp, ep, ..loaded.ask.clone() };
            let kinds = &kinds[usize::from(ep > 1)];
            let row = row(&loaded, &ask, kinds, fp8, &found, (catalog, request));
            found.rows.push(row);
        }
    }
    Ok(found)
}

fn row(
    loaded: &Loaded,
    ask: &Reshard,
    kinds: &Kinds,
    fp8: bool,
    fit: &Fit,
    (catalog, request): (&Catalog, &Request),
) -> Split {
    let &Reshard { tp, pp, ep, .. } = ask;
    let stages = loaded.stages(pp, &[]);
    let mut problems: Vec<String> =
        stages.as_ref().err().map(|e| e.message.clone()).into_iter().collect();
    let context = loaded.context(catalog, request, ask, stages.unwrap_or_default());
    problems.extend(legal::reasons(&context, fp8));
    let kv = kv_of_layer(&loaded.model, tp);
    let kv_copies = kv.map_or(1, |(_, copies)| copies);
    let mut row =
        Split { tp, pp, ep, kv_copies, weights: 0, kv_cache: 0, bytes: 0, fits: false, problems };
    if !row.problems.is_empty() {
        return row;
    }
    let weights = kinds.weights(&context);
    for (stage, weights) in context.stages.iter().zip(weights) {
        let tokens = fit.max_model_len.saturating_mul(fit.max_num_seqs);
        let layers = u64::from(stage.end - stage.start);
        let cache = kv.map_or(0, |(bytes, _)| bytes.saturating_mul(layers).saturating_mul(tokens));
        let most = weights.into_iter().max().unwrap_or(0);
        row.weights = row.weights.max(most);
        row.kv_cache = row.kv_cache.max(cache);
        row.bytes = row.bytes.max(most.saturating_add(cache));
    }
    row.fits = row.bytes <= fit.usable;
    row
}

/// Bytes of a token in the KV cache of one layer on one of `tp` ranks, and how many ranks hold the
/// same of it. Latent attention (one vector a token, whatever the heads) is on every rank.
fn kv_of_layer(model: &Model, tp: u32) -> Option<(u64, u32)> {
    if let (Some(latent), Some(rope)) = (model.dim("kv_rank"), model.dim("qk_rope")) {
        return Some(((latent + rope) * KV_ELEMENT, tp));
    }
    let (heads, dim) = (model.dim("kv_heads")?, model.dim("head_dim")?);
    let held = (heads / u64::from(tp)).max(1);
    let copies = (u64::from(tp) / heads.max(1)).max(1) as u32;
    Some((2 * held * dim * KV_ELEMENT, copies))
}

/// What decides how a source tensor is cut: rule, expert, shape, whether it holds scales, element
/// type of the output, and whether it is encoded.
type Trait<'a> = (*const crate::model::TensorRule, Option<u32>, &'a [u64], bool, Dtype, bool);

/// Groups of tensors, those that are cut alike only once.
struct Kinds<'g, 'a> {
    distinct: Vec<&'g BTreeMap<String, Fused<'a>>>,
    of: BTreeMap<Group, usize>,
    /// Tensors that every stage has.
    everywhere: Vec<Unit<'g>>,
}

impl<'g, 'a: 'g> Kinds<'g, 'a> {
    fn of(context: &Context, gathered: &'g Gathered<'a>) -> Self {
        let mut known: HashMap<Vec<Trait>, usize> = HashMap::new();
        let mut kinds = Self { distinct: Vec::new(), of: BTreeMap::new(), everywhere: Vec::new() };
        for (group, tensors) in &gathered.groups {
            if *group == Group::EveryStage {
                kinds.everywhere.extend(tensors.iter().map(|(name, f)| (name.as_str(), f)));
                continue;
            }
            let traits = |fused: &'g Fused<'a>| {
                fused.members.iter().map(move |m: &Member| {
                    let shape = &*context.catalog.tensor(m.source).shape;
                    let rule: *const _ = m.placed.rule;
                    (rule, m.placed.expert, shape, m.scale, fused.dtype, fused.encoded.is_some())
                })
            };
            let key: Vec<Trait> = tensors.values().flat_map(traits).collect();
            let kind = *known.entry(key).or_insert_with(|| {
                kinds.distinct.push(tensors);
                kinds.distinct.len() - 1
            });
            kinds.of.insert(*group, kind);
        }
        kinds
    }

    /// Bytes of each rank of each stage.
    fn weights(&self, context: &Context) -> Vec<Vec<u64>> {
        let cuts = Cuts::new(context);
        let of_kind = |tensors: &&'g BTreeMap<String, Fused<'a>>| {
            bytes_of(tensors.iter().map(|(name, f)| (name.as_str(), f)), &cuts)
        };
        let of_kinds: Vec<Vec<u64>> = self.distinct.iter().map(of_kind).collect();
        let everywhere = bytes_of(self.everywhere.iter().copied(), &cuts);
        let mut stages = vec![everywhere; context.stages.len()];
        for (group, kind) in &self.of {
            let Some(stage) = super::tasks::stage_of(context, *group) else { continue };
            let stage = &mut stages[stage as usize];
            for (sum, bytes) in stage.iter_mut().zip(&of_kinds[*kind]) {
                *sum += bytes;
            }
        }
        stages
    }
}
