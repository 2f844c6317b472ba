//! The output folder: whether it is ours, what an earlier run left in it, whether there is room.

use std::path::Path;

use serde::Deserialize;

use super::executor::Run;
use super::journal::{self, State};
use super::sources::{agree, current_stamps};
use crate::catalog::{Catalog, MANIFEST};
use crate::error::{Error, Kind, Result};
use crate::io::link::is_near;
use crate::io::{PART_SUFFIX, Root, small};
use crate::plan::{Plan, Task};

/// Longest manifest that is read; Ling-1T's has some 30 MB.
const MAX_MANIFEST: u64 = 1 << 30;

/// Outputs lie this many folders deep: those of stages, and those of remote code in them.
const FOLDERS: usize = 3;

/// What of a manifest tells whether an output is complete.
#[derive(Debug, Deserialize)]
struct ManifestHead {
    plan: String,
    /// Digest of the plan as requested, before tensors were kept for their NaN or infinity.
    requested: String,
    files: Vec<ListedFile>,
    #[serde(default)]
    sidecars: Vec<ListedFile>,
}

#[derive(Debug, Deserialize)]
struct ListedFile {
    path: String,
    size: u64,
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
/// the plan about to run.
pub fn inspect(output: &Path, key: &str, digest: &str) -> Result<Found> {
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
        let listed = manifest.files.iter().chain(&manifest.sidecars);
        let wrong: Vec<String> = listed
            .filter(|f| small::size(&output.join(&f.path)) != Some(f.size))
            .map(|f| f.path.clone())
            .collect();
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
        None => {
            let names = small::list(output)?;
            if names.iter().any(|name| name != journal::FOLDER) {
                return foreign(
                    "the output folder is not empty and was not written by lingconv",
                    "choose another folder with -o; lingconv never overwrites what it did not write",
                );
            }
        }
    }
    Ok(Found::Resumable(Box::new(state)))
}

fn check_folder(output: &Path) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(Error::new(Kind::Foreign, "the output exists and is not a folder")
            .at(output)
            .hint("choose another name with -o"));
    }
    Ok(())
}

/// Empties an output folder that holds a manifest or a journal (`--force`), or forgets the
/// journal of an unfinished run (`--no-resume`). Files that lingconv did not write stay.
pub fn reset(output: &Path) -> Result<()> {
    check_folder(output)?;
    let manifest = read_manifest(output)?;
    let state = State::read(output)?;
    if manifest.is_none() && state.plan.is_none() {
        return Ok(());
    }
    for name in small::list(&journal::folder(output))? {
        if name.starts_with("journal.") {
            // Fails if another process is at work here.
            small::open_locked(&journal::folder(output).join(name))?;
        }
    }
    let mut written: Vec<String> = state
        .done
        .values()
        .flat_map(|(done, _)| done.outputs.iter().map(|o| o.path.clone()))
        .collect();
    if let Some(manifest) = manifest {
        written.extend(manifest.files.into_iter().chain(manifest.sidecars).map(|f| f.path));
        written.extend([MANIFEST.to_owned(), super::publish::SUMS.to_owned()]);
    }
    let names = if output.exists() { Root::open(output)?.names(FOLDERS)? } else { Vec::new() };
    written.extend(names.into_iter().filter(|name| name.ends_with(PART_SUFFIX)));
    for name in &written {
        crate::io::root::check_name(name)?;
        small::remove(&output.join(name))?;
    }
    for folder in written.iter().filter_map(|name| Path::new(name).parent()) {
        if !folder.as_os_str().is_empty() {
            small::remove_empty(&output.join(folder));
        }
    }
    small::remove_folder(&journal::folder(output))
}

fn read_manifest(output: &Path) -> Result<Option<ManifestHead>> {
    let path = output.join(MANIFEST);
    if small::size(&path).is_none() {
        return Ok(None);
    }
    let bytes = small::read(&path, MAX_MANIFEST)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::new(Kind::Foreign, format!("unreadable manifest: {e}"))
            .at(path)
            .hint("choose another folder with -o")
    })
}

impl State {
    /// Forgets what no longer holds: tasks whose source files changed since, and files that are
    /// not what was recorded. Says so.
    pub fn drop_stale(&mut self, run: &Run, output: &Path, here: &str) {
        for (task, digest) in run.plan.tasks.iter().zip(&run.digests) {
            let changed = |place: &str, sources: &[super::sources::SourceStamp]| {
                place == here && !agree(sources, &current_stamps(run.catalog, task))
            };
            let stale_done = self
                .done
                .get(digest)
                .is_some_and(|(done, place)| changed(place, &done.sources) || !done.stands(output));
            let stale_point = self
                .points
                .get(digest)
                .is_some_and(|(point, place)| changed(place, &point.sources));
            if stale_done || stale_point {
                self.done.remove(digest);
                self.points.remove(digest);
                run.progress.note(format!(
                    "{}: its source or output changed; it has to be written again",
                    task.name
                ));
            }
        }
    }
}

/// Bytes that the whole of `plan` still takes on the disk of `output`.
pub fn needed(output: &Path, catalog: &Catalog, plan: &Plan) -> u64 {
    let tasks: Vec<&Task> = plan.tasks.iter().collect();
    bytes_to_come(output, catalog, &tasks) + plan.sidecars.iter().map(|s| s.size).sum::<u64>()
}

fn bytes_to_come(output: &Path, catalog: &Catalog, tasks: &[&Task]) -> u64 {
    // Where linking is refused although both lie on one file system, a full disk is an error midway.
    let is_linked = |task: &&&Task| {
        let path = |shard| catalog.root.resolve(catalog.file(shard).0).ok().flatten();
        task.link.is_some_and(|l| path(l.shard).is_some_and(|p| is_near(&p, output, l.mode)))
    };
    let held = |path: &str| {
        let path = output.join(path);
        allocated(&path) + allocated(&small::part_path(&path))
    };
    let written = tasks.iter().filter(|t| !is_linked(t));
    written.flat_map(|t| &t.outputs).map(|o| o.size.saturating_sub(held(&o.path))).sum()
}

/// Fails unless everything that is still to be written fits on the disk.
pub fn check_space(
    output: &Path,
    catalog: &Catalog,
    tasks: &[&Task],
    sidecar_bytes: u64,
) -> Result<()> {
    let needed = bytes_to_come(output, catalog, tasks) + sidecar_bytes;
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
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    path.metadata().map_or(0, |m| m.blocks() * 512)
}
