//! What the files of each rank hold, by headers: of a plan, or of a folder that was written.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Reshard;
use crate::catalog::{CONFIG, MANIFEST, MAX_CONFIG, MAX_MANIFEST};
use crate::error::{Error, Result};
use crate::header::Entry;
use crate::io::Root;
use crate::json;
use crate::model::parallel::RankOnly;
use crate::plan::data::Plan;
use crate::shard_headers::read_headers;
use crate::target::{Form, Target};

/// What is known of a layout, and what each rank finds in its files.
#[derive(Debug, Serialize)]
pub struct Holdings {
    /// Name of the engine.
    pub engine: String,
    /// Text of the target's profile.
    pub profile: String,
    /// Tensor parallel size.
    pub tp: u32,
    /// Pipeline parallel size.
    pub pp: u32,
    /// Expert parallel size.
    pub ep: u32,
    /// Layers of each stage; empty: as the engine deals them out.
    pub layers: Vec<u32>,
    /// Text of config.json, as planned or as written.
    pub config: Option<String>,
    /// Ranks that have files.
    pub ranks: Vec<Held>,
}

/// The tensors of one rank.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Pipeline stage, from 0.
    pub pp: u32,
    /// Tensor parallel rank, from 0.
    pub tp: u32,
    /// Where its config.json lies, relative to the output; empty: in it.
    pub folder: String,
    /// Element type and shape by name.
    pub tensors: BTreeMap<String, (String, Vec<u64>)>,
}

#[derive(Deserialize)]
struct Manifest {
    request: RequestPart,
}

#[derive(Deserialize)]
struct RequestPart {
    reshard: Option<Reshard>,
}

/// What the ranks of a plan will find.
///
/// # Errors
/// [`Kind::Impossible`](crate::error::Kind::Impossible) unless the plan cuts for ranks.
pub fn planned(plan: &Plan) -> Result<Holdings> {
    let ask = plan.request.reshard.as_ref().ok_or_else(|| not_cut("the plan"))?;
    let outputs = plan.tasks.iter().flat_map(|t| &t.outputs);
    let files: Vec<(String, &[Entry])> =
        outputs.map(|o| (o.path.clone(), o.tensors.as_slice())).collect();
    let config = plan.config_text().map(str::to_owned);
    Ok(Holdings { config, ..holdings(ask, &files)? })
}

/// What the ranks find in a folder that `reshard` wrote, by the headers of its files.
///
/// # Errors
/// [`Kind::Impossible`](crate::error::Kind::Impossible) unless it was cut for ranks,
/// [`Kind::Invalid`](crate::error::Kind::Invalid) for damaged headers.
pub fn written(path: &Path) -> Result<Holdings> {
    let root = Root::open(path)?;
    let bytes = root.read(MANIFEST, MAX_MANIFEST)?;
    let manifest = bytes.and_then(|b| json::manifest::<Manifest>(&b).ok());
    let ask = manifest.and_then(|m| m.request.reshard);
    let ask = ask.ok_or_else(|| not_cut("the folder").at(path))?;
    ask.check().map_err(|e| e.at(path.join(MANIFEST)))?;
    let mut names = root.names(1)?;
    names.retain(|name| name.ends_with(".safetensors"));
    let headers = read_headers(&root, &names)?;
    let files: Vec<(String, &[Entry])> = names
        .into_iter()
        .zip(&headers)
        .map(|(name, read)| (name, read.header.tensors.as_slice()))
        .collect();
    let found = holdings(&ask, &files).map_err(|e| e.at(path))?;
    let folder = found.ranks.first().map(|rank| rank.folder.as_str()).filter(|f| !f.is_empty());
    let name = folder.map_or(CONFIG.to_owned(), |folder| format!("{folder}/{CONFIG}"));
    let config = root.read(&name, MAX_CONFIG)?.and_then(|bytes| String::from_utf8(bytes).ok());
    Ok(Holdings { config, ..found })
}

fn not_cut(what: &str) -> Error {
    Error::impossible(format!("{what} was not cut for the ranks of an engine"))
        .hint("cut a checkpoint first: `lingconv reshard --target vllm`")
}

fn holdings(ask: &Reshard, files: &[(String, &[Entry])]) -> Result<Holdings> {
    let target = ask.load_target()?;
    if target.layout.form != Form::Ranks {
        return Err(not_cut("the layout keeps names, so it"));
    }
    let staged = ask.pp > 1;
    let mut ranks = Vec::new();
    for (pp, tp) in (0..ask.pp).flat_map(|pp| (0..ask.tp).map(move |tp| (pp, tp))) {
        let own = target.layout.paths_of(&RankOnly { tp: Some(tp), pp: Some(pp) }, staged)?;
        let mut tensors = BTreeMap::new();
        for entry in files.iter().filter(|(name, _)| own.is_match(name)).flat_map(|(_, e)| *e) {
            let held = (entry.dtype.name().to_owned(), entry.shape.to_vec());
            if tensors.insert(entry.name.to_string(), held).is_some() {
                return Err(Error::invalid(format!("in two files of rank tp{tp}, pp{pp}"))
                    .tensor(&*entry.name));
            }
        }
        let folder = target.layout.folder(pp as usize).filter(|_| staged).unwrap_or_default();
        if !tensors.is_empty() {
            ranks.push(Held { pp, tp, folder, tensors });
        }
    }
    let profile = match &ask.target_file {
        Some(text) => text.clone(),
        None => Target::builtin_text(&ask.target).unwrap_or_default().to_owned(),
    };
    Ok(Holdings {
        engine: target.engine,
        profile,
        tp: ask.tp,
        pp: ask.pp,
        ep: ask.ep,
        layers: ask.pp_layers.clone(),
        config: None,
        ranks,
    })
}
