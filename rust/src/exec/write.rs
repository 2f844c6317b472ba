//! One task that is written: from its point, if that holds, to the final names of its outputs.

use super::budget::Budget;
use super::executor::Run;
use super::fold::{DoneOutput, Fold};
use super::journal::{DoneRecord, Journal, PointRecord, State};
use super::pipeline::{Finished, Pipeline};
use super::publish;
use super::slot::{Piece, Work};
use super::sources::Sources;
use crate::error::{Error, Kind, Result};
use crate::io::writer::Found;
use crate::io::{Entry, EntryKind, Part, PartWriter, small};
use crate::plan::Task;

/// Where a task begins.
struct Start<'t> {
    fold: Fold<'t>,
    headers: Vec<Piece>,
    writers: Vec<PartWriter>,
    /// It goes on from its point, and so may the digests of source files.
    resumed: bool,
}

impl Run<'_> {
    /// Writes the outputs of a task; `None` if another process is at them, or has written them.
    pub(super) fn write(
        &self,
        index: usize,
        sources: &Sources,
        budget: &Budget,
        journal: &Journal,
        state: &State,
    ) -> Result<Option<DoneRecord>> {
        let task = &self.plan.tasks[index];
        let point = state.points.get(&self.digests[index]);
        let Some(start) = self.start(index, sources, budget, point)? else { return Ok(None) };
        let Start { fold, headers, writers, resumed } = start;
        let record = |fold| {
            let (task, sources) = (self.digests[index].clone(), sources.stamps(&self.identities)?);
            journal.point(PointRecord { task, sources, fold })
        };
        let pipeline = Pipeline {
            work: Work {
                catalog: self.catalog,
                task,
                sources,
                level: self.options.level,
                prove: self.plan.request.prove,
                report: self.plan.request.report,
            },
            budget: *budget,
            point_every: self.options.point_every,
            progress: self.progress,
            written: &self.progress.written,
            record: &record,
        };
        let attest = self.attest(index, sources, point.filter(|_| resumed))?;
        let Finished { outputs, reports, sinks, verified } =
            pipeline.run(fold, headers, writers, attest)?;
        self.check_source(task, sources, &outputs)?;
        let mut stamps = Vec::with_capacity(outputs.len());
        for (mut writer, output) in sinks.into_iter().zip(&outputs) {
            writer.complete()?;
            if self.options.paranoid {
                publish::compare_on_disk(self.output(), output)?;
            }
            let path = writer.path().to_path_buf();
            writer.publish()?;
            let stamp = small::stamp(&path)?;
            stamps.push(stamp.ok_or_else(|| Error::new(Kind::Io, "the file is gone").at(path))?);
        }
        Ok(Some(DoneRecord {
            task: self.digests[index].clone(),
            sources: sources.stamps(&self.identities)?,
            outputs,
            stamps,
            verified,
            reports,
        }))
    }

    /// Fails if the source changed while the task read it. Where only a change time moved, the source
    /// is converted again: a link to it was made, or it was edited and its times set back.
    fn check_source(&self, task: &Task, sources: &Sources, made: &[DoneOutput]) -> Result<()> {
        if sources.check_unchanged()? || self.remake(task, made)?.is_some() {
            return Ok(());
        }
        Err(Error::new(Kind::Io, "the source changed while it was read")
            .at(self.catalog.root.path())
            .hint("run the command again once nothing writes to the source"))
    }

    /// Takes hold of the parts, and goes on from `point` if they and the source are what it says.
    fn start<'t>(
        &'t self,
        index: usize,
        sources: &Sources,
        budget: &Budget,
        point: Option<&PointRecord>,
    ) -> Result<Option<Start<'t>>> {
        let task = &self.plan.tasks[index];
        let Some(parts) = self.hold(task)? else { return Ok(None) };
        if self.done_meanwhile(index)? {
            parts.into_iter().flatten().try_for_each(Part::discard)?;
            return Ok(None);
        }
        let resumed = match point {
            Some(point) => self.go_on(task, sources, &parts, point)?,
            None => None,
        };
        if resumed.is_none() && point.is_some() {
            self.progress
                .note(format!("{}: its source or part changed; it is begun anew", task.name));
        }
        let fresh = resumed.is_none();
        let (fold, headers) = match resumed {
            Some(fold) => (fold, Vec::new()),
            None => Fold::new(task)?,
        };
        let mut writers = Vec::with_capacity(parts.len());
        for ((output, part), length) in task.outputs.iter().zip(parts).zip(fold.lengths()) {
            let path = self.output().join(&output.path);
            let part = if fresh {
                Part::anew(&path, part)?
            } else {
                part.map_or(Found::Busy, Found::Held)
            };
            let Found::Held(part) = part else { return Ok(None) };
            let position = if fresh { 0 } else { length };
            let buffer = budget.output_buffer as usize;
            writers.push(PartWriter::new(part, output.size, self.options.io, buffer, position)?);
        }
        Ok(Some(Start { fold, headers, writers, resumed: !fresh }))
    }

    /// The parts of a task that there are, held; `None` if another process holds one.
    fn hold(&self, task: &Task) -> Result<Option<Vec<Option<Part>>>> {
        let mut parts = Vec::with_capacity(task.outputs.len());
        for output in &task.outputs {
            let there = Entry::find(self.output(), &output.path)?;
            if there.is_some_and(|entry| entry.kind == EntryKind::Other) {
                return Err(super::output::foreign_file(self.output(), &output.path));
            }
            match Part::find(&self.output().join(&output.path))? {
                Found::Busy => return Ok(None),
                Found::Nothing => parts.push(None),
                Found::Held(part) => parts.push(Some(part)),
            }
        }
        Ok(Some(parts))
    }

    /// Whether another process has finished a task since the journals were read.
    fn done_meanwhile(&self, index: usize) -> Result<bool> {
        let task = &self.plan.tasks[index];
        let there = |name: &str| Entry::find(self.output(), name).map(|found| found.is_some());
        for output in &task.outputs {
            if !there(&output.path)? {
                return Ok(false);
            }
        }
        let state = State::read(self.output())?;
        let Some(done) = state.done.get(&self.digests[index]) else { return Ok(false) };
        Ok(self.judge(task, done)? == super::standing::Standing::Stands)
    }
}
