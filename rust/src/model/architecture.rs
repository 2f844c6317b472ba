//! Architecture files: names, roles and symbolic shapes as strict TOML.
//!
//! ```toml
//! name = "ExampleForCausalLM"
//! architectures = ["ExampleForCausalLM"]  # matched with config.json's list, never model_type
//!
//! [dims]                                  # first alternative whose config keys exist wins
//! layers = ["num_hidden_layers"]          # required; mtp_layers, experts, heads … well known
//! hidden = ["hidden_size"]
//! experts = ["num_experts"]
//!
//! [layers]                                # which of the layers are dense
//! dense_below = ["first_k_dense_replace", 0]
//! dense_list = "mlp_only_layers"          # config key, a list of layers
//! moe_step = ["decoder_sparse_step", 1]   # MoE only if (layer + moe_offset) % moe_step == 0
//! moe_offset = 1
//!
//! [[tensor]]
//! name = "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"
//! role = "expert.up"                      # crate::model::Role
//! where = "moe"                           # all | dense | moe | mtp, if the name has {layer}
//! tp = "row"                              # row | col | head | qkv | kv | vocab | replicate
//! shape = ["intermediate", "hidden"]      # expressions over [dims]
//! quantize = true                         # default false
//! dtype = "BF16"                          # default; a hint, the header is the truth
//! optional = true                         # default false: a checkpoint may lack it
//! when = "use_it"                         # expected only if this config key is true or > 0
//! unless = "tie_word_embeddings"          # expected only if it is not
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::Deserialize;

use super::bound::Model;
use super::expr::{Expr, is_name};
use super::pattern::Pattern;
use super::role::{Axis, Role};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::header::MAX_RANK;

const BUILTIN: &[&str] = &[
    include_str!("../../data/architectures/bailing_moe_v2.toml"),
    include_str!("../../data/architectures/deepseek_v3.toml"),
    include_str!("../../data/architectures/qwen3_moe.toml"),
];

/// Longest architecture file in bytes.
const MAX_FILE: usize = 1 << 20;
/// Most entries of each list and table of an architecture file.
const MAX_ENTRIES: usize = 1_000;

/// A parsed architecture file; the head of `model/architecture.rs` shows its form.
#[derive(Debug, Clone)]
pub struct Architecture {
    name: String,
    architectures: Vec<String>,
    pub(super) dims: BTreeMap<String, Vec<Expr>>,
    pub(super) layers: LayerRule,
    pub(super) rules: Vec<TensorRule>,
}

/// Which layers are dense; see the head of this file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRule {
    #[serde(default)]
    pub dense_below: Vec<Expr>,
    pub dense_list: Option<String>,
    #[serde(default)]
    pub moe_step: Vec<Expr>,
    #[serde(default)]
    pub moe_offset: u32,
}

/// Layers that hold a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Where {
    /// Every layer, MTP layers included.
    All,
    /// Layers with a dense feed-forward block.
    Dense,
    /// Layers with a MoE block, MTP layers included.
    Moe,
    /// MTP layers.
    Mtp,
}

/// One `[[tensor]]` entry.
#[derive(Debug, Clone)]
pub struct TensorRule {
    /// What the tensor does.
    pub role: Role,
    /// How tensor parallelism cuts it.
    pub tp: Axis,
    /// Whether a quantised checkpoint of this architecture encodes it.
    pub quantize: bool,
    /// Whether a complete checkpoint may lack it.
    pub optional: bool,
    /// Element type of the published checkpoints, for synthesis; headers are the truth.
    pub dtype: Dtype,
    /// Layers that hold it; `None` for a tensor outside the layers.
    pub place: Option<Where>,
    pub(super) pattern: Pattern,
    pub(super) shape: Vec<Expr>,
    pub(super) when: Option<String>,
    pub(super) unless: Option<String>,
}

impl TensorRule {
    /// Name for `layer` and `expert`, which may be text such as `{4..79}` or `*`; what the
    /// pattern lacks is ignored.
    pub fn name(&self, layer: impl Display, expert: impl Display) -> String {
        self.pattern.name(layer, expert)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawArchitecture {
    name: String,
    architectures: Vec<String>,
    dims: BTreeMap<String, Vec<Expr>>,
    #[serde(default)]
    layers: LayerRule,
    tensor: Vec<RawTensor>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    name: String,
    role: Role,
    #[serde(rename = "where")]
    place: Option<Where>,
    tp: Axis,
    shape: Vec<Expr>,
    #[serde(default)]
    quantize: bool,
    #[serde(default)]
    optional: bool,
    dtype: Option<Dtype>,
    when: Option<String>,
    unless: Option<String>,
}

impl Architecture {
    /// The built-in architecture that `config` (a `config.json`) names under `architectures`.
    pub fn builtin_for(config: &serde_json::Value) -> Option<Self> {
        // Built-in files are parsed by a test, so that none is skipped here.
        BUILTIN.iter().filter_map(|text| Self::parse(text).ok()).find(|a| a.matches(config))
    }

    /// Names of the built-in architectures.
    pub fn builtin_names() -> Vec<String> {
        BUILTIN.iter().filter_map(|text| Self::parse(text).ok()).map(|a| a.name).collect()
    }

    /// Parses an architecture file. Every mistake in it is [`crate::error::Kind::Usage`].
    pub fn parse(text: &str) -> Result<Self> {
        if text.len() > MAX_FILE {
            return Err(Error::usage(format!("architecture file of more than {MAX_FILE} bytes")));
        }
        let raw: RawArchitecture = toml::from_str(text)
            .map_err(|e| Error::usage(format!("malformed architecture file: {}", e.message())))?;
        raw.check()?;
        let rules = raw
            .tensor
            .into_iter()
            .map(|tensor| {
                let name = tensor.name.clone();
                TensorRule::new(tensor, &raw.dims).map_err(|e| e.tensor(name))
            })
            .collect::<Result<Vec<_>>>()?;
        check_unique(&rules)?;
        if rules.iter().any(|r| r.pattern.has_expert()) && !raw.dims.contains_key("experts") {
            return Err(Error::usage("[dims] lacks experts, which {expert} needs"));
        }
        Ok(Self {
            name: raw.name,
            architectures: raw.architectures,
            dims: raw.dims,
            layers: raw.layers,
            rules,
        })
    }

    /// Name of the architecture.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether `config` (a `config.json`) names this architecture.
    pub fn matches(&self, config: &serde_json::Value) -> bool {
        config.get("architectures").and_then(serde_json::Value::as_array).is_some_and(|list| {
            list.iter().any(|a| self.architectures.iter().any(|own| a.as_str() == Some(own)))
        })
    }

    /// Binds the architecture to `config` (a `config.json`): resolves dimensions, layer kinds and
    /// shapes. [`crate::error::Kind::Invalid`] if a needed number is missing, is no whole number,
    /// or is out of bounds.
    pub fn model(&self, config: &serde_json::Value) -> Result<Model> {
        Model::bind(self, config)
    }
}

impl RawArchitecture {
    fn check(&self) -> Result<()> {
        if self.name.is_empty() || self.architectures.is_empty() {
            return Err(Error::usage("name or architectures is empty"));
        }
        let rule = &self.layers;
        let lists = [self.architectures.len(), self.dims.len(), self.tensor.len()]
            .into_iter()
            .chain(self.dims.values().map(Vec::len))
            .chain([rule.dense_below.len(), rule.moe_step.len()]);
        if lists.max().unwrap_or(0) > MAX_ENTRIES {
            return Err(Error::usage(format!("more than {MAX_ENTRIES} entries in one list")));
        }
        if !self.dims.contains_key("layers") {
            return Err(Error::usage("[dims] lacks layers"));
        }
        match self.dims.iter().find(|(name, list)| !is_name(name) || list.is_empty()) {
            Some((name, _)) => {
                Err(Error::usage(format!("[dims] {name:?} is no plain word or has no expression")))
            }
            None => Ok(()),
        }
    }
}

impl TensorRule {
    fn new(raw: RawTensor, dims: &BTreeMap<String, Vec<Expr>>) -> Result<Self> {
        let pattern = Pattern::parse(&raw.name)?;
        if pattern.has_layer() != raw.place.is_some() {
            return Err(Error::usage("`where` belongs to names with {layer}, and only to them"));
        }
        if raw.shape.len() > MAX_RANK {
            return Err(Error::usage(format!("more than {MAX_RANK} dimensions")));
        }
        let least = match raw.tp {
            Axis::Col => 2,
            Axis::Row | Axis::Head | Axis::Qkv | Axis::Kv | Axis::Vocab => 1,
            Axis::Replicate => 0,
        };
        if raw.shape.len() < least || (raw.quantize && raw.shape.len() != 2) {
            return Err(Error::usage(format!(
                "{} dimensions do not suit `tp` and `quantize`",
                raw.shape.len()
            )));
        }
        let mut unknown = None;
        for expr in &raw.shape {
            expr.names(&mut |name| {
                if !dims.contains_key(name) {
                    unknown = Some(name);
                }
            });
        }
        if let Some(name) = unknown {
            return Err(Error::usage(format!("shape uses {name:?}, which [dims] lacks")));
        }
        Ok(Self {
            role: raw.role,
            tp: raw.tp,
            quantize: raw.quantize,
            optional: raw.optional,
            dtype: raw.dtype.unwrap_or(Dtype::BF16),
            place: raw.place,
            pattern,
            shape: raw.shape,
            when: raw.when,
            unless: raw.unless,
        })
    }
}

/// Two entries may share a name only if no layer holds both.
fn check_unique(rules: &[TensorRule]) -> Result<()> {
    let mut sorted: Vec<_> = rules.iter().map(|r| (r.pattern.to_string(), r.place)).collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let dense = same.iter().filter(|r| r.1 == Some(Where::Dense)).count();
        if dense > 1
            || same.len() - dense > 1
            || (dense == 1 && same.iter().any(|r| r.1 == Some(Where::All)))
        {
            return Err(Error::usage("two entries for one name").tensor(&*same[0].0));
        }
    }
    Ok(())
}
