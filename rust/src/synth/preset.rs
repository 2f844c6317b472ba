//! Presets: a config, a shard size and small files, as TOML in `data/presets`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Options;
use crate::error::{Error, Result};
use crate::model::{MAX_EXPERTS, MAX_LAYERS};

const BUILTIN: [(&str, &str); 7] = [
    ("ling-1t", include_str!("../../data/presets/ling-1t.toml")),
    ("ling-flash-2.0", include_str!("../../data/presets/ling-flash-2.0.toml")),
    ("ling-mini-2.0", include_str!("../../data/presets/ling-mini-2.0.toml")),
    ("ling-1t-layer", include_str!("../../data/presets/ling-1t-layer.toml")),
    ("tiny", include_str!("../../data/presets/tiny.toml")),
    ("tiny-deepseek-v3", include_str!("../../data/presets/tiny-deepseek-v3.toml")),
    ("tiny-qwen3-moe", include_str!("../../data/presets/tiny-qwen3-moe.toml")),
];

/// Names of the presets, largest first.
pub fn presets() -> [&'static str; 7] {
    BUILTIN.map(|(name, _)| name)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Preset {
    /// About how many bytes of data a file holds.
    pub shard_size: u64,
    config: Value,
    /// Small files beside the data: name and content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

impl Preset {
    pub(super) fn named(name: &str) -> Result<Self> {
        let (_, text) = BUILTIN.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            Error::usage(format!("no preset {name:?}"))
                .hint(format!("one of: {}", presets().join(", ")))
        })?;
        toml::from_str(text).map_err(|e| Error::internal(format!("preset {name}: {e}")))
    }

    /// The `config.json` for `options`.
    pub(super) fn config(&self, options: &Options) -> Result<Value> {
        let mut config = self.config.clone();
        if let Some(layers) = options.layers {
            let layers = bounded("layers", layers, MAX_LAYERS)?;
            config["num_hidden_layers"] = layers.into();
            if let Some(dense) = config["first_k_dense_replace"].as_u64() {
                config["first_k_dense_replace"] = dense.min(layers - 1).into();
            }
        }
        if let Some(experts) = options.experts {
            set_experts(&mut config, bounded("experts", experts, MAX_EXPERTS)?)?;
        }
        if options.mtp {
            config["num_nextn_predict_layers"] = 1.into();
        }
        if options.fp8 {
            config["quantization_config"] = json!({
                "activation_scheme": "dynamic",
                "fmt": "e4m3",
                "quant_method": "fp8",
                "weight_block_size": [128, 128],
            });
        }
        Ok(config)
    }
}

/// Changes the number of experts. Routing groups must divide it, and a group is scored by its two
/// best experts, so it has at least two where there is more than one group.
fn set_experts(config: &mut Value, experts: u64) -> Result<()> {
    let per_token = number(config, "num_experts_per_tok")?;
    let key = if config["num_experts"].is_null() { "n_routed_experts" } else { "num_experts" };
    config[key] = experts.into();
    let Some(old_groups) = config["n_group"].as_u64() else {
        config["num_experts_per_tok"] = per_token.min(experts).into();
        return Ok(());
    };
    let old_chosen = number(config, "topk_group")?;
    let groups = (2..=old_groups)
        .rev()
        .find(|g| experts.is_multiple_of(*g) && experts / g >= 2)
        .unwrap_or(1);
    let chosen = (old_chosen * groups).div_ceil(old_groups);
    config["n_group"] = groups.into();
    config["topk_group"] = chosen.into();
    config["num_experts_per_tok"] = per_token.min(chosen * (experts / groups)).into();
    Ok(())
}

fn bounded(what: &str, value: u32, limit: u64) -> Result<u64> {
    let value = u64::from(value);
    if (1..=limit).contains(&value) {
        Ok(value)
    } else {
        Err(Error::usage(format!("{value} {what}, expected 1 to {limit}")))
    }
}

fn number(config: &Value, key: &str) -> Result<u64> {
    let value = config[key].as_u64().filter(|n| *n > 0);
    value.ok_or_else(|| Error::internal(format!("preset without a number {key}")))
}
