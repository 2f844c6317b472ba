//! Ranks that are written one after another into one folder.
//!
//! A node that prepares `--rank pp1` leaves a manifest of its share. A later run for another rank of
//! the same layout goes on from there: what the manifest lists becomes the journal of a plan for both,
//! which then writes what is missing and a manifest of all. While that lasts the old manifest lies
//! beside the journal, since a folder with a manifest would be taken for finished.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::catalog::{Catalog, MANIFEST, MAX_MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::exec::fold::DoneOutput;
use crate::exec::force::forget;
use crate::exec::hash::Digest128;
use crate::exec::identity::{Identities, SourceFile};
use crate::exec::journal::{self, Begin, DoneRecord, Journal};
use crate::exec::output::is_published;
use crate::exec::presence::Presence;
use crate::exec::publish::SUMS;
use crate::exec::standing::unseen;
use crate::exec::{Options, Progress, Worker};
use crate::io::link::Linked;
use crate::io::small;
use crate::json;
use crate::model::parallel::RankOnly;
use crate::plan::reshard::Reshard;
use crate::plan::{self, Plan, Request, Task};

#[derive(Deserialize)]
struct Manifest {
    plan: String,
    request: Request,
    source: Source,
    files: Vec<File>,
}

#[derive(Deserialize)]
struct Source {
    digest: String,
    #[serde(default)]
    files: Vec<SourceFile>,
}

#[derive(Deserialize)]
struct File {
    path: String,
    size: u64,
    sha256: Option<String>,
    linked: Option<Linked>,
    tensors: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    xxh3: Option<Digest128>,
}

/// The plan that adds `plan`, which is for some ranks, to those that the output holds already;
/// `None` if there is nothing to add to.
pub fn joined(catalog: &Catalog, plan: &Plan, output: &Path) -> Result<Option<Plan>> {
    earlier(plan, output)?.map(|(_, request)| plan::build(catalog, &request)).transpose()
}

/// As [`joined`], and makes the output an unfinished run of that plan.
pub fn join(
    catalog: &Catalog,
    plan: &Plan,
    options: &Options,
    progress: &Progress,
) -> Result<Option<Plan>> {
    if options.force || !options.resume {
        return Ok(None);
    }
    let output = &options.output;
    let Some((manifest, request)) = earlier(plan, output)? else { return Ok(None) };
    let joined = plan::build(catalog, &request)?;
    if manifest.plan == joined.digest() {
        return Ok(Some(joined));
    }
    if is_published(output)? {
        let identities = Identities::new(catalog, &options.links);
        let changed = identities.changed(&manifest.source.files)?;
        if !changed.is_empty() {
            return Err(Error::new(Kind::Foreign, "the folder holds ranks of another source")
                .at(output)
                .details(changed)
                .hint("choose another folder with -o, or replace this one with --force"));
        }
        adopt(&identities, &joined, output, &manifest)?;
    }
    if let Some(Reshard { earlier, .. }) = &request.reshard {
        let ranks: Vec<String> = earlier.iter().map(RankOnly::words).collect();
        progress.note(format!("the folder holds {} already; this adds to it", ranks.join(" and ")));
    }
    Ok(Some(joined))
}

/// The manifest of earlier ranks of the same layout and source, and the request for all.
fn earlier(plan: &Plan, output: &Path) -> Result<Option<(Manifest, Request)>> {
    let Some(ask) = plan.request.reshard.as_ref() else { return Ok(None) };
    let Some(rank) = ask.rank else { return Ok(None) };
    let path = if is_published(output)? { output.join(MANIFEST) } else { kept(output) };
    if !small::is_file(&path)? {
        return Ok(None);
    }
    let bytes = small::read(&path, MAX_MANIFEST)?;
    let Ok(manifest) = json::manifest::<Manifest>(&bytes) else { return Ok(None) };
    let mut request = manifest.request.clone();
    if request.check().is_err() {
        return Ok(None);
    }
    let Some(before) = request.reshard.as_mut() else { return Ok(None) };
    let Some(last) = before.rank else { return Ok(None) };
    if !before.holds(ask) {
        before.earlier.push(last);
        before.rank = Some(rank);
    }
    let same = apart_from_ranks(&request)? == apart_from_ranks(&plan.request)?;
    Ok((same && manifest.source.digest == plan.catalog_digest).then_some((manifest, request)))
}

fn kept(output: &Path) -> PathBuf {
    journal::folder(output).join(journal::EARLIER)
}

fn apart_from_ranks(request: &Request) -> Result<Value> {
    let mut request = request.clone();
    if let Some(ask) = &mut request.reshard {
        (ask.rank, ask.earlier) = (None, Vec::new());
    }
    serde_json::to_value(&request).map_err(|e| Error::internal(format!("cannot write JSON: {e}")))
}

/// Records what the manifest lists as done, then puts it aside.
fn adopt(identities: &Identities, joined: &Plan, output: &Path, manifest: &Manifest) -> Result<()> {
    let files: HashMap<&str, &File> = manifest.files.iter().map(|f| (&*f.path, f)).collect();
    let _alone = Presence::alone(output)?;
    forget(output)?;
    let journal = Journal::open(output, Worker::ALONE, &Begin { plan: joined.digest() })?;
    let listed = manifest.files.iter().map(|f| f.path.as_str());
    let claims: BTreeSet<&str> = listed.chain(joined.names()).chain([SUMS, MANIFEST]).collect();
    journal.claim(claims.into_iter().map(str::to_owned).collect())?;
    for task in &joined.tasks {
        if let Some(done) = done(task, output, &files, identities)? {
            journal.done(done)?;
        }
    }
    small::rename(&output.join(MANIFEST), &kept(output))
}

/// The record of a task whose outputs are all there, as the manifest has them. The manifest knows no
/// times, so that whoever goes on from the record hashes the files again.
fn done(
    task: &Task,
    output: &Path,
    files: &HashMap<&str, &File>,
    identities: &Identities,
) -> Result<Option<DoneRecord>> {
    let mut outputs = Vec::with_capacity(task.outputs.len());
    for planned in &task.outputs {
        let listed = files.get(&*planned.path).filter(|f| f.size == planned.size);
        let Some(file) = listed else { return Ok(None) };
        if small::size(&output.join(&planned.path))? != Some(planned.size) {
            return Ok(None);
        }
        outputs.push(DoneOutput {
            path: planned.path.clone(),
            size: planned.size,
            sha256: file.sha256.clone(),
            tensors: file.tensors.iter().filter_map(|t| t.xxh3).collect(),
            linked: file.linked,
        });
    }
    Ok(Some(DoneRecord {
        task: task.digest(),
        sources: identities.of_task(task)?,
        stamps: outputs.iter().map(|o| unseen(o.size)).collect(),
        outputs,
        verified: Vec::new(),
        reports: Vec::new(),
    }))
}
