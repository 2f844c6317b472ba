//! What a checkpoint says of itself: headers, index, names, config. No tensor data is read.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::cut::Cut;
use super::diagnosis::diagnose;
use super::findings::{Category, Finding, Findings};
use crate::allowance::Allowance;
use crate::catalog::{CONFIG, INDEX, MAX_CONFIG, MAX_INDEX, read_json};
use crate::companion;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::header::Entry;
use crate::io::Root;
use crate::json::Index;
use crate::model::{Architecture, Expected, Model};
use crate::shard_headers::{ReadHeader, read_header};

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
    pub findings: Findings,
    /// What is left for further headers.
    allowance: Allowance,
}

/// Tensors of the index, each with its file.
type IndexPlaces<'i> = BTreeMap<&'i str, &'i str>;

/// All tensors by their names, with the numbers of their shards; lean, since there may be many.
struct Places<'s> {
    shards: &'s [Shard],
    order: Vec<(u32, u32)>,
}

impl<'s> Places<'s> {
    fn of(shards: &'s [Shard]) -> Self {
        let numbers = |(shard, held): (u32, &Shard)| {
            (0..held.tensors.len() as u32).map(move |tensor| (shard, tensor))
        };
        let mut order: Vec<(u32, u32)> = (0..).zip(shards).flat_map(numbers).collect();
        let mut places = Self { shards, order: Vec::new() };
        order.sort_unstable_by_key(|place| (&*places.at(*place).name, *place));
        places.order = order;
        places
    }

    fn at(&self, (shard, tensor): (u32, u32)) -> &'s Entry {
        &self.shards[shard as usize].tensors[tensor as usize]
    }

    /// In the order of the names; of equal ones in that of the shards.
    fn all(&self) -> impl Iterator<Item = (usize, &'s Entry)> {
        self.order.iter().map(|place| (place.0 as usize, self.at(*place)))
    }

    fn get(&self, name: &str) -> Option<(usize, &'s Entry)> {
        let found = self.order.binary_search_by_key(&name, |place| &*self.at(*place).name).ok()?;
        let place = self.order[found];
        Some((place.0 as usize, self.at(place)))
    }
}

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
            structure.read_shard(root, name)?;
        }
        return Ok(structure);
    }
    let index = structure.read_index(root)?;
    let places = index.as_ref().map(|index| structure.places_of(index));
    let index = places.as_ref();
    let shards = shard_names(files, index);
    if shards.is_empty() {
        return Err(Error::new(Kind::Invalid, "no safetensors files and no index")
            .at(root.path())
            .hint("name the folder that holds the checkpoint"));
    }
    for name in shards.iter().filter(|name| selected(name)) {
        structure.required.insert(name.clone());
        structure.read_shard(root, name)?;
    }
    let whole = shards.iter().all(|name| selected(name));
    let sound = structure.shards.len() == shards.len();
    structure.check_tensors(index, selected, whole && sound);
    let config = structure.read_config(root)?;
    if let (Some(config), true) = (&config, whole && sound) {
        structure.check_config(config);
    }
    structure.require_small_files(config.as_ref(), index.is_some());
    Ok(structure)
}

fn shard_names(files: &[String], index: Option<&IndexPlaces<'_>>) -> BTreeSet<String> {
    let found = files.iter().filter(|f| f.ends_with(".safetensors") && !f.contains('/')).cloned();
    found.chain(index.into_iter().flat_map(|i| i.values().map(|file| (*file).to_owned()))).collect()
}

impl Structure {
    fn fail(&mut self, category: Category, file: &str, message: impl Into<String>) {
        self.findings.push(Finding::failure(category, file, message));
    }

    fn fail_tensor(&mut self, category: Category, file: &str, tensor: &str, message: String) {
        self.findings.push(Finding::failure(category, file, message).tensor(tensor));
    }

    /// The index; `None` without a readable one.
    fn read_index(&mut self, root: &Root) -> Result<Option<Index>> {
        let parsed = root.read(INDEX, MAX_INDEX).and_then(|text| match text {
            Some(text) => Index::parse(&text).map(Some),
            None => Ok(None),
        });
        parsed.or_else(|error| {
            self.findings.push(Finding::of(Category::Index, INDEX, error.about_file()?));
            Ok(None)
        })
    }

    /// Tensor names and their files, where they lie in this folder.
    fn places_of<'i>(&mut self, index: &'i Index) -> BTreeMap<&'i str, &'i str> {
        let hostile = |name: &&String| crate::io::root::check_name(name).is_err();
        let hostile: BTreeSet<&str> = index.files().iter().filter(hostile).map(|f| &**f).collect();
        let (wrong, right): (Vec<_>, Vec<_>) =
            index.tensors().partition(|(_, file)| hostile.contains(file));
        for (tensor, file) in wrong {
            let message = format!("{file:?} is not the name of a file in this folder");
            self.fail_tensor(Category::Index, INDEX, tensor, message);
        }
        right.into_iter().collect()
    }

    fn read_shard(&mut self, root: &Root, name: &str) -> Result<()> {
        match root.resolve(name) {
            Ok(Some(_)) => {}
            Ok(None) => {
                self.fail(Category::Missing, name, "the shard is missing");
                return Ok(());
            }
            Err(error) => {
                self.fail(Category::Unreadable, name, error.about_file()?.message);
                return Ok(());
            }
        }
        match read_header(root, name, &self.allowance) {
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
                let error = error.about_file()?;
                let category = diagnose(root, name).unwrap_or(Category::Header);
                self.findings.push(Finding::of(category, name, error));
            }
        }
        Ok(())
    }

    fn check_tensors(
        &mut self,
        index: Option<&IndexPlaces<'_>>,
        selected: &dyn Fn(&str) -> bool,
        complete: bool,
    ) {
        let shards = std::mem::take(&mut self.shards);
        let places = Places::of(&shards);
        for ((first, entry), (second, other)) in places.all().zip(places.all().skip(1)) {
            if entry.name == other.name {
                let message = format!("also in {}", shards[first].name);
                self.fail_tensor(Category::Duplicate, &shards[second].name, &entry.name, message);
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
        index: &IndexPlaces<'_>,
        shards: &[Shard],
        places: &Places,
        selected: &dyn Fn(&str) -> bool,
    ) {
        let sound: BTreeSet<&str> = shards.iter().map(|s| s.name.as_str()).collect();
        for (tensor, file) in index.iter().filter(|(_, file)| selected(file)) {
            match places.get(tensor) {
                Some((at, _)) if shards[at].name != **file => {
                    let message = format!("the index says {file}");
                    self.fail_tensor(Category::Index, &shards[at].name, tensor, message);
                }
                // Nothing can be said of a file whose own header is damaged or absent.
                None if sound.contains(file) => {
                    let message = "named by the index, but not in the file".to_owned();
                    self.fail_tensor(Category::Index, file, tensor, message);
                }
                _ => {}
            }
        }
        let extra = places.all().find(|(_, entry)| !index.contains_key(&*entry.name));
        if let Some((at, entry)) = extra {
            let message = "in the file, but not in the index: the index is stale".to_owned();
            self.fail_tensor(Category::Index, &shards[at].name, &entry.name, message);
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

    fn read_config(&mut self, root: &Root) -> Result<Option<Value>> {
        read_json(root, CONFIG, MAX_CONFIG).or_else(|error| {
            self.findings.push(Finding::of(Category::Config, CONFIG, error.about_file()?));
            Ok(None)
        })
    }

    fn check_config(&mut self, config: &Value) {
        let tensors = self.shards.iter().flat_map(|shard| &shard.tensors);
        let coded = tensors.filter(|t| t.dtype == Dtype::F8E4M3).map(|t| t.name.clone()).min();
        match (coded, !config["quantization_config"].is_null()) {
            (Some(name), false) => {
                let message = "no quantization_config, yet a tensor is FP8".to_owned();
                self.fail_tensor(Category::Config, CONFIG, &name, message);
            }
            (None, true) => {
                let message = "quantization_config, yet no tensor is FP8";
                self.fail(Category::Config, CONFIG, message);
            }
            _ => {}
        }
        match Architecture::builtin_for(config).map(|a| a.model(config)).transpose() {
            Err(error) => self.findings.push(Finding::of(Category::Config, CONFIG, error)),
            Ok(None) => {}
            Ok(Some(model)) => self.check_model(&model),
        }
    }

    fn check_model(&mut self, model: &Model) {
        let places = Places::of(&self.shards);
        let entries = || places.all().map(|(_, entry)| entry);
        let findings = &mut self.findings;
        let mut fail = |message: String, tensor: String| {
            findings.push(Finding::failure(Category::Config, CONFIG, message).tensor(tensor));
        };
        let lacks_mtp = model.lacks_mtp(entries().map(|t| &*t.name));
        let present = |e: &Expected| !(lacks_mtp && model.is_mtp(e.layer));
        for expected in model.expected().filter(present) {
            match places.get(&expected.name).map(|(_, entry)| entry) {
                None if expected.rule.optional => {}
                None => fail("implied by config.json, in no shard".into(), expected.name),
                Some(t) if *t.shape != *expected.shape => {
                    let implied = expected.shape;
                    let message = format!("shape {:?}, config.json implies {implied:?}", t.shape);
                    fail(message, expected.name);
                }
                Some(_) => {}
            }
        }
        // Layers or experts beyond what the config counts have no place in the model.
        let beyond = entries().find(|entry| {
            let name = companion::weight_of(&entry.name);
            name.starts_with("model.layers.") && model.role_of(name).is_none()
        });
        if let Some(first) = beyond {
            fail("no such tensor in the model of config.json".into(), first.name.to_string());
        }
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
