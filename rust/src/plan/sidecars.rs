//! The small files of an output: config.json with the changes of this plan, a new index, and
//! tokenizer, generation config, remote code and documents as they are.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::data::{OutputFile, Sidecar, SidecarContent, Task};
use super::request::Request;
use crate::catalog::{CONFIG, Catalog, INDEX, MANIFEST};
use crate::error::{Error, Result};
use crate::exec::hash::hex;
use crate::json::Count;

/// Endings of the files that are carried over.
const CARRIED: [&str; 12] =
    ["json", "py", "txt", "model", "jinja", "md", "tiktoken", "bpe", "yaml", "yml", "cfg", "vocab"];
/// Names without an ending that are carried over.
const CARRIED_NAMES: [&str; 3] = ["LICENSE", "NOTICE", "USAGE_POLICY"];
/// Files that describe the source, not the output.
const REPLACED: [&str; 5] = [CONFIG, INDEX, MANIFEST, "SHA256SUMS", NOTES];
/// What `reshard` says about its output.
pub(super) const NOTES: &str = "LINGCONV.md";
/// Largest file carried over, in bytes; tokenizers have up to 40 MB.
pub(crate) const MAX_CARRIED: u64 = 128 << 20;
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

/// An output and its path as the index beside it names it.
type Indexed<'a> = (&'a str, &'a OutputFile);

/// The index of an output.
#[derive(Debug)]
pub(super) enum Index<'a> {
    /// None.
    None,
    /// It names the tensors of these tasks; a folder that several outputs lie in has its own.
    Tasks(&'a [Task]),
    /// The original's, byte for byte.
    Raw(Vec<u8>),
}

/// What the small files of an output say.
#[derive(Debug)]
pub(super) struct Sidecars<'a> {
    /// What becomes of config.json's `quantization_config`.
    pub quantization: Quantization,
    /// The index of the output.
    pub index: Index<'a>,
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
        let needed = catalog.indexed() || tasks.len() > 1;
        let index = if needed { Index::Tasks(tasks) } else { Index::None };
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
    match wanted.index {
        Index::None => {}
        Index::Raw(bytes) => sidecars.push(made(INDEX, bytes)),
        Index::Tasks(tasks) => {
            for (folder, outputs) in by_folder(tasks, &wanted.folders) {
                sidecars.push(made(&format!("{folder}{INDEX}"), pretty(&IndexText::of(&outputs))?));
            }
        }
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

/// The outputs by the stage folder that they lie in, each with its path from there.
fn by_folder<'a>(tasks: &'a [Task], folders: &[String]) -> BTreeMap<String, Vec<Indexed<'a>>> {
    let mut found: BTreeMap<String, Vec<Indexed>> = BTreeMap::new();
    for output in tasks.iter().flat_map(|t| &t.outputs) {
        let inside = |folder: &String| {
            Some((format!("{folder}/"), output.path.strip_prefix(folder)?.strip_prefix('/')?))
        };
        let (folder, path) =
            folders.iter().find_map(inside).unwrap_or_else(|| (String::new(), &output.path));
        found.entry(folder).or_default().push((path, output));
    }
    found
}

/// The index of outputs that lie in one folder, with the true total size.
#[derive(Serialize)]
struct IndexText<'a> {
    metadata: IndexMetadata,
    #[serde(serialize_with = "as_map")]
    weight_map: Vec<(&'a str, &'a str)>,
}

#[derive(Serialize)]
struct IndexMetadata {
    total_size: u64,
}

impl<'a> IndexText<'a> {
    fn of(outputs: &[Indexed<'a>]) -> Self {
        let total_size = outputs.iter().map(|(_, o)| o.size - o.data_start).sum();
        let names = |(path, o): &Indexed<'a>| {
            let path = *path;
            o.tensors.iter().map(move |t| (&*t.name, path))
        };
        let mut weight_map: Vec<_> = outputs.iter().flat_map(names).collect();
        weight_map.sort_unstable();
        Self { metadata: IndexMetadata { total_size }, weight_map }
    }
}

fn as_map<S: Serializer>(
    pairs: &[(&str, &str)],
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>> {
    let write = |out: &mut dyn std::io::Write| {
        serde_json::to_writer_pretty(out, value)
            .map_err(|e| Error::internal(format!("cannot write JSON: {e}")))
    };
    // An index may have tens of megabytes: as many are reserved, and no more.
    let mut count = Count::default();
    write(&mut count)?;
    let mut bytes = Vec::with_capacity(count.0 as usize + 1);
    write(&mut bytes)?;
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

fn in_stage_folder(name: &str) -> bool {
    let number = name.split_once('/').and_then(|(folder, _)| folder.strip_prefix("pp"));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a name is that of a configuration, tokenizer, document or piece of code.
pub(super) fn is_small_file(name: &str) -> bool {
    let path = Path::new(name);
    let file_name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    match path.extension().and_then(|e| e.to_str()) {
        Some(ending) => CARRIED.contains(&ending),
        None => CARRIED_NAMES.iter().any(|carried| carried.eq_ignore_ascii_case(file_name)),
    }
}

fn carried(catalog: &Catalog) -> Result<Vec<Sidecar>> {
    let mut sidecars = Vec::new();
    for name in catalog.root.names(DEPTH)? {
        let wanted = is_small_file(&name);
        let replaced = REPLACED.contains(&&*name) || name.ends_with(".safetensors.index.json");
        // Stage folders hold copies of what lies beside them.
        if !wanted || replaced || (catalog.pieces.is_some() && in_stage_folder(&name)) {
            continue;
        }
        if let Some(bytes) = catalog.root.read(&name, MAX_CARRIED)? {
            let content = SidecarContent::Source(name.clone());
            sidecars.push(Sidecar { content, ..made(&name, bytes) });
        }
    }
    Ok(sidecars)
}
