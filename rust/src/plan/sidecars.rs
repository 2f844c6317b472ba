//! The small files of an output: config.json with the changes of this plan, a new index, and
//! tokenizer, generation config, remote code and documents as they are.

use std::path::Path;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::data::{Sidecar, SidecarContent, Task};
use super::request::Request;
use crate::catalog::{CONFIG, Catalog, INDEX, MANIFEST};
use crate::error::{Error, Result};
use crate::exec::hash::hex;

/// Endings of the files that are carried over.
const CARRIED: [&str; 12] =
    ["json", "py", "txt", "model", "jinja", "md", "tiktoken", "bpe", "yaml", "yml", "cfg", "vocab"];
/// Names without an ending that are carried over.
const CARRIED_NAMES: [&str; 3] = ["LICENSE", "NOTICE", "USAGE_POLICY"];
/// Files that describe the source, not the output.
const REPLACED: [&str; 4] = [CONFIG, INDEX, MANIFEST, "SHA256SUMS"];
/// Largest file carried over, in bytes.
const MAX_CARRIED: u64 = 256 << 20;
/// Subfolders of remote code are carried over this deep.
const DEPTH: usize = 2;

/// What becomes of config.json's `quantization_config`.
#[derive(Debug)]
pub(super) enum Quantization {
    /// As it is.
    Keep,
    /// Replaced by this block.
    Set(Map<String, Value>),
    /// Removed.
    Remove,
}

/// What the small files of an output say.
#[derive(Debug)]
pub(super) struct Sidecars<'a> {
    /// What becomes of config.json's `quantization_config`.
    pub quantization: Quantization,
    /// Tasks whose tensors an index names; `None`: no index.
    pub index: Option<&'a [Task]>,
    /// Folders that get a copy of everything carried over, besides the output itself.
    pub folders: Vec<String>,
    /// Further files: path and text.
    pub extra: Vec<(String, String)>,
}

impl<'a> Sidecars<'a> {
    /// As for a checkpoint of the source's form: an index if it has one or several shards.
    pub(super) fn indexed(
        catalog: &Catalog,
        tasks: &'a [Task],
        quantization: Quantization,
    ) -> Self {
        let index = (catalog.indexed() || tasks.len() > 1).then_some(tasks);
        Self { quantization, index, folders: Vec::new(), extra: Vec::new() }
    }
}

/// Plans the sidecars; the strings are the changes to config.json, for people.
pub(super) fn plan(
    catalog: &Catalog,
    request: &Request,
    wanted: Sidecars,
) -> Result<(Vec<Sidecar>, Vec<String>)> {
    let mut sidecars = carried(catalog)?;
    let mut changes = Vec::new();
    if let Some(config) = &catalog.config {
        let mut config = config.clone();
        apply_quantization(&mut config, wanted.quantization, &mut changes);
        if let Some(factor) = request.rope_yarn {
            apply_yarn(&mut config, factor, &mut changes)?;
        }
        // Nothing changed: its very bytes, whatever their spelling.
        let unchanged = catalog.config_text.clone().filter(|_| changes.is_empty());
        sidecars.push(match unchanged {
            Some(text) => made(CONFIG, text.into_bytes()),
            None => made(CONFIG, pretty(&config)?),
        });
    }
    let copies = wanted.folders.iter().flat_map(|folder| {
        let copy = move |s: &Sidecar| Sidecar { path: format!("{folder}/{}", s.path), ..s.clone() };
        sidecars.iter().map(copy).collect::<Vec<_>>()
    });
    let copies: Vec<Sidecar> = copies.collect();
    sidecars.extend(copies);
    if let Some(tasks) = wanted.index {
        sidecars.push(made(INDEX, pretty(&index(tasks))?));
    }
    for (path, text) in wanted.extra {
        sidecars.retain(|s| s.path != path);
        sidecars.push(made(&path, text.into_bytes()));
    }
    Ok((sidecars, changes))
}

fn apply_quantization(config: &mut Value, change: Quantization, changes: &mut Vec<String>) {
    const KEY: &str = "quantization_config";
    let Some(object) = config.as_object_mut() else { return };
    match change {
        Quantization::Keep => {}
        Quantization::Set(block) => {
            let brief: Vec<String> =
                block.iter().map(|(key, value)| format!("{key}: {}", brief(value))).collect();
            changes.push(format!("+ {KEY} {{{}}}", brief.join(", ")));
            object.insert(KEY.into(), Value::Object(block));
        }
        Quantization::Remove => {
            if let Some(old) = object.shift_remove(KEY) {
                changes.push(format!("- {KEY} {}", brief(&old)));
            }
        }
    }
}

/// A value on one line, long ones by their size.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(list) if list.len() > 4 => format!("[{} entries]", list.len()),
        Value::Object(map) if map.len() > 6 => format!("{{{} keys}}", map.len()),
        other => other.to_string(),
    }
}

/// The edit that the Ling model card asks for to reach long contexts.
fn apply_yarn(config: &mut Value, factor: f64, changes: &mut Vec<String>) -> Result<()> {
    let positions = config.get("max_position_embeddings").filter(|v| v.is_u64()).cloned();
    let positions = positions.ok_or_else(|| {
        Error::impossible("--rope-yarn needs max_position_embeddings in config.json")
    })?;
    let scaling = json!({
        "factor": factor,
        "original_max_position_embeddings": positions,
        "type": "yarn",
    });
    if !config["rope_scaling"].is_null() {
        changes.push(format!("- rope_scaling {}", brief(&config["rope_scaling"])));
    }
    changes.push(format!("+ rope_scaling {scaling}"));
    config["rope_scaling"] = scaling;
    Ok(())
}

/// The index of the outputs, with the true total size.
fn index(tasks: &[Task]) -> Value {
    let outputs = || tasks.iter().flat_map(|t| &t.outputs);
    let total: u64 = outputs().map(|o| o.size - o.data_start).sum();
    let mut names: Vec<(&str, &str)> =
        outputs().flat_map(|o| o.tensors.iter().map(|t| (&*t.name, &*o.path))).collect();
    names.sort_unstable();
    let map: Map<String, Value> =
        names.into_iter().map(|(name, path)| (name.to_owned(), path.into())).collect();
    json!({ "metadata": { "total_size": total }, "weight_map": map })
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn made(path: &str, bytes: Vec<u8>) -> Sidecar {
    Sidecar {
        path: path.into(),
        size: bytes.len() as u64,
        sha256: hex(&Sha256::digest(&bytes)),
        content: SidecarContent::Bytes(bytes),
    }
}

fn carried(catalog: &Catalog) -> Result<Vec<Sidecar>> {
    let mut sidecars = Vec::new();
    for name in catalog.root.names(DEPTH)? {
        let path = Path::new(&name);
        let ending = path.extension().and_then(|e| e.to_str());
        let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let wanted = match ending {
            Some(ending) => CARRIED.contains(&ending),
            None => CARRIED_NAMES.contains(&file_name),
        };
        if !wanted || REPLACED.contains(&&*name) || name.ends_with(".safetensors.index.json") {
            continue;
        }
        if let Some(bytes) = catalog.root.read(&name, MAX_CARRIED)? {
            let content = SidecarContent::Source(name.clone());
            sidecars.push(Sidecar { content, ..made(&name, bytes) });
        }
    }
    Ok(sidecars)
}
