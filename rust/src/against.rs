//! `verify --against DIR`: the plan that a folder was made by, derived again from its source.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::catalog::{Catalog, MANIFEST, MAX_MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::exec::hash::hex;
use crate::io::Root;
use crate::json;
use crate::numeric::Level;
use crate::plan::{self, Request};
use crate::verify::{Remake, edits};

#[derive(Deserialize)]
struct Manifest {
    tensors: String,
    request: Request,
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    digest: String,
    config: Option<String>,
    shards: Vec<Shard>,
}

#[derive(Deserialize)]
struct Shard {
    name: String,
    size: u64,
    header_sha256: String,
}

/// Plans again what made `folder` of `source`, to be done within `memory` bytes of buffers.
///
/// # Errors
/// [`Kind::Unverifiable`] without a manifest, [`Kind::Check`] if the manifest is damaged or tells of
/// another source or plan; what opening and planning the source can end with.
pub fn remake(folder: &Path, source: &Path, memory: u64, level: Level) -> Result<Remake> {
    let root = Root::open(folder)?;
    let bytes = root.read(MANIFEST, MAX_MANIFEST)?.ok_or_else(|| {
        Error::new(Kind::Unverifiable, "no manifest says what was made of the source")
            .at(folder.join(MANIFEST))
            .hint("compare with a list of digests: --against FILE")
    })?;
    let damaged = |e: String| {
        Error::new(Kind::Check, format!("damaged manifest: {e}"))
            .at(folder.join(MANIFEST))
            .hint("`lingconv verify` without --against says what is known of the folder")
    };
    let manifest: Manifest = json::manifest(&bytes).map_err(|e| damaged(e.message))?;
    drop(bytes);
    let request = manifest.request;
    request.check().map_err(|e| damaged(e.message))?;
    let catalog = plan::original::open(source)?;
    if catalog.digest() != manifest.source.digest {
        return Err(Error::new(Kind::Check, "the folder was made of another source")
            .at(source)
            .details(manifest.source.differences(&catalog))
            .hint("name the source that it was made of: --against DIR"));
    }
    let mut plan = plan::build(&catalog, &request)?;
    let as_planned = plan.tensor_digest();
    // Whether shards can be linked depends on the form of the source; their bytes do not.
    plan.tasks.iter_mut().for_each(|task| task.link = None);
    if ![as_planned, plan.tensor_digest()].contains(&manifest.tensors) {
        return Err(Error::new(
            Kind::Check,
            "the plan that this version makes of the source is not the one in the manifest",
        )
        .at(folder.join(MANIFEST))
        .hint("the manifest was changed, or another version of lingconv wrote it; use that one"));
    }
    Ok(Remake::new(catalog, plan, memory, level))
}

impl Source {
    /// What the source that was converted had and `catalog` has not, and the other way round.
    fn differences(&self, catalog: &Catalog) -> Vec<String> {
        let here = catalog.shards.iter().map(|s| {
            let header = hex(&Sha256::digest(&*s.raw_header));
            (s.name.as_str(), (s.stamp.size, header))
        });
        let mut here: BTreeMap<&str, (u64, String)> = here.collect();
        let mut lines = Vec::new();
        for shard in &self.shards {
            match here.remove(shard.name.as_str()) {
                None => lines.push(format!("{}: not in this folder", shard.name)),
                Some((size, _)) if size != shard.size => {
                    lines.push(format!("{}: {size} bytes, {} then", shard.name, shard.size));
                }
                Some((_, header)) if header != shard.header_sha256 => {
                    lines.push(format!("{}: another header", shard.name));
                }
                Some(_) => {}
            }
        }
        lines.extend(here.keys().map(|name| format!("{name}: only in this folder")));
        let then = self.config.as_deref().and_then(|text| json::value(text.as_bytes()).ok());
        let (then, now) = (then.unwrap_or_default(), catalog.config.clone().unwrap_or_default());
        lines.extend(edits::keys(&then, &now).iter().map(|key| format!("config.json: {key}")));
        lines
    }
}
