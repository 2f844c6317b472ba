//! The source files of one task, opened once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::progress::Progress;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::io::{AlignedBuf, Mode, SourceFile, Stamp};
use crate::numeric::load_scales;
use crate::plan::{Step, Task};
use crate::transform::Op;

/// A source file and what it looked like when a task read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStamp {
    /// File name relative to the source folder.
    pub name: String,
    /// Size and times.
    pub stamp: Stamp,
}

/// Open source files by shard number.
pub(super) struct Sources<'a> {
    catalog: &'a Catalog,
    files: BTreeMap<u32, SourceFile>,
    progress: &'a Progress,
}

impl<'a> Sources<'a> {
    /// Opens every file that `task` reads.
    pub(super) fn open(
        catalog: &'a Catalog,
        task: &Task,
        mode: Mode,
        progress: &'a Progress,
    ) -> Result<Self> {
        let mut files = BTreeMap::new();
        for shard in shards_of(catalog, task) {
            let name = &catalog.shards[shard as usize].name;
            let file = SourceFile::open(&catalog.root, name, mode)?;
            if file.stamp().size != catalog.shards[shard as usize].stamp.size {
                return Err(changed(catalog, name));
            }
            files.insert(shard, file);
        }
        Ok(Self { catalog, files, progress })
    }

    /// Reads part of a tensor into `buffer`; the bytes lie at the range returned.
    pub(super) fn read(
        &self,
        tensor: u32,
        start: u64,
        length: usize,
        buffer: &mut AlignedBuf,
    ) -> Result<std::ops::Range<usize>> {
        let info = self.catalog.tensor(tensor);
        let file = self.files.get(&info.shard).ok_or_else(|| {
            Error::internal("a task reads a file it did not open").tensor(&*info.name)
        })?;
        self.progress.read.fetch_add(length as u64, Ordering::Relaxed);
        file.read(buffer, info.offset + start, length).map_err(|e| e.tensor(&*info.name))
    }

    /// The scales of a decode step, as f32; `None` for other steps.
    pub(super) fn scales(&self, step: &Step) -> Result<Option<Arc<Vec<f32>>>> {
        let Op::Decode { scale, scale_dtype, .. } = step.op else { return Ok(None) };
        let info = self.catalog.tensor(scale);
        let mut buffer = AlignedBuf::default();
        let range = self.read(scale, 0, info.bytes as usize, &mut buffer)?;
        let scales = load_scales(&buffer.bytes()[range], scale_dtype).map_err(|bad| {
            Error::invalid(format!(
                "scale {} is {}; a scale is positive and finite",
                bad.index, bad.value
            ))
            .tensor(&*info.name)
            .at(self.catalog.path_of(scale))
            .hint("the download is damaged: check it with `lingconv verify`")
        })?;
        Ok(Some(Arc::new(scales)))
    }

    /// Fails if a file changed since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.files.values().try_for_each(SourceFile::check_unchanged)
    }

    /// What the files looked like when they were opened.
    pub(super) fn stamps(&self) -> Vec<SourceStamp> {
        let stamp = |(shard, file): (&u32, &SourceFile)| SourceStamp {
            name: self.catalog.shards[*shard as usize].name.clone(),
            stamp: file.stamp(),
        };
        self.files.iter().map(stamp).collect()
    }
}

fn changed(catalog: &Catalog, name: &str) -> Error {
    Error::new(Kind::Io, "the source changed after its header was read")
        .at(catalog.root.path().join(name))
        .hint("run the command again once nothing writes to the source")
}

/// Shards that a task reads, ascending.
fn shards_of(catalog: &Catalog, task: &Task) -> Vec<u32> {
    let of_step = |step: &Step| {
        let scale = match step.op {
            Op::Decode { scale, .. } => Some(scale),
            _ => None,
        };
        [Some(step.source), scale].into_iter().flatten()
    };
    let mut shards: Vec<u32> =
        task.steps.iter().flat_map(of_step).map(|t| catalog.tensor(t).shard).collect();
    shards.sort_unstable();
    shards.dedup();
    shards
}

/// What the files that `task` reads look like now, as the catalog saw them.
pub(super) fn current_stamps(catalog: &Catalog, task: &Task) -> Vec<SourceStamp> {
    let stamp = |shard: u32| {
        let shard = &catalog.shards[shard as usize];
        SourceStamp { name: shard.name.clone(), stamp: shard.stamp }
    };
    shards_of(catalog, task).into_iter().map(stamp).collect()
}
