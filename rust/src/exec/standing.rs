//! Whether what is recorded still holds: the disk is believed, not the record of it.
//!
//! Outputs and sources that nobody has touched are taken as recorded, which costs a look at their
//! times and at a sample of the source. Where times differ the bytes decide: an output is hashed
//! again, a source converted again, without writing, and the digests compared. A `.part` file is
//! hashed always, up to its point, and given up if its source was touched.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use super::attest::Attest;
use super::budget::{Together, budget};
use super::executor::{Options, Run};
use super::fold::{DoneOutput, Fold, TensorReport, recount};
use super::hash::hex;
use super::journal::{DoneRecord, State};
use super::linking;
use super::reached::is_possible;
use super::replay::replay;
use super::slot::Work;
use super::sources::{Agreement, SourceStamp, Sources, agreement};
use crate::error::{Error, Kind, Result};
use crate::io::{
    Entry, EntryKind, Mode, PART_SUFFIX, Part, PartWriter, Root, SourceFile, Stamp, read_ahead,
    small,
};
use crate::plan::Task;

/// What is thought of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It holds.
    Stands,
    /// Its bytes have to be looked at.
    Doubtful,
    /// Its outputs are not there, or are others.
    Gone,
    /// It was made of another source.
    OtherSource,
}

impl Run<'_> {
    /// Looks at what a task's record says, without reading more than samples.
    pub(super) fn judge(&self, task: &Task, done: &DoneRecord) -> Result<Standing> {
        if !fits(task, done) {
            return Ok(Standing::Gone);
        }
        let sources = agreement(&done.sources, &self.identities.of_task(task)?);
        if sources == Agreement::Others {
            return Ok(Standing::OtherSource);
        }
        if done.outputs.iter().any(|output| output.linked.is_some()) {
            return linking::judge(self, task, done, sources);
        }
        let mut outputs = true;
        for (output, stamp) in done.outputs.iter().zip(&done.stamps) {
            // A link in its place is nothing that was written, wherever it leads.
            let entry = Entry::find(self.output(), &output.path)?;
            let file = entry.is_some_and(|entry| entry.kind == EntryKind::File);
            match small::stamp(&self.output().join(&output.path))?.filter(|_| file) {
                Some(found) if found.size == output.size => outputs &= found.is_same(*stamp),
                _ => return Ok(Standing::Gone),
            }
        }
        let doubtful = !outputs || sources == Agreement::Doubtful;
        Ok(if doubtful { Standing::Doubtful } else { Standing::Stands })
    }

    /// Reads the bytes behind a doubtful record: the record as it is now, or `None` if it does not
    /// hold any more.
    pub(super) fn prove(&self, task: &Task, done: &DoneRecord) -> Result<Option<DoneRecord>> {
        let mut stamps = Vec::with_capacity(done.outputs.len());
        for (output, stamp) in done.outputs.iter().zip(&done.stamps) {
            let path = self.output().join(&output.path);
            let Some(found) = small::stamp(&path)? else { return Ok(None) };
            if !found.is_same(*stamp) && self.hash_output(&output.path)? != output.sha256 {
                return Ok(None);
            }
            stamps.push(found);
        }
        let mut sources = self.identities.of_task(task)?;
        if agreement(&done.sources, &sources) == Agreement::Doubtful {
            // What was told of the source itself cannot be had from the outputs.
            if !done.verified.is_empty() || !done.reports.is_empty() {
                return Ok(None);
            }
            match self.remake(task, &done.outputs)? {
                Some(read) => sources = read,
                None => return Ok(None),
            }
        }
        Ok(Some(DoneRecord { sources, stamps, ..done.clone() }))
    }

    /// What the files that `task` reads look like, if just these outputs are made of them.
    pub(super) fn remake(
        &self,
        task: &Task,
        outputs: &[DoneOutput],
    ) -> Result<Option<Vec<SourceStamp>>> {
        let Options { memory, jobs, level, .. } = *self.options;
        let budget = budget(self.plan, memory, jobs, Together::Fitting)?;
        let (catalog, sources) = (self.catalog, &self.sources(task)?);
        let stamps = sources.stamps(&self.identities)?;
        let work = Work { catalog, task, sources, level, prove: false, report: false };
        let sinks: Vec<Option<PartWriter>> = task.outputs.iter().map(|_| None).collect();
        let (_, made) = match replay(work, budget, self.progress, &AtomicU64::default(), sinks) {
            // Whoever writes it again will say so.
            Err(error) if error.kind == Kind::NonFinite => return Ok(None),
            made => made?,
        };
        let same = made.iter().map(|o| &o.sha256).eq(outputs.iter().map(|o| &o.sha256));
        Ok((same && sources.check_unchanged()?).then_some(stamps))
    }

    fn hash_output(&self, name: &str) -> Result<Option<String>> {
        hash_file(self.output(), name, self.options.io, false, || self.progress.stopped()).map(Some)
    }

    /// Forgets what does not hold, and says so. [`Kind::Foreign`] if tasks of other workers were made
    /// of another source: nobody may publish that.
    pub(super) fn settle(&self, state: &mut State) -> Result<()> {
        let share = self.options.worker.tasks(self.plan);
        for (index, (task, digest)) in self.plan.tasks.iter().zip(&self.digests).enumerate() {
            let Some(done) = state.done.get(digest) else { continue };
            let standing = match self.judge(task, done)? {
                Standing::Doubtful => match self.prove(task, done)? {
                    Some(_) => Standing::Stands,
                    None => Standing::Gone,
                },
                standing => standing,
            };
            match standing {
                Standing::Stands => continue,
                Standing::OtherSource if share.binary_search(&index).is_err() => {
                    return Err(self.other_source(task));
                }
                _ => {}
            }
            self.progress.note(format!("{}: {CHANGED}", task.name));
            state.done.remove(digest);
        }
        Ok(())
    }

    /// [`Kind::Foreign`] if another worker's tasks were made of another source.
    pub(super) fn refuse_other_sources(&self, state: &State, share: &[usize]) -> Result<()> {
        for (index, (task, digest)) in self.plan.tasks.iter().zip(&self.digests).enumerate() {
            let others = share.binary_search(&index).is_err();
            let Some(done) = state.done.get(digest).filter(|_| others) else { continue };
            if self.judge(task, done)? == Standing::OtherSource {
                return Err(self.other_source(task));
            }
        }
        Ok(())
    }

    fn other_source(&self, task: &Task) -> Error {
        Error::new(Kind::Foreign, format!("{} was made of another source", task.name))
            .at(self.output())
            .hint("run that worker's share again with this source, or write the output anew with --force")
    }

    /// A task's fold, from its point, if the parts hold what the point says and nobody has touched the
    /// source.
    pub(super) fn go_on<'t>(
        &self,
        task: &'t Task,
        sources: &Sources,
        parts: &[Option<Part>],
        point: &super::journal::PointRecord,
    ) -> Result<Option<Fold<'t>>> {
        let saved = &point.fold;
        let held: Vec<&Part> = parts.iter().flatten().collect();
        if !is_possible(task, saved, self.catalog.tensors.len()) || held.len() != task.outputs.len()
        {
            return Ok(None);
        }
        let now = sources.stamps(&self.identities)?;
        if agreement(&point.sources, &now) != Agreement::Untouched {
            return Ok(None);
        }
        for part in &held {
            if !part.is_own()? {
                return Ok(None);
            }
        }
        let root = Root::open(self.output())?;
        for ((output, part), saved) in task.outputs.iter().zip(held).zip(&saved.outputs) {
            if part.size()? < saved.length {
                return Ok(None);
            }
            let name = format!("{}{PART_SUFFIX}", output.path);
            let file = SourceFile::open(&root, &name, self.options.io)?;
            let found = recount(output, &file, saved.length, || self.progress.stopped())?;
            if !found.is_some_and(|found| saved.is(&found)) {
                return Ok(None);
            }
        }
        Ok(Fold::resume(task, saved.clone()).ok())
    }

    /// Digests of the source files that a task answers for, going on from `point` if that is given.
    pub(super) fn attest<'s>(
        &'s self,
        index: usize,
        sources: &'s Sources<'s>,
        point: Option<&super::journal::PointRecord>,
    ) -> Result<Option<Attest<'s>>> {
        let Some(known) = &self.options.known else { return Ok(None) };
        let saved = point.map_or(&[][..], |point| &point.fold.sources);
        let reread = &self.progress.reread;
        Attest::new(sources, known, &self.answers[index], saved, reread).map(Some)
    }
}

/// Said of a task that has to be done again.
pub(super) const CHANGED: &str = "its source or output changed; it has to be written again";

/// Whether a record can be one of `task`.
fn fits(task: &Task, done: &DoneRecord) -> bool {
    let is_hex = |text: &String, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_read = |report: &TensorReport| task.steps.iter().any(|s| s.source == report.source);
    let same = |(output, done): (&crate::plan::OutputFile, &DoneOutput)| {
        let written = done.tensors.len() == output.tensors.len();
        (&output.path, output.size) == (&done.path, done.size)
            && done.sha256.as_ref().is_none_or(|sha256| is_hex(sha256, 64))
            && (done.linked.is_some() || (written && done.sha256.is_some()))
    };
    task.outputs.len() == done.outputs.len()
        && done.stamps.len() == done.outputs.len()
        && task.outputs.iter().zip(&done.outputs).all(same)
        && done.reports.iter().all(is_read)
        && done.verified.iter().all(|verified| is_hex(&verified.sha256, 64))
}

/// SHA-256 of a file of the output, read from the disk itself if `cold`.
pub(super) fn hash_file(
    output: &Path,
    name: &str,
    mode: Mode,
    cold: bool,
    stopped: impl Fn() -> bool,
) -> Result<String> {
    use sha2::{Digest, Sha256};
    let root = Root::open(output)?;
    let file = SourceFile::open(&root, name, mode)?;
    if cold {
        file.drop_cache();
    }
    let mut hash = Sha256::new();
    read_ahead(&file, 0..file.stamp().size, stopped, |bytes| {
        hash.update(bytes);
        Ok(())
    })?;
    Ok(hex(&hash.finalize()))
}

/// Stamps that no file has: whoever meets them looks at the bytes.
pub(crate) fn unseen(size: u64) -> Stamp {
    Stamp { size, mtime_ns: i64::MIN, ctime_ns: i64::MIN, shared: false }
}
