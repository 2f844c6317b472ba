//! The end of a run: index, config and other small files, then SHA256SUMS, the manifest last.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::attest;
use super::executor::{Outcome, Run};
use super::fold::DoneOutput;
use super::hash::hex;
use super::journal::{self, State};
use super::manifest::Manifest;
use super::output::is_published;
use super::presence::Presence;
use super::standing::hash_file;
use crate::catalog::MANIFEST;
use crate::error::{Error, Kind, Result};
use crate::io::lock::Lock;
use crate::io::{Entry, EntryKind, Mode, PART_SUFFIX, small};
use crate::plan::sidecars::MAX_CARRIED;
use crate::plan::{Sidecar, SidecarContent};

/// Name of the checksum file.
pub const SUMS: &str = "SHA256SUMS";
/// Said of a file system that refuses fsync of a folder.
pub(super) const UNSYNCED: &str =
    "the file system cannot sync folders, so a power cut may undo the renaming of finished files";
/// First line of sums that no outside source has confirmed; a comment to `sha256sum -c`.
pub const SELF_ATTESTED: &str = "# self-attested by lingconv: its own digests, no outside source\n";
/// Second line of sums that hold linked files.
const LINKED: &str = "# linked files were not read: their digests are those known of the source\n";
/// Longest claim of publication: two numbers.
const MAX_CLAIM: u64 = 64;

/// Publishes if every task is done and nobody else is publishing.
pub(super) fn finish_if_last(run: &Run, state: &State, presence: &Presence) -> Result<Outcome> {
    let output = &run.options.output;
    if !run.digests.iter().all(|d| state.done.contains_key(d)) {
        if is_published(output)? {
            // Another worker recorded the last task after this one had looked, and published.
            return Ok(Outcome::Complete);
        }
        if run.options.worker.count == 1 {
            return Err(Error::new(Kind::Io, "a source or output changed during the run")
                .at(output)
                .hint("run the same command again; what still holds is kept"));
        }
        return Ok(Outcome::ShareComplete);
    }
    let alone = match presence.try_alone()? {
        Lock::Held => Ok(true),
        Lock::Busy => {
            run.progress.note("another process is at work here; the last one publishes".to_owned());
            Ok(false)
        }
        Lock::Unsupported => claim(run),
    };
    if is_published(output)? {
        // Another worker did, and removed the folder in this very moment.
        return Ok(Outcome::Complete);
    }
    if alone? { finish(run, state) } else { Ok(Outcome::ShareComplete) }
}

/// Where there are no locks: whether publication falls to this worker. A claim of its own number is that of a predecessor
/// that died while publishing: this one holds the journal of that number.
fn claim(run: &Run) -> Result<bool> {
    let path = journal::folder(&run.options.output).join(journal::FINISH);
    let worker = run.options.worker;
    let own = format!("{}/{}\n", worker.index, worker.count);
    if small::claim(&path, own.as_bytes())? || worker.count == 1 {
        return Ok(true);
    }
    let holder = String::from_utf8_lossy(&small::read(&path, MAX_CLAIM)?).into_owned();
    if holder == own {
        return Ok(true);
    }
    run.progress.note(format!(
        "worker {} is publishing; if it died, start it again or use --finish",
        holder.trim_end()
    ));
    Ok(false)
}

/// Publishes whatever a stale claim says (`run --finish`). [`Kind::Usage`] if tasks are missing.
pub fn finish(run: &Run, state: &State) -> Result<Outcome> {
    let output = &run.options.output;
    let tasks = run.plan.tasks.iter().zip(&run.digests);
    let missing: Vec<String> =
        tasks.filter(|(_, d)| !state.done.contains_key(*d)).map(|(t, _)| t.name.clone()).collect();
    if !missing.is_empty() {
        return Err(Error::usage(format!("{} tasks are not done", missing.len()))
            .at(output)
            .details(missing)
            .hint("run the workers that are missing, then --finish again"));
    }
    let verified = attest::verified(run, state)?;
    let manifest = Manifest::new(run, state, &verified)?;
    let mut sums = SELF_ATTESTED.to_owned();
    if run.links_known() {
        sums.push_str(LINKED);
    }
    let files = state_files(run, state);
    let sidecars = run.plan.sidecars.iter().map(|s| (s.path.as_str(), s.sha256.as_str()));
    let mut lines: Vec<(&str, &str)> = files.chain(sidecars).collect();
    lines.sort_unstable();
    for (path, sha256) in lines {
        sums.push_str(&sum_line(path, sha256));
    }
    for sidecar in &run.plan.sidecars {
        write_sidecar(run, sidecar)?;
    }
    small::write_durable(&output.join(SUMS), sums.as_bytes())?;
    remove_parts(run, state)?;
    small::stream_durable(&output.join(MANIFEST), |file| {
        serde_json::to_writer(file, &manifest).map_err(Into::into)
    })?;
    journal::remove(output, |_| true)?;
    Ok(Outcome::Complete)
}

/// Removes the `.part` files of outputs that others have finished: those of processes that died.
fn remove_parts(run: &Run, state: &State) -> Result<()> {
    let output = &run.options.output;
    for planned in run.plan.tasks.iter().flat_map(|t| &t.outputs) {
        let part = format!("{}{PART_SUFFIX}", planned.path);
        if state.is_claimed(&part)
            && let Some(entry) = Entry::find(output, &part)?
            && entry.kind == EntryKind::File
        {
            entry.remove(output)?;
        }
    }
    Ok(())
}

fn state_files<'a>(run: &Run, state: &'a State) -> impl Iterator<Item = (&'a str, &'a str)> {
    let done: Vec<_> = run.digests.iter().filter_map(|d| state.done.get(d)).collect();
    done.into_iter()
        .flat_map(|d| d.outputs.iter())
        .filter_map(|o| Some((o.path.as_str(), o.sha256.as_deref()?)))
}

/// A line of SHA256SUMS as GNU coreutils writes it: names with a backslash or newline are escaped.
pub fn sum_line(path: &str, sha256: &str) -> String {
    if path.contains(['\\', '\n', '\r']) {
        let escaped = path.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r");
        return format!("\\{sha256}  {escaped}\n");
    }
    format!("{sha256}  {path}\n")
}

fn write_sidecar(run: &Run, sidecar: &Sidecar) -> Result<()> {
    let path = run.options.output.join(&sidecar.path);
    if let Some(folder) = path.parent() {
        small::create_folder(folder)?;
    }
    let carried;
    let bytes = match &sidecar.content {
        SidecarContent::Bytes(bytes) => bytes,
        SidecarContent::Source(name) => {
            let found = run.catalog.root.read(name, MAX_CARRIED)?.unwrap_or_default();
            if hex(&Sha256::digest(&found)) != sidecar.sha256 {
                return Err(Error::new(Kind::Io, "the source's file changed after it was planned")
                    .at(run.catalog.root.path().join(name))
                    .hint("run the command again once nothing writes to the source"));
            }
            carried = found;
            &carried
        }
    };
    small::write_durable(&path, bytes)
}

/// Reads an output back from the disk and compares it with what was written (`--paranoid`). The
/// file still has its `.part` name.
pub(super) fn compare_on_disk(output: &Path, done: &DoneOutput) -> Result<()> {
    let name = format!("{}{PART_SUFFIX}", done.path);
    let found = hash_file(output, &name, Mode::Direct, true, || false)?;
    let written = done.sha256.as_deref().unwrap_or_default();
    if found == written {
        return Ok(());
    }
    Err(Error::new(Kind::Io, format!("the disk returns {found}, written was {written}"))
        .at(output.join(&done.path))
        .hint("the disk, controller or memory is faulty; do not trust this machine's files"))
}
