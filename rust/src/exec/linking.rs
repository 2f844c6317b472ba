//! Tasks whose outputs are source files as they are: linked, and read by nobody.
//!
//! A digest of such a file is what is known of the source, or what `--verify-source` has found by
//! reading it; where neither is, the manifest and the sums have none.

use std::sync::atomic::Ordering;

use super::attest::Attest;
use super::executor::Run;
use super::fold::DoneOutput;
use super::journal::DoneRecord;
use super::sources::{Agreement, Sources};
use super::standing::{Standing, unseen};
use crate::error::{Error, Result};
use crate::io::link::{Link, Linked, is_near};
use crate::io::{link, small};
use crate::plan::Task;
use crate::plan::data::LinkedTask;

impl Run<'_> {
    /// Fails before anything is written if links were asked for that no file system makes to another.
    pub(super) fn refuse_far_links(&self) -> Result<()> {
        for link in self.plan.tasks.iter().filter_map(|t| t.link) {
            let (name, _) = self.catalog.file(link.shard);
            let path = self.catalog.root.resolve(name)?;
            let asked = matches!(link.mode, Link::Hardlink | Link::Reflink);
            let near = path.map_or(Ok(true), |path| is_near(&path, self.output(), link.mode))?;
            if asked && !near {
                let kind = format!("{:?}", link.mode).to_lowercase();
                return Err(Error::impossible(format!(
                    "{name} lies on another file system than the output, where no {kind} leads"
                ))
                .at(self.output())
                .hint("leave out --link: what cannot be linked is then copied"));
            }
        }
        Ok(())
    }

    /// Links the outputs of a task; `None` if they have to be copied.
    pub(super) fn link(&self, index: usize, sources: &Sources) -> Result<Option<DoneRecord>> {
        let task = &self.plan.tasks[index];
        let Some(link) = task.link else { return Ok(None) };
        let (name, _) = self.catalog.file(link.shard);
        let source = self.catalog.root.resolve(name)?;
        let source =
            source.ok_or_else(|| Error::invalid("file is missing").at(sources.path_of(name)))?;
        let mut linked = Vec::with_capacity(task.outputs.len());
        for output in &task.outputs {
            let path = self.output().join(&output.path);
            let Some(kind) = link::make(&source, &path, link.mode)? else {
                self.progress.total.fetch_add(task.bytes(), Ordering::Relaxed);
                return Ok(None);
            };
            linked.push(kind);
        }
        let verified = self.attest(index, sources, None)?.map_or(Ok(Vec::new()), Attest::finish)?;
        let known = self.options.links.sha256.get(name).cloned();
        let sha256 = verified.iter().find(|v| v.name == name).map(|v| v.sha256.clone()).or(known);
        for kind in &linked {
            self.progress.add_linked(*kind, sha256.is_some());
        }
        let outputs = task.outputs.iter().zip(linked).map(|(output, kind)| DoneOutput {
            path: output.path.clone(),
            size: output.size,
            sha256: sha256.clone(),
            tensors: Vec::new(),
            linked: Some(kind),
        });
        let stamp = |o: &crate::plan::OutputFile| {
            let found = small::stamp(&self.output().join(&o.path))?;
            Ok(found.unwrap_or_else(|| unseen(o.size)))
        };
        Ok(Some(DoneRecord {
            task: self.digests[index].clone(),
            sources: sources.stamps(&self.identities)?,
            outputs: outputs.collect(),
            stamps: task.outputs.iter().map(stamp).collect::<Result<_>>()?,
            verified,
            reports: Vec::new(),
        }))
    }

    /// Whether digests of linked files are known.
    pub(super) fn links_known(&self) -> bool {
        let known = &self.options.links.sha256;
        let named = |l: LinkedTask| known.contains_key(self.catalog.file(l.shard).0);
        self.plan.tasks.iter().filter_map(|t| t.link).any(named)
    }
}

/// Whether linked outputs still are their source's file: a hard link and a symbolic one by being it,
/// whatever its times, a reflink by nobody having touched either side.
pub(super) fn judge(
    run: &Run,
    task: &Task,
    done: &DoneRecord,
    sources: Agreement,
) -> Result<Standing> {
    let Some(link) = task.link else { return Ok(Standing::Gone) };
    let Some(source) = run.catalog.root.resolve(run.catalog.file(link.shard).0)? else {
        return Ok(Standing::Gone);
    };
    for (output, stamp) in done.outputs.iter().zip(&done.stamps) {
        let path = run.output().join(&output.path);
        let stands = match output.linked {
            Some(Linked::Hardlink | Linked::Symlink) => link::is_same_file(&source, &path)?,
            _ => {
                sources == Agreement::Untouched
                    && small::stamp(&path)?.is_some_and(|found| found.is_same(*stamp))
            }
        };
        if !stands {
            return Ok(Standing::Gone);
        }
    }
    Ok(Standing::Stands)
}
