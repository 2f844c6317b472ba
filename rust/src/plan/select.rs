//! Which tensors a request encodes.

use std::collections::BTreeMap;

use globset::{Glob, GlobMatcher};

use super::request::Request;
use crate::catalog::{Catalog, Tensor};
use crate::error::{Error, Result};
use crate::model::{LayerKind, Model, Placed, Role};
use crate::transform::float_of;

/// Most patterns of one option, and their length in bytes.
const MAX_PATTERNS: usize = 1_000;

/// What becomes of a source tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// Encoded, with its role where the architecture is known.
    Encode(Option<Role>),
    /// Kept as it is.
    Keep,
    /// Left out with the MTP layer it belongs to.
    DropMtp,
}

/// A glob and whether it has matched any tensor that may be encoded.
struct Pattern {
    option: &'static str,
    text: String,
    matcher: GlobMatcher,
    /// Matches of any tensor, and of tensors that may be encoded.
    matched: (usize, usize),
}

impl Pattern {
    fn compile(option: &'static str, texts: &[String]) -> Result<Vec<Self>> {
        if texts.len() > MAX_PATTERNS {
            return Err(Error::usage(format!("more than {MAX_PATTERNS} patterns for {option}")));
        }
        let compile = |text: &String| {
            let glob = Glob::new(text).map_err(|e| Error::usage(format!("{option}: {e}")))?;
            let matcher = glob.compile_matcher();
            Ok(Self { option, text: text.clone(), matcher, matched: (0, 0) })
        };
        texts.iter().map(compile).collect()
    }

    fn test(&mut self, name: &str, candidate: bool) -> bool {
        let hit = self.matcher.is_match(name);
        self.matched.0 += usize::from(hit);
        self.matched.1 += usize::from(hit && candidate);
        hit
    }

    fn unmatched(&self) -> Option<String> {
        match self.matched {
            (0, _) => Some(format!("{} {:?}: no tensor has such a name", self.option, self.text)),
            (n, 0) => Some(format!(
                "{} {:?}: matches {n} tensors, but none that may be encoded",
                self.option, self.text
            )),
            _ => None,
        }
    }
}

/// Refuses patterns that are none.
pub(super) fn check_patterns(only: &[String], skip: &[String]) -> Result<()> {
    Pattern::compile("--only", only)?;
    Pattern::compile("--skip", skip).map(drop)
}

/// Chooses for every tensor of the catalog, in its order.
pub(super) fn select(
    catalog: &Catalog,
    model: Option<&Model>,
    request: &Request,
) -> Result<Vec<Choice>> {
    if model.is_none() && request.only.is_empty() {
        return Err(unknown_architecture(catalog));
    }
    refuse_stacks(catalog)?;
    let mut only = Pattern::compile("--only", &request.only)?;
    let mut skip = Pattern::compile("--skip", &request.skip)?;
    let mut choices = Vec::with_capacity(catalog.tensors.len());
    for tensor in &catalog.tensors {
        let placed = model.and_then(|m| m.role_of(&tensor.name));
        if request.drop_mtp && in_mtp_layer(model, placed) {
            choices.push(Choice::DropMtp);
            continue;
        }
        let candidate = is_candidate(tensor, model, placed);
        // Every pattern is tried, so that each one's matches are counted.
        let name = &*tensor.name;
        let wanted = only.iter_mut().filter_map(|p| p.test(name, candidate).then_some(())).count();
        let unwanted =
            skip.iter_mut().filter_map(|p| p.test(name, candidate).then_some(())).count();
        let role = placed.map(|p| p.rule.role);
        let encode = candidate
            && (request.only.is_empty() || wanted > 0)
            && unwanted == 0
            && (!request.experts_only || role.is_some_and(Role::is_routed_expert))
            && !request.nonfinite.iter().any(|n| n == name);
        choices.push(if encode { Choice::Encode(role) } else { Choice::Keep });
    }
    let unmatched: Vec<String> = only.iter().chain(&skip).filter_map(Pattern::unmatched).collect();
    if !unmatched.is_empty() {
        return Err(Error::usage("patterns that select nothing")
            .details(unmatched)
            .hint("list the names with `lingconv inspect --tree`"));
    }
    refuse_mixed_experts(catalog, model, &choices)?;
    if choices.iter().any(|c| matches!(c, Choice::Encode(_))) {
        return Ok(choices);
    }
    Err(Error::impossible("the request leaves nothing to encode").at(catalog.root.path()))
}

fn is_candidate(tensor: &Tensor, model: Option<&Model>, placed: Option<Placed>) -> bool {
    let matrix = tensor.shape.len() == 2 && tensor.bytes > 0 && float_of(tensor.dtype).is_some();
    matrix && (model.is_none() || placed.is_some_and(|p| p.rule.quantize))
}

/// Whether a tensor belongs to an MTP layer.
pub(super) fn in_mtp_layer(model: Option<&Model>, placed: Option<Placed>) -> bool {
    let layer = placed.and_then(|p| p.layer);
    layer.zip(model).and_then(|(layer, m)| m.layer_kind(layer)) == Some(LayerKind::Mtp)
}

fn unknown_architecture(catalog: &Catalog) -> Error {
    let named = catalog.config.as_ref().and_then(|c| c.get("architectures"));
    let message = match named {
        Some(name) => format!("unknown architecture {name}"),
        None => "no architecture: config.json is missing or names none".into(),
    };
    Error::impossible(message)
        .at(catalog.root.path())
        .hint("name the weights with --only GLOB, or describe the architecture with --arch FILE")
}

fn refuse_stacks(catalog: &Catalog) -> Result<()> {
    let is_stack = |t: &&Tensor| {
        t.shape.len() >= 3 && t.name.contains("expert") && float_of(t.dtype).is_some()
    };
    let stacks: Vec<&Tensor> = catalog.tensors.iter().filter(is_stack).collect();
    let Some(first) = stacks.first() else { return Ok(()) };
    Err(Error::impossible(format!("a stack of experts of shape {:?}", first.shape))
        .tensor(&*first.name)
        .at(catalog.root.path().join(&catalog.shards[first.shard as usize].name))
        .details(stacks[1..].iter().map(|t| t.name.to_string()).collect())
        .hint("one matrix an expert is needed, as checkpoints are published"))
}

/// vLLM un-quantises all experts of a layer if one is named in the skip list, so a layer's
/// experts are encoded together or not at all.
fn refuse_mixed_experts(
    catalog: &Catalog,
    model: Option<&Model>,
    choices: &[Choice],
) -> Result<()> {
    let Some(model) = model else { return Ok(()) };
    let mut layers: BTreeMap<u32, [Option<&str>; 2]> = BTreeMap::new();
    for (tensor, choice) in catalog.tensors.iter().zip(choices) {
        let Some(placed) = model.role_of(&tensor.name) else { continue };
        if let (true, Some(layer)) = (placed.rule.role.is_routed_expert(), placed.layer) {
            let kept = usize::from(!matches!(choice, Choice::Encode(_)));
            layers.entry(layer).or_default()[kept].get_or_insert(&tensor.name);
        }
    }
    let mixed: Vec<String> = layers
        .iter()
        .filter_map(|(layer, pair)| match pair {
            [Some(encoded), Some(kept)] => {
                Some(format!("layer {layer}: {encoded} is encoded, {kept} is not"))
            }
            _ => None,
        })
        .collect();
    if mixed.is_empty() {
        return Ok(());
    }
    Err(Error::impossible(format!(
        "{} layers would mix precisions among their experts",
        mixed.len()
    ))
    .details(mixed)
    .hint("select all routed experts of a layer or none; engines load no mixture"))
}
