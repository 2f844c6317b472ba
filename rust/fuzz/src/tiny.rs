//! Tiny checkpoints as headers alone, which plans are made of.

use std::path::Path;

use lingconv_core::catalog::{Catalog, INDEX};
use lingconv_core::dtype::Dtype;
use lingconv_core::error::{Error, Result};
use lingconv_core::header::{self, Entry, Header};
use lingconv_core::io::{Root, Stamp};
use lingconv_core::model::{Architecture, Model};
use lingconv_core::shard_headers::ReadHeader;
use serde_json::{Map, Value, json};

use crate::sound;

/// The presets whose configurations checkpoints are made of.
const PRESETS: [&str; 3] = [
    include_str!("../../data/presets/tiny.toml"),
    include_str!("../../data/presets/tiny-deepseek-v3.toml"),
    include_str!("../../data/presets/tiny-qwen3-moe.toml"),
];
/// Block of FP8 scales.
const BLOCK: u64 = 128;
/// Most tensors of a checkpoint: a mutated configuration may ask for millions.
const MAX_TENSORS: usize = 120;

/// A config.json: one of three architectures, with two layers and four experts.
pub fn config(which: usize) -> Value {
    let preset: Option<Value> = toml::from_str(PRESETS[which % PRESETS.len()]).ok();
    let mut config = preset.and_then(|mut p| p.get_mut("config").map(Value::take));
    let config = config.get_or_insert_with(|| json!({}));
    config["num_hidden_layers"] = 2.into();
    for (key, number) in [
        ("num_experts", 4),
        ("n_routed_experts", 4),
        ("n_group", 2),
        ("topk_group", 1),
        ("num_experts_per_tok", 2),
    ] {
        if config.get(key).is_some() {
            config[key] = number.into();
        }
    }
    config.take()
}

/// The model of a config.json, if it has one.
pub fn model(config: &Value) -> Option<Model> {
    sound(Architecture::builtin_for(config)?.model(config))
}

/// The tensors that `model` should have; in FP8 with the scales of dialect `deepseek`.
pub fn tensors(model: &Model, fp8: bool) -> Vec<Entry> {
    let entry = |name: String, dtype, shape: &[u64]| Entry {
        name: name.into(),
        dtype,
        shape: shape.into(),
        begin: 0,
        end: 0,
    };
    let mut tensors = Vec::new();
    for expected in model.expected().take(MAX_TENSORS) {
        let (rule, shape) = (expected.rule, expected.shape);
        if !(fp8 && rule.quantize) {
            tensors.push(entry(expected.name, rule.dtype, shape));
            continue;
        }
        let scales: Vec<u64> = shape.iter().map(|dim| dim.div_ceil(BLOCK)).collect();
        let name = format!("{}_scale_inv", expected.name);
        tensors.push(entry(expected.name, Dtype::F8E4M3, shape));
        tensors.push(entry(name, Dtype::F32, &scales));
    }
    tensors
}

/// A catalog of shards that are no files.
pub fn catalog(root: &Path, config: &Value, shards: Vec<Vec<Entry>>) -> Result<Catalog> {
    let named = |(number, mut tensors): (usize, Vec<Entry>)| {
        // No header can say so, and whoever lays out tensors has read them from one.
        let length = header::lay_out(&mut tensors).map_err(|e| Error::invalid(e.message))?;
        let raw = header::encode(&tensors)?;
        let (_, json) = raw.split_at(header::PREFIX as usize);
        let header = Header::parse(json, length)?;
        let size = raw.len() as u64 + length;
        let stamp = Stamp { size, mtime_ns: 0, ctime_ns: 0, shared: false };
        Ok((format!("model-{number:05}.safetensors"), ReadHeader { header, raw, stamp }))
    };
    let shards = shards.into_iter().enumerate().map(named).collect::<Result<_>>()?;
    Catalog::assemble(Root::open(root)?, Some(config.to_string()), shards)
}

/// The files of a folder that holds a tiny checkpoint of one of the architectures in two shards,
/// with its index, as [`crate::folder`] writes them.
pub fn files(which: usize, fp8: bool) -> Vec<(&'static str, String)> {
    let config = config(which);
    let mut first = model(&config).map(|model| tensors(&model, fp8)).unwrap_or_default();
    let rest = first.split_off(first.len() / 2);
    let mut map = Map::new();
    let mut files = vec![("config.json", config.to_string())];
    for (name, mut tensors) in [("a.safetensors", first), ("b.safetensors", rest)] {
        map.extend(tensors.iter().map(|tensor| (tensor.name.to_string(), Value::from(name))));
        let laid_out = sound(header::lay_out(&mut tensors));
        let bytes = laid_out.and_then(|_| sound(header::encode(&tensors))).unwrap_or_default();
        let json = bytes.get(header::PREFIX as usize..).unwrap_or_default();
        files.push((name, String::from_utf8_lossy(json).trim_end().to_owned()));
    }
    files.push((INDEX, json!({ "weight_map": map }).to_string()));
    files
}
