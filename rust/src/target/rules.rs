//! What becomes of the tensors of one architecture: names and fusions by role, constants.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::dtype::Dtype;
use crate::model::{Pattern, Role};

/// What {suffix} stands for in the name of a weight.
const WEIGHT: &str = "weight";

/// Names, fusions and constants of one architecture.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub(super) name: String,
    /// Whether KV heads are replicated where there are more ranks than heads.
    #[serde(default = "yes")]
    pub kv_replication: bool,
    expert_map: Option<String>,
    /// Roles that every pipeline stage has.
    #[serde(default)]
    pub every_stage: Vec<Role>,
    #[serde(default)]
    computed: Vec<Pattern>,
    #[serde(default)]
    tensor: Vec<TensorRule>,
    /// Scalars that no checkpoint holds.
    #[serde(default)]
    pub constant: Vec<Constant>,
}

/// What becomes of the tensors of some roles.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRule {
    roles: Vec<Role>,
    name: Option<String>,
    #[serde(default)]
    stack: bool,
    dtype: Option<Dtype>,
    #[serde(default)]
    when: BTreeMap<String, Value>,
    unless: Option<String>,
}

/// A scalar F32 that no checkpoint holds, one a layer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constant {
    name: String,
    /// Its value.
    pub value: f32,
    /// Whether only FP8 checkpoints have it.
    #[serde(default)]
    pub fp8: bool,
}

/// Where a tensor of the source goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the output tensor.
    pub name: String,
    /// Position among the tensors that the output tensor is made of.
    pub position: u32,
    /// Whether experts are stacked along a first dimension.
    pub stack: bool,
    /// Element type that the source is widened to.
    pub dtype: Option<Dtype>,
}

fn yes() -> bool {
    true
}

impl Rules {
    /// What is wrong with them in themselves.
    pub(super) fn problem(&self) -> Option<&'static str> {
        self.tensor.iter().find_map(|rule| {
            let named = rule.name.is_some() || (rule.roles.len() == 1 && !rule.stack);
            if rule.roles.is_empty() || !named {
                return Some("a tensor without roles, or several of them without a name");
            }
            let kept = matches!(rule.dtype, None | Some(Dtype::F32));
            (!kept).then_some("tensors are widened to F32 or not at all")
        })
    }

    /// Name in `layer` of the tensor that says where each expert lies, if the engine wants one.
    pub fn expert_map(&self, layer: u32) -> Option<String> {
        self.expert_map.as_ref().map(|name| in_layer(name, Some(layer)))
    }

    /// Whether the engine computes the tensor `name` and does not load it.
    pub fn computes(&self, name: &str) -> bool {
        self.computed.iter().any(|pattern| pattern.matches(name).is_some())
    }

    /// Whether rows of another role follow those of `role` in one tensor.
    pub fn is_followed(&self, role: Role) -> bool {
        let mut fused = self.tensor.iter().filter_map(|r| r.roles.split_last());
        fused.any(|(_, before)| before.contains(&role))
    }

    /// Where the tensor `name` of `role` in `layer` goes; `config` is the model's config.json.
    pub fn place(&self, role: Role, name: &str, layer: Option<u32>, config: &Value) -> Place {
        let number = |key: &String| config.get(key).is_some_and(Value::is_number);
        let holds = |rule: &&TensorRule| {
            rule.roles.contains(&role)
                && rule.when.iter().all(|(k, v)| config.get(k) == Some(v))
                && !rule.unless.as_ref().is_some_and(number)
        };
        let Some(found) = self.tensor.iter().find(holds) else {
            return Place { name: name.to_owned(), position: 0, stack: false, dtype: None };
        };
        let position = found.roles.iter().position(|r| *r == role).unwrap_or(0) as u32;
        let name = match &found.name {
            None => name.to_owned(),
            Some(pattern) => {
                let suffix = name.rsplit_once('.').map_or(WEIGHT, |(_, suffix)| suffix);
                in_layer(pattern, layer).replace("{suffix}", suffix)
            }
        };
        Place { name, position, stack: found.stack, dtype: found.dtype }
    }
}

impl Constant {
    /// Its name in `layer`.
    pub fn name(&self, layer: u32) -> String {
        in_layer(&self.name, Some(layer))
    }
}

fn in_layer(pattern: &str, layer: Option<u32>) -> String {
    match layer {
        Some(layer) => pattern.replace("{layer}", &layer.to_string()),
        None => pattern.to_owned(),
    }
}
