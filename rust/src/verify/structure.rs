//! What a checkpoint says of itself: headers, index, names, config. No tensor data is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;

use serde_json::Value;

use super::cut::Cut;
use super::findings::{Category, Finding};
use crate::catalog::{CONFIG, INDEX, MAX_CONFIG, MAX_INDEX, ReadHeader, read_header, read_json};
use crate::companion;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::header::{self, Entry, Header};
use crate::io::Root;
use crate::model::{Architecture, Expected};

/// First bytes of a file that tell what it is.
const SNIFF: u64 = 512;
/// A longer header is not parsed again to learn what is wrong with it.
const MAX_DIAGNOSED: u64 = 16 << 20;

/// A shard whose header is sound.
#[derive(Debug)]
pub struct Shard {
    /// File name.
    pub name: String,
    /// First byte of tensor data.
    pub data_start: u64,
    /// Tensors in the order of their data.
    pub tensors: Vec<Entry>,
}

/// What was found without reading data.
#[derive(Debug, Default)]
pub struct Structure {
    /// Shards with sound headers, by name.
    pub shards: Vec<Shard>,
    /// Files the checkpoint cannot do without, present or not.
    pub required: BTreeSet<String>,
    /// Findings.
    pub findings: Vec<Finding>,
}

type Places<'s> = HashMap<&'s str, (usize, &'s Entry)>;

/// Examines `root`, which was perhaps `cut` for ranks; `selected` narrows the files.
/// [`Kind::Invalid`] only if no list of files can be made.
pub fn examine(
    root: &Root,
    files: &[String],
    cut: Option<&Cut>,
    selected: &dyn Fn(&str) -> bool,
) -> Result<Structure> {
    let mut structure = Structure::default();
    if let Some(cut) = cut {
        structure.required.extend(cut.small_files());
        for name in cut.files().iter().filter(|name| selected(name)) {
            structure.required.insert(name.clone());
            structure.read_shard(root, name);
        }
        return Ok(structure);
    }
    let index = structure.read_index(root);
    let shards = shard_names(files, index.as_ref());
    if shards.is_empty() {
        return Err(Error::new(Kind::Invalid, "no safetensors files and no index")
            .at(root.path())
            .hint("name the folder that holds the checkpoint"));
    }
    for name in shards.iter().filter(|name| selected(name)) {
        structure.required.insert(name.clone());
        structure.read_shard(root, name);
    }
    let whole = shards.iter().all(|name| selected(name));
    let sound = structure.shards.len() == shards.len();
    structure.check_tensors(index.as_ref(), selected, whole && sound);
    let config = structure.read_config(root);
    if let (Some(config), true) = (&config, whole && sound) {
        structure.check_config(config);
    }
    structure.require_small_files(config.as_ref(), index.is_some());
    Ok(structure)
}

fn shard_names(files: &[String], index: Option<&BTreeMap<String, String>>) -> BTreeSet<String> {
    let found = files.iter().filter(|f| f.ends_with(".safetensors") && !f.contains('/')).cloned();
    found.chain(index.iter().flat_map(|i| i.values().cloned())).collect()
}

impl Structure {
    fn fail(&mut self, category: Category, file: &str, message: impl Into<String>) {
        self.findings.push(Finding::failure(category, file, message));
    }

    fn fail_tensor(&mut self, category: Category, file: &str, tensor: &str, message: String) {
        self.findings.push(Finding::failure(category, file, message).tensor(tensor));
    }

    /// Tensor names and their files; `None` without a readable index.
    fn read_index(&mut self, root: &Root) -> Option<BTreeMap<String, String>> {
        let index = match read_json(root, INDEX, MAX_INDEX) {
            Ok(index) => index?,
            Err(error) => {
                self.fail(Category::Index, INDEX, error.message);
                return None;
            }
        };
        let Some(map) = index["weight_map"].as_object() else {
            self.fail(Category::Index, INDEX, "no weight_map");
            return None;
        };
        let mut places = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().unwrap_or_default();
            if crate::io::root::check_name(file).is_err() {
                let message = format!("{file:?} is not the name of a file in this folder");
                self.fail_tensor(Category::Index, INDEX, tensor, message);
            } else {
                places.insert(tensor.clone(), file.to_owned());
            }
        }
        Some(places)
    }

    fn read_shard(&mut self, root: &Root, name: &str) {
        match root.resolve(name) {
            Ok(Some(_)) => {}
            Ok(None) => return self.fail(Category::Missing, name, "the shard is missing"),
            Err(error) => return self.fail(Category::Unreadable, name, error.message),
        }
        match read_header(root, name) {
            Ok(ReadHeader { header, raw, .. }) => {
                for warning in header.warnings {
                    self.findings.push(Finding::note(Category::Header, name, warning));
                }
                let data_start = raw.len() as u64;
                self.shards.push(Shard {
                    name: name.to_owned(),
                    data_start,
                    tensors: header.tensors,
                });
            }
            Err(error) => {
                let category = diagnose(root, name).unwrap_or(Category::Header);
                let finding = Finding::failure(category, name, error.message);
                self.findings.push(Finding { tensor: error.tensor, ..finding });
            }
        }
    }

    fn check_tensors(
        &mut self,
        index: Option<&BTreeMap<String, String>>,
        selected: &dyn Fn(&str) -> bool,
        complete: bool,
    ) {
        let shards = std::mem::take(&mut self.shards);
        let mut places: Places = HashMap::new();
        for (at, shard) in shards.iter().enumerate() {
            for entry in &shard.tensors {
                if let Some((first, _)) = places.insert(&entry.name, (at, entry)) {
                    let message = format!("also in {}", shards[first].name);
                    self.fail_tensor(Category::Duplicate, &shard.name, &entry.name, message);
                }
            }
        }
        if let Some(index) = index {
            self.check_index(index, &shards, &places, selected);
        }
        for shard in &shards {
            for entry in &shard.tensors {
                self.check_scale(&shard.name, entry, &places, complete);
            }
        }
        self.shards = shards;
    }

    fn check_index(
        &mut self,
        index: &BTreeMap<String, String>,
        shards: &[Shard],
        places: &Places,
        selected: &dyn Fn(&str) -> bool,
    ) {
        let sound: BTreeSet<&str> = shards.iter().map(|s| s.name.as_str()).collect();
        for (tensor, file) in index.iter().filter(|(_, file)| selected(file)) {
            match places.get(tensor.as_str()) {
                Some((at, _)) if shards[*at].name != *file => {
                    let message = format!("the index says {file}");
                    self.fail_tensor(Category::Index, &shards[*at].name, tensor, message);
                }
                // Nothing can be said of a file whose own header is damaged or absent.
                None if sound.contains(file.as_str()) => {
                    let message = "named by the index, but not in the file".to_owned();
                    self.fail_tensor(Category::Index, file, tensor, message);
                }
                _ => {}
            }
        }
        let extra = places.keys().filter(|name| !index.contains_key(**name)).min();
        if let Some(first) = extra {
            let (at, _) = places[first];
            let message = "in the file, but not in the index: the index is stale".to_owned();
            self.fail_tensor(Category::Index, &shards[at].name, first, message);
        }
    }

    fn check_scale(&mut self, file: &str, entry: &Entry, places: &Places, complete: bool) {
        let lookup = |name: &str| places.get(name).map(|(_, e)| (e.dtype, &*e.shape));
        if entry.dtype == Dtype::F8E4M3 && entry.name.ends_with(".weight") {
            match companion::find(&entry.name, &entry.shape, lookup) {
                // The scale may lie in a shard that is damaged or was not selected.
                Err(problem) if complete || !problem.starts_with("no scale") => {
                    self.fail_tensor(Category::Scale, file, &entry.name, problem);
                }
                _ => {}
            }
        }
        let weight = companion::weight_of(&entry.name);
        if complete && companion::is_scale(&entry.name) && lookup(weight).is_none() {
            let message = "a scale without its weight".to_owned();
            self.fail_tensor(Category::Scale, file, &entry.name, message);
        }
    }

    fn read_config(&mut self, root: &Root) -> Option<Value> {
        match read_json(root, CONFIG, MAX_CONFIG) {
            Ok(config) => config,
            Err(error) => {
                self.fail(Category::Config, CONFIG, error.message);
                None
            }
        }
    }

    fn check_config(&mut self, config: &Value) {
        let entries: HashMap<&str, &Entry> =
            self.shards.iter().flat_map(|s| s.tensors.iter().map(|t| (&*t.name, t))).collect();
        let mut findings = Vec::new();
        let mut fail = |message: String, tensor: Option<String>| {
            let finding = Finding::failure(Category::Config, CONFIG, message);
            findings.push(Finding { tensor, ..finding });
        };
        let coded = entries.values().filter(|t| t.dtype == Dtype::F8E4M3);
        let coded = coded.map(|t| &*t.name).min();
        match (coded, !config["quantization_config"].is_null()) {
            (Some(name), false) => {
                fail("no quantization_config, yet a tensor is FP8".into(), Some(name.into()));
            }
            (None, true) => fail("quantization_config, yet no tensor is FP8".into(), None),
            _ => {}
        }
        match Architecture::builtin_for(config).map(|a| a.model(config)).transpose() {
            Err(error) => fail(error.message, None),
            Ok(None) => {}
            Ok(Some(model)) => {
                let lacks_mtp = model.lacks_mtp(entries.keys().copied());
                let present = |e: &Expected| !(lacks_mtp && model.is_mtp(e.layer));
                for expected in model.expected().filter(present) {
                    match entries.get(expected.name.as_str()) {
                        None if expected.rule.optional => {}
                        None => {
                            fail("implied by config.json, in no shard".into(), Some(expected.name));
                        }
                        Some(t) if *t.shape != *expected.shape => fail(
                            format!(
                                "shape {:?}, config.json implies {:?}",
                                t.shape, expected.shape
                            ),
                            Some(expected.name),
                        ),
                        Some(_) => {}
                    }
                }
                // Layers or experts beyond what the config counts have no place in the model.
                let beyond = entries.keys().filter(|name| {
                    let name = companion::weight_of(name);
                    name.starts_with("model.layers.") && model.role_of(name).is_none()
                });
                if let Some(first) = beyond.min() {
                    fail(
                        "no such tensor in the model of config.json".into(),
                        Some((*first).to_owned()),
                    );
                }
            }
        }
        self.findings.extend(findings);
    }

    fn require_small_files(&mut self, config: Option<&Value>, indexed: bool) {
        self.required.insert(CONFIG.into());
        if indexed {
            self.required.insert(INDEX.into());
        }
        // `auto_map` names modules: file, dot, class; another repository's are marked by `--`.
        let map = config.and_then(|c| c["auto_map"].as_object());
        for class in map.into_iter().flat_map(|m| m.values()).filter_map(Value::as_str) {
            if let (Some((module, _)), false) = (class.split_once('.'), class.contains("--")) {
                self.required.insert(format!("{module}.py"));
            }
        }
    }
}

/// What lies in place of any file, as its first bytes tell: a pointer, a page, or zeros.
pub(super) fn stand_in(start: &[u8]) -> Option<Category> {
    if start.starts_with(b"version https://git-lfs") {
        return Some(Category::LfsPointer);
    }
    let text = start.trim_ascii_start();
    let begins = |with: &[u8]| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with));
    if begins(b"<!doctype html") || begins(b"<html") || begins(b"<?xml") {
        return Some(Category::ErrorPage);
    }
    let zeroed = !start.is_empty() && start.iter().all(|b| *b == 0);
    zeroed.then_some(Category::ZeroedHeader)
}

/// The first bytes of a file, and its size; `None` if it cannot be read.
pub(super) fn start_of(file: &File) -> Option<(Vec<u8>, u64)> {
    let size = file.metadata().ok()?.len();
    let mut start = vec![0; SNIFF.min(size) as usize];
    file.read_exact_at(&mut start, 0).ok()?;
    Some((start, size))
}

/// What a file is whose header cannot be read.
fn diagnose(root: &Root, name: &str) -> Option<Category> {
    let Ok(file) = root.file(name) else { return Some(Category::Unreadable) };
    let (start, size) = start_of(&file)?;
    let text = start.trim_ascii_start();
    if text.starts_with(b"<") || text.starts_with(b"{\"") || text.starts_with(b"{ \"") {
        return Some(Category::ErrorPage);
    }
    if let Some(category) = stand_in(&start) {
        return Some(category);
    }
    let Some(&prefix) = start.first_chunk() else { return Some(Category::Truncated) };
    let declared = u64::from_le_bytes(prefix);
    if (2..=header::MAX_HEADER).contains(&declared) && declared > size - header::PREFIX {
        return Some(Category::Truncated);
    }
    let length = header::json_length(prefix, size).ok().filter(|l| *l <= MAX_DIAGNOSED)?;
    let mut json = vec![0; length as usize];
    file.read_exact_at(&mut json, header::PREFIX).ok()?;
    if json.iter().all(|b| *b == 0) {
        return Some(Category::ZeroedHeader);
    }
    let held = size - header::PREFIX - length;
    (Header::declared_length(&json)? > held).then_some(Category::Truncated)
}
