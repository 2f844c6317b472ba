//! `--force` and `--no-resume`: an output folder is emptied of what lingconv wrote, and of nothing else.
//!
//! Ours is what the manifest or a journal lists, if it lies in the folder itself and not behind a
//! link. Whether the new plan's files have room beside what is not ours is found out before the
//! first removal. The names of what goes are recorded first: a process that dies midway leaves a
//! folder that the same command still knows.

use std::collections::BTreeMap;
use std::path::Path;

use super::journal::{self, Journal, State};
use super::output::{ManifestHead, check_folder, foreign_file, read_manifest};
use super::presence::Presence;
use super::publish::SUMS;
use super::standing::hash_file;
use crate::catalog::MANIFEST;
use crate::error::Result;
use crate::io::entry::remove_emptied;
use crate::io::root::check_name;
use crate::io::{Entry, EntryKind, Mode, PART_SUFFIX, small};
use crate::plan::Plan;

/// Files up to this size are hashed before they are removed, where a digest is known.
const HASHED: u64 = 16 << 20;

/// Size and SHA-256 of a file of ours; none where no record has them.
type Look = Option<(u64, Option<String>)>;
/// Files of ours by name.
type Ours = BTreeMap<String, Look>;

/// Empties the output for `plan`; a folder that lingconv did not write is left as it is.
///
/// # Errors
/// [`Kind::Foreign`](crate::error::Kind::Foreign) if a file that is not ours lies where `plan` would
/// write, or another process is at work; nothing was removed then.
pub fn reset(output: &Path, plan: &Plan) -> Result<()> {
    check_folder(output)?;
    let manifest = read_manifest(output)?;
    let has_journals = Entry::find(output, journal::FOLDER)?.is_some();
    if manifest.is_none() && !has_journals {
        return Ok(());
    }
    let _alone = Presence::alone(output)?;
    let planned = planned_names(plan);
    let ours = match look(output, manifest, &planned) {
        Ok(ours) => ours,
        Err(error) => {
            if !has_journals {
                // The lock alone, which a complete output does not have.
                journal::remove(output, |_| true)?;
            }
            return Err(error);
        }
    };
    Journal::of_claims(output, ours.keys().cloned().collect())?;
    remove(output, MANIFEST, None, true)?;
    for (name, look) in &ours {
        remove(output, name, look.as_ref(), planned.binary_search(name).is_ok())?;
    }
    for name in ours.keys() {
        remove_emptied(output, name)?;
    }
    small::sync_folder(output)?;
    forget(output)
}

/// What is ours; an error if anything else has a name of `planned`.
fn look(output: &Path, manifest: Option<ManifestHead>, planned: &[String]) -> Result<Ours> {
    let mut ours = ours(manifest, &State::read(output)?, planned)?;
    // What waits for its name is a file of ours, never a link.
    let is_link = |name: &str| {
        Entry::find(output, name).map(|e| e.is_some_and(|entry| entry.kind == EntryKind::Link))
    };
    let parts: Vec<String> = ours.keys().filter(|n| n.ends_with(PART_SUFFIX)).cloned().collect();
    for part in parts {
        if is_link(&part)? {
            ours.remove(&part);
        }
    }
    for name in planned {
        if !ours.contains_key(name) && Entry::find(output, name)?.is_some() {
            return Err(foreign_file(output, name));
        }
    }
    Ok(ours)
}

/// Removes the journals; the lock, which is held, stays.
pub(crate) fn forget(output: &Path) -> Result<()> {
    journal::remove(output, |name| name != journal::LOCK)?;
    small::sync_folder(&journal::folder(output)).map(drop)
}

/// Everything that `plan` may give a name to, sorted.
fn planned_names(plan: &Plan) -> Vec<String> {
    let whole = plan.names().map(str::to_owned).chain([MANIFEST, SUMS].map(str::to_owned));
    let mut names: Vec<String> =
        whole.flat_map(|name| [format!("{name}{PART_SUFFIX}"), name]).collect();
    names.sort_unstable();
    names
}

fn ours(manifest: Option<ManifestHead>, state: &State, planned: &[String]) -> Result<Ours> {
    let mut whole = Ours::new();
    whole.extend(state.claims.iter().map(|name| (name.clone(), None)));
    if !state.unreadable.is_empty() {
        whole.extend(planned.iter().map(|name| (name.clone(), None)));
    }
    // A complete output has none: one beside it is somebody's.
    let parts: Vec<_> = whole.keys().map(|name| (format!("{name}{PART_SUFFIX}"), None)).collect();
    whole.extend(parts);
    if let Some(manifest) = manifest {
        whole.extend([(MANIFEST.to_owned(), None), (SUMS.to_owned(), None)]);
        let listed = manifest.files.into_iter().chain(manifest.sidecars);
        whole.extend(listed.map(|file| (file.path, Some((file.size, file.sha256)))));
    }
    whole.retain(|name, _| !name.starts_with(journal::FOLDER));
    whole.keys().try_for_each(|name| check_name(name))?;
    Ok(whole)
}

/// Removes a file of ours. One of another size or content was changed by somebody, and goes only if
/// the new plan writes it; a folder in its place is nothing that we made.
fn remove(
    output: &Path,
    name: &str,
    look: Option<&(u64, Option<String>)>,
    planned: bool,
) -> Result<()> {
    let Some(entry) = Entry::find(output, name)? else { return Ok(()) };
    let same = || match look {
        _ if entry.kind == EntryKind::Link => Ok(true),
        Some((size, _)) if *size != entry.size => Ok(false),
        Some((size, Some(sha256))) if *size <= HASHED => {
            hash_file(output, name, Mode::Buffered, false, || false).map(|found| found == *sha256)
        }
        _ => Ok(true),
    };
    if entry.kind == EntryKind::Other || !(planned || same()?) {
        return Ok(());
    }
    entry.remove(output)
}
