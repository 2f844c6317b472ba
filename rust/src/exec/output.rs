//! The output folder: whether it is ours, what an earlier run left in it, whether there is room.

use std::path::Path;

use serde::Deserialize;

use super::identity::{Identities, SourceFile};
use super::journal::{self, State};
use super::publish::SUMS;
use crate::catalog::{Catalog, MANIFEST, MAX_MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::io::link::is_near;
use crate::io::{Entry, EntryKind, PART_SUFFIX, small};
use crate::json;
use crate::plan::{Plan, Task};

/// What of a manifest tells whether an output is complete.
#[derive(Debug, Deserialize)]
pub(super) struct ManifestHead {
    plan: String,
    /// Digest of the plan as requested, before tensors were kept for their NaN or infinity.
    requested: String,
    #[serde(default)]
    source: SourceHead,
    pub(super) files: Vec<ListedFile>,
    #[serde(default)]
    pub(super) sidecars: Vec<ListedFile>,
}

#[derive(Debug, Default, Deserialize)]
struct SourceHead {
    #[serde(default)]
    files: Vec<SourceFile>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ListedFile {
    pub(super) path: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) sha256: Option<String>,
}

/// What is in the output folder.
#[derive(Debug)]
pub enum Found {
    /// Complete, by this very plan.
    Complete,
    /// Empty, or an unfinished run of this plan.
    Resumable(Box<State>),
}

/// Looks at the output folder. [`Kind::Foreign`] if it is not ours to write.
///
/// `key` is the digest of the plan as requested, under which journals are kept; `digest` is that of
/// the plan about to run. With `identities` a complete output is held against the source's.
pub fn inspect(
    output: &Path,
    key: &str,
    digest: &str,
    identities: Option<&Identities>,
) -> Result<Found> {
    let foreign =
        |what: &str, hint: &str| Err(Error::new(Kind::Foreign, what).at(output).hint(hint));
    check_folder(output)?;
    if let Some(manifest) = read_manifest(output)? {
        if manifest.plan != digest && manifest.requested != key {
            return foreign(
                "the output folder holds the result of another plan",
                "choose another folder with -o, or replace this one with --force",
            );
        }
        if let Some(identities) = identities {
            same_source(output, &manifest.source.files, identities)?;
        }
        let mut wrong = Vec::new();
        for file in manifest.files.iter().chain(&manifest.sidecars) {
            if small::size(&output.join(&file.path))? != Some(file.size) {
                wrong.push(file.path.clone());
            }
        }
        if wrong.is_empty() {
            return Ok(Found::Complete);
        }
        return Err(Error::new(
            Kind::Foreign,
            "the output was complete, but files are missing or changed",
        )
        .at(output)
        .details(wrong)
        .hint("write it again with --force"));
    }
    let state = State::read(output)?;
    match &state.plan {
        Some(plan) if plan == key && !state.mixed => {}
        Some(_) => {
            return foreign(
                "the output folder holds an unfinished run of another plan",
                "finish that run, choose another folder with -o, or replace this one with --force",
            );
        }
        // What a process left that died before its first record.
        None if Entry::find(output, journal::FOLDER)?.is_some() => {}
        None => {
            if !small::list(output)?.is_empty() {
                return foreign(
                    "the output folder is not empty and was not written by lingconv",
                    "choose another folder with -o; lingconv never overwrites what it did not write",
                );
            }
        }
    }
    Ok(Found::Resumable(Box::new(state)))
}

/// A complete output counts only for the source it was made of.
fn same_source(output: &Path, files: &[SourceFile], identities: &Identities) -> Result<()> {
    let changed = identities.changed(files)?;
    if changed.is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::Foreign, "the output folder holds the result of another source")
        .at(output)
        .details(changed)
        .hint("choose another folder with -o, or replace this one with --force"))
}

/// [`Kind::Foreign`] if the output is no folder, or its folder for journals is none of ours.
pub(super) fn check_folder(output: &Path) -> Result<()> {
    if crate::io::entry::exists(output)? && !small::is_folder(output)? {
        return Err(Error::new(Kind::Foreign, "the output exists and is not a folder")
            .at(output)
            .hint("choose another name with -o"));
    }
    let journals = output.join(journal::FOLDER);
    match Entry::find(output, journal::FOLDER)? {
        Some(entry) if entry.kind != EntryKind::Other || !small::is_folder(&journals)? => {
            Err(Error::new(Kind::Foreign, "a file or link lies where the journals go")
                .at(journals)
                .hint("choose another folder with -o"))
        }
        _ => Ok(()),
    }
}

/// A file that lingconv did not write has the name of an output.
pub(super) fn foreign_file(output: &Path, name: &str) -> Error {
    Error::new(Kind::Foreign, "a file that lingconv did not write lies where an output goes")
        .at(output.join(name))
        .hint("move it away, or choose another folder with -o")
}

/// Names that the runs of `tasks` will give to files, the small ones of `plan` included.
/// [`Kind::Foreign`] if something has one of them that no run of this output made.
pub(super) fn names_to_claim(
    output: &Path,
    plan: &Plan,
    tasks: &[&Task],
    state: &State,
) -> Result<Vec<String>> {
    let data = tasks.iter().flat_map(|t| &t.outputs).map(|o| o.path.as_str());
    let small = plan.sidecars.iter().map(|s| s.path.as_str()).chain([SUMS, MANIFEST]);
    let names: Vec<&str> = data.chain(small).collect();
    for name in &names {
        let part = format!("{name}{PART_SUFFIX}");
        for (name, is_part) in [((*name).to_owned(), false), (part, true)] {
            let Some(entry) = Entry::find(output, &name)? else { continue };
            // We make files and links, never folders or pipes; and never a link that waits for its
            // name.
            let ours = match entry.kind {
                EntryKind::File => true,
                EntryKind::Link => !is_part,
                EntryKind::Other => false,
            };
            if !ours || !state.is_claimed(&name) {
                return Err(foreign_file(output, &name));
            }
        }
    }
    let new = names.into_iter().filter(|name| !state.claims.contains(*name));
    Ok(new.map(str::to_owned).collect())
}

/// Whether an output has its manifest.
pub(crate) fn is_published(output: &Path) -> Result<bool> {
    small::is_file(&output.join(MANIFEST))
}

pub(super) fn read_manifest(output: &Path) -> Result<Option<ManifestHead>> {
    if !is_published(output)? {
        return Ok(None);
    }
    let path = output.join(MANIFEST);
    let bytes = small::read(&path, MAX_MANIFEST)?;
    json::manifest(&bytes).map(Some).map_err(|e| {
        Error::new(Kind::Foreign, e.message).at(path).hint("choose another folder with -o")
    })
}

/// Bytes that the whole of `plan` still takes on the disk of `output`.
pub fn needed(output: &Path, catalog: &Catalog, plan: &Plan) -> Result<u64> {
    let tasks: Vec<&Task> = plan.tasks.iter().collect();
    let small_files: u64 = plan.sidecars.iter().map(|s| s.size).sum();
    Ok(bytes_to_come(output, catalog, &tasks)? + small_files)
}

fn bytes_to_come(output: &Path, catalog: &Catalog, tasks: &[&Task]) -> Result<u64> {
    // Where linking is refused although both lie on one file system, a full disk is an error midway.
    let is_linked = |task: &Task| {
        let Some(link) = task.link else { return Ok(false) };
        let path = catalog.root.resolve(catalog.file(link.shard).0)?;
        path.map_or(Ok(false), |path| is_near(&path, output, link.mode))
    };
    let mut bytes = 0;
    for task in tasks {
        if is_linked(task)? {
            continue;
        }
        for planned in &task.outputs {
            let path = output.join(&planned.path);
            let held = allocated(&path)? + allocated(&small::part_path(&path))?;
            bytes += planned.size.saturating_sub(held);
        }
    }
    Ok(bytes)
}

/// Fails unless everything that is still to be written fits on the disk.
pub fn check_space(
    output: &Path,
    catalog: &Catalog,
    tasks: &[&Task],
    sidecar_bytes: u64,
) -> Result<()> {
    let needed = bytes_to_come(output, catalog, tasks)? + sidecar_bytes;
    let free = small::free_space(output)?;
    let files = tasks.iter().map(|t| t.outputs.len() as u64).sum::<u64>() + 64;
    if needed <= free.bytes && files <= free.inodes {
        return Ok(());
    }
    let message = if needed > free.bytes {
        format!("{needed} bytes are needed, {} are free", free.bytes)
    } else {
        format!("{files} files are needed, the file system takes {} more", free.inodes)
    };
    Err(Error::new(Kind::Space, message)
        .at(output)
        .hint("free some space, or choose another disk with -o"))
}

/// Bytes that a file occupies on the disk.
fn allocated(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(small::look(path)?.map_or(0, |found| found.blocks() * 512))
}
