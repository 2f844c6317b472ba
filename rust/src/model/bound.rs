//! An architecture bound to one config: resolved dimensions, layer kinds, every expected tensor.

use std::collections::BTreeMap;

use serde_json::Value;

use super::architecture::{Architecture, TensorRule, Where};
use super::expr::Expr;
use crate::error::{Error, Result};

/// Most layers, MTP layers included.
pub const MAX_LAYERS: u64 = 10_000;
/// Most routed experts of a layer.
pub const MAX_EXPERTS: u64 = 65_536;
/// Most tensors of a model.
pub const MAX_TENSORS: u64 = 10_000_000;

/// Kind of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerKind {
    /// Dense feed-forward block.
    Dense,
    /// Mixture of experts.
    Moe,
    /// Multi-token prediction: a MoE layer and its own projections, after the ordinary layers.
    Mtp,
}

impl LayerKind {
    fn holds(self, place: Where) -> bool {
        match place {
            Where::All => true,
            Where::Dense => self == Self::Dense,
            Where::Moe => self != Self::Dense,
            Where::Mtp => self == Self::Mtp,
        }
    }
}

/// An architecture bound to a config.
#[derive(Debug, Clone)]
pub struct Model {
    architecture: String,
    dims: BTreeMap<String, u64>,
    kinds: Vec<LayerKind>,
    experts: u32,
    /// Tensors before the layers, of the layers, after the layers.
    rules: [Vec<BoundRule>; 3],
}

#[derive(Debug, Clone)]
struct BoundRule {
    rule: TensorRule,
    /// `None` if the config lacks a number that only an unexpected tensor needs.
    shape: Option<Box<[u64]>>,
    expected: bool,
}

/// The place of a tensor name in a model.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'m> {
    /// Role, tensor-parallel axis, whether it is quantised …
    pub rule: &'m TensorRule,
    /// Shape that the config implies; `None` if it lacks a number for that.
    pub shape: Option<&'m [u64]>,
    /// Whether the config implies such a tensor.
    pub expected: bool,
    /// Layer, counted from 0; MTP layers follow the ordinary ones.
    pub layer: Option<u32>,
    /// Routed expert, counted from 0.
    pub expert: Option<u32>,
}

/// A tensor that a complete checkpoint holds; its usual dtype is `rule.dtype`.
#[derive(Debug, Clone)]
pub struct Expected<'m> {
    /// Full name.
    pub name: String,
    /// Role, tensor-parallel axis, whether a checkpoint may lack it …
    pub rule: &'m TensorRule,
    /// Dimensions, row-major, none of them 0.
    pub shape: &'m [u64],
    /// Layer, counted from 0.
    pub layer: Option<u32>,
    /// Routed expert, counted from 0.
    pub expert: Option<u32>,
}

impl Model {
    pub(super) fn bind(architecture: &Architecture, config: &Value) -> Result<Self> {
        if !config.is_object() {
            return Err(Error::invalid("config is not an object"));
        }
        let mut dims = BTreeMap::new();
        for (name, alternatives) in &architecture.dims {
            if let Some(value) = resolve(alternatives, config)? {
                dims.insert(name.clone(), value);
            }
        }
        let mut model = Self {
            architecture: architecture.name().to_owned(),
            kinds: Vec::new(),
            experts: 0,
            rules: Default::default(),
            dims,
        };
        model.bind_layers(architecture, config)?;
        for rule in &architecture.rules {
            let position = match (rule.place, model.rules[1].is_empty()) {
                (Some(_), _) => 1,
                (None, true) => 0,
                (None, false) => 2,
            };
            let bound = model.bind_rule(rule, config).map_err(|e| e.tensor(rule.name("*", "*")))?;
            model.rules[position].push(bound);
        }
        let count = model.expected_count();
        if count > MAX_TENSORS {
            let what = format!("config describes {count} tensors, more than {MAX_TENSORS}");
            return Err(Error::too_large(what));
        }
        Ok(model)
    }

    fn bind_layers(&mut self, architecture: &Architecture, config: &Value) -> Result<()> {
        let missing = |name: &str| {
            Error::invalid(format!("config lacks the number of {name} of {}", self.architecture))
        };
        let layers = self.dim("layers").ok_or_else(|| missing("layers"))?;
        let mtp = self.dim("mtp_layers").unwrap_or(0);
        if layers.checked_add(mtp).is_none_or(|n| n > MAX_LAYERS) {
            let what =
                format!("config has {layers} layers and {mtp} MTP layers, more than {MAX_LAYERS}");
            return Err(Error::too_large(what));
        }
        let experts = match self.dim("experts") {
            Some(n) if n > MAX_EXPERTS => {
                let what = format!("config has {n} experts, more than {MAX_EXPERTS}");
                return Err(Error::too_large(what));
            }
            Some(n) => n,
            None if architecture.dims.contains_key("experts") => return Err(missing("experts")),
            None => 0,
        };
        let rule = &architecture.layers;
        let dense_below = resolve(&rule.dense_below, config)?.unwrap_or(0);
        let dense_list = match &rule.dense_list {
            Some(key) => integers(config, key)?,
            None => Vec::new(),
        };
        let step = resolve(&rule.moe_step, config)?.unwrap_or(1);
        if step == 0 {
            return Err(Error::invalid("config has a MoE layer step of 0"));
        }
        let is_moe = |layer: u64| {
            experts > 0
                && layer >= dense_below
                && (layer + u64::from(rule.moe_offset)).is_multiple_of(step)
                && !dense_list.contains(&layer)
        };
        self.kinds = (0..layers)
            .map(|layer| if is_moe(layer) { LayerKind::Moe } else { LayerKind::Dense })
            .chain((0..mtp).map(|_| LayerKind::Mtp))
            .collect();
        self.experts = experts as u32;
        Ok(())
    }

    fn bind_rule(&self, rule: &TensorRule, config: &Value) -> Result<BoundRule> {
        let conditions = rule.when.iter().map(|key| (key, true));
        let conditions = conditions.chain(rule.unless.iter().map(|key| (key, false)));
        let mut expected = rule.place.is_none_or(|place| self.kinds.iter().any(|k| k.holds(place)));
        for (key, wanted) in conditions {
            expected &= is_set(config, key)? == wanted;
        }
        let lookup = |name: &str| Ok(self.dim(name));
        let mut shape = Some(Vec::with_capacity(rule.shape.len()));
        for expr in &rule.shape {
            let dim = expr.value(&lookup)?;
            if expected && dim.is_none() {
                return Err(Error::invalid("config lacks a number that the shape needs"));
            }
            shape = shape.zip(dim).map(|(mut shape, dim)| {
                shape.push(dim);
                shape
            });
        }
        if let Some(shape) = &shape
            && expected
            && (shape.contains(&0) || rule.dtype.byte_len(shape).is_none())
        {
            return Err(Error::invalid(format!("config implies the impossible shape {shape:?}")));
        }
        Ok(BoundRule { rule: rule.clone(), shape: shape.map(Vec::into_boxed_slice), expected })
    }

    /// Rules of the tensors that a complete checkpoint holds, with their shapes.
    pub fn shapes(&self) -> impl Iterator<Item = (&TensorRule, &[u64])> {
        let expected = self.rules.iter().flatten().filter(|b| b.expected);
        expected.filter_map(|b| Some((&b.rule, b.shape.as_deref()?)))
    }

    /// The layers that hold a tensor, as text such as `{4..79}`, MTP layers left out.
    pub fn layers_text(&self, rule: &TensorRule) -> String {
        let Some(place) = rule.place else { return String::new() };
        let ordinary = self.kinds[..self.layers() as usize].iter().enumerate();
        let held: Vec<usize> = ordinary.filter(|(_, k)| k.holds(place)).map(|(l, _)| l).collect();
        match held[..] {
            [only] => only.to_string(),
            [first, .., last] if last - first + 1 == held.len() => format!("{{{first}..{last}}}"),
            _ => "*".to_owned(),
        }
    }

    /// Name of the architecture.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Number of layers without MTP layers.
    pub fn layers(&self) -> u32 {
        (self.kinds.len() - self.count(LayerKind::Mtp)) as u32
    }

    /// Number of dense layers.
    pub fn dense_layers(&self) -> u32 {
        self.count(LayerKind::Dense) as u32
    }

    /// Number of MoE layers without MTP layers.
    pub fn moe_layers(&self) -> u32 {
        self.count(LayerKind::Moe) as u32
    }

    /// Number of MTP layers, which follow the ordinary ones.
    pub fn mtp_layers(&self) -> u32 {
        self.count(LayerKind::Mtp) as u32
    }

    fn count(&self, kind: LayerKind) -> usize {
        self.kinds.iter().filter(|k| **k == kind).count()
    }

    /// Kind of `layer`, or `None` beyond the last one.
    pub fn layer_kind(&self, layer: u32) -> Option<LayerKind> {
        self.kinds.get(layer as usize).copied()
    }

    /// Routed experts of a MoE layer, 0 for a dense model.
    pub fn experts(&self) -> u32 {
        self.experts
    }

    /// A dimension by its name in `[dims]` of the architecture file (`hidden`, `heads`,
    /// `kv_heads`, `head_dim`, `vocab`, `experts_per_token`, `shared_experts`, `groups` …).
    pub fn dim(&self, name: &str) -> Option<u64> {
        self.dims.get(name).copied()
    }

    /// All rules, in the order of the model.
    pub fn rules(&self) -> impl Iterator<Item = &TensorRule> {
        self.rules.iter().flatten().map(|r| &r.rule)
    }

    /// The rule, layer and expert of `name`; `None` if the architecture has no such tensor, or
    /// none in a layer of that kind. The companions of quantised tensors are the dialects' part.
    pub fn role_of(&self, name: &str) -> Option<Placed<'_>> {
        self.rules.iter().flatten().find_map(|bound| {
            let (layer, expert) = bound.rule.pattern.matches(name)?;
            let fits = match (layer, bound.rule.place) {
                (Some(layer), Some(place)) => self.layer_kind(layer)?.holds(place),
                _ => true,
            };
            let fits = fits && expert.is_none_or(|e| e < self.experts);
            let shape = bound.shape.as_deref();
            let expected = bound.expected;
            fits.then_some(Placed { rule: &bound.rule, shape, expected, layer, expert })
        })
    }

    /// Every tensor of a complete checkpoint, in natural order: embedding, layers, norm, head;
    /// within a layer as in the architecture file, the matrices of an expert together.
    pub fn expected(&self) -> impl Iterator<Item = Expected<'_>> {
        let [before, layered, after] = &self.rules;
        let layers = (0..self.kinds.len() as u32).flat_map(move |layer| {
            layered.chunk_by(|a, b| a.has_expert() && b.has_expert()).flat_map(move |run| {
                let experts = if run[0].has_expert() { self.experts } else { 1 };
                (0..experts).flat_map(move |expert| {
                    run.iter().filter_map(move |r| self.expect(r, layer, expert))
                })
            })
        });
        let fixed = |rules| -> std::slice::Iter<'_, BoundRule> { rules };
        fixed(before.iter())
            .filter_map(|r| self.expect(r, 0, 0))
            .chain(layers)
            .chain(fixed(after.iter()).filter_map(|r| self.expect(r, 0, 0)))
    }

    fn expect<'m>(&'m self, bound: &'m BoundRule, layer: u32, expert: u32) -> Option<Expected<'m>> {
        let place = bound.rule.place;
        if !bound.expected || place.is_some_and(|p| !self.kinds[layer as usize].holds(p)) {
            return None;
        }
        Some(Expected {
            name: bound.rule.name(layer, expert),
            rule: &bound.rule,
            shape: bound.shape.as_deref()?,
            layer: place.map(|_| layer),
            expert: bound.has_expert().then_some(expert),
        })
    }

    /// Whether none of `names` belongs to an MTP layer: many checkpoints leave these layers out and
    /// keep config.json as it is.
    pub fn lacks_mtp<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> bool {
        !names.any(|name| self.is_mtp(self.role_of(name).and_then(|p| p.layer)))
    }

    /// Whether `layer` is an MTP layer.
    pub fn is_mtp(&self, layer: Option<u32>) -> bool {
        layer.and_then(|l| self.layer_kind(l)) == Some(LayerKind::Mtp)
    }

    /// Number of tensors that [`Self::expected`] gives.
    pub fn expected_count(&self) -> u64 {
        let of_rule = |r: &BoundRule| {
            let layers = r
                .rule
                .place
                .map_or(1, |place| self.kinds.iter().filter(|k| k.holds(place)).count() as u64);
            layers * if r.has_expert() { u64::from(self.experts) } else { 1 }
        };
        self.rules.iter().flatten().filter(|r| r.expected).map(of_rule).sum()
    }
}

impl BoundRule {
    fn has_expert(&self) -> bool {
        self.rule.pattern.has_expert()
    }
}

/// Value of the first alternative whose config keys exist.
fn resolve(alternatives: &[Expr], config: &Value) -> Result<Option<u64>> {
    for expr in alternatives {
        if let Some(value) = expr.value(&|key| integer(config, key))? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// The whole number under `key`; absent and null are `None`.
fn integer(config: &Value, key: &str) -> Result<Option<u64>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| wrong(key, "a whole number", value)),
    }
}

/// The whole numbers listed under `key`; absent and null are empty.
fn integers(config: &Value, key: &str) -> Result<Vec<u64>> {
    let value = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    value
        .as_array()
        .filter(|list| list.len() as u64 <= MAX_LAYERS)
        .and_then(|list| list.iter().map(Value::as_u64).collect())
        .ok_or_else(|| wrong(key, "a list of layers", value))
}

/// Whether `key` is true or a number above 0; absent and null are not.
fn is_set(config: &Value, key: &str) -> Result<bool> {
    match config.get(key) {
        Some(Value::Bool(value)) => Ok(*value),
        _ => Ok(integer(config, key)?.unwrap_or(0) > 0),
    }
}

fn wrong(key: &str, wanted: &str, found: &Value) -> Error {
    let mut found = found.to_string();
    if let Some((end, _)) = found.char_indices().nth(60) {
        found.truncate(end);
        found.push('…');
    }
    Error::invalid(format!("{key} of the config is {found}, not {wanted}"))
}
