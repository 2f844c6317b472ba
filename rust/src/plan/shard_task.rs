//! One source shard to one output shard: collects what becomes of each tensor, then orders it.

use std::sync::Arc;

use super::data::{OutputFile, Task, take_tensors};
use super::step::{Step, Target};
use crate::allowance::Allowance;
use crate::catalog::{Catalog, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::header::{DATA_ALIGNMENT, Entry};
use crate::numeric::{Encoding, StoredScale};
use crate::transform::Op;

/// The task of one shard while it is planned.
#[derive(Debug, Default)]
pub(super) struct ShardTask {
    items: Vec<Item>,
}

/// A source tensor and the output tensors it becomes.
#[derive(Debug)]
struct Item {
    source: u32,
    rows: u64,
    cols: u64,
    op: Op,
    entries: Vec<Entry>,
}

pub(super) fn entry(name: impl Into<Arc<str>>, dtype: Dtype, shape: &[u64]) -> Entry {
    Entry { name: name.into(), dtype, shape: shape.into(), begin: 0, end: 0 }
}

/// Rows and columns of a two-dimensional tensor.
fn matrix(tensor: &Tensor) -> Option<(u64, u64)> {
    match *tensor.shape {
        [rows, cols] => Some((rows, cols)),
        _ => None,
    }
}

impl ShardTask {
    /// Keeps a tensor as it is.
    pub(super) fn copy(&mut self, source: u32, tensor: &Tensor) {
        self.items.push(Item {
            source,
            rows: tensor.bytes,
            cols: 1,
            op: Op::Copy { unit: 1 },
            entries: vec![entry(tensor.name.clone(), tensor.dtype, &tensor.shape)],
        });
    }

    /// Encodes a matrix; its scales follow it in the file under `scale_name`.
    pub(super) fn encode(
        &mut self,
        source: u32,
        tensor: &Tensor,
        (op, encoding): (Op, Encoding),
        scale_name: &str,
    ) {
        let (rows, cols) = matrix(tensor).unwrap_or((0, 0));
        let (high, wide) = encoding.grid.scale_shape(rows as usize, cols as usize);
        let scale = match encoding.rule.stored {
            StoredScale::F32 => Dtype::F32,
            StoredScale::Bf16 => Dtype::BF16,
        };
        let entries = vec![
            entry(tensor.name.clone(), Dtype::F8E4M3, &tensor.shape),
            entry(scale_name, scale, &[high as u64, wide as u64]),
        ];
        self.items.push(Item { source, rows, cols, op, entries });
    }

    /// Decodes a matrix to BF16.
    pub(super) fn decode(&mut self, source: u32, tensor: &Tensor, op: Op) {
        let (rows, cols) = matrix(tensor).unwrap_or((0, 0));
        let entries = vec![entry(tensor.name.clone(), Dtype::BF16, &tensor.shape)];
        self.items.push(Item { source, rows, cols, op, entries });
    }

    /// The task that writes `path`; `None` if nothing of the shard is left.
    pub(super) fn finish(mut self, path: &str, allowance: &Allowance) -> Result<Option<Task>> {
        if self.items.is_empty() {
            return Ok(None);
        }
        let count = self.items.iter().map(|item| item.entries.len()).sum();
        take_tensors(allowance, count, path)?;
        self.items.sort_by_key(Item::order);
        let mut entries = Vec::with_capacity(count);
        let mut steps = Vec::with_capacity(self.items.len());
        for item in self.items {
            let tensor = entries.len() as u32;
            let target = Target {
                output: 0,
                tensor,
                rows: 0..item.rows,
                cols: 0..item.cols,
                scale: (item.entries.len() > 1).then_some(tensor + 1),
            };
            let Item { source, rows, cols, op, .. } = item;
            steps.push(Step { source, rows, cols, op, targets: vec![target] });
            entries.extend(item.entries);
        }
        let output = OutputFile::new(path.to_owned(), entries)?.within(allowance)?;
        Ok(Some(Task { name: path.to_owned(), outputs: vec![output], steps, link: None }))
    }
}

impl Item {
    /// Order in the file: whole pages first, so that direct writes need no copy; then by falling
    /// power of two, so that every tensor is aligned to its element size; else as in the source.
    fn order(&self) -> u32 {
        file_order(self.entries.iter().filter_map(|e| e.dtype.byte_len(&e.shape)))
    }
}

/// Place in a file of a tensor with these sizes in bytes; see [`Item::order`].
pub(super) fn file_order(sizes: impl Iterator<Item = u64>) -> u32 {
    let zeros = sizes.map(u64::trailing_zeros).min().unwrap_or(0);
    let page = DATA_ALIGNMENT.trailing_zeros();
    if zeros >= page { 0 } else { page - zeros.min(3) }
}

/// Runs `plan_tensor` over each shard's tensors and collects the tasks.
pub(super) fn plan_shards(
    catalog: &Catalog,
    mut plan_tensor: impl FnMut(&mut ShardTask, u32, &Tensor) -> Result<()>,
) -> Result<Vec<Task>> {
    let mut tasks = Vec::with_capacity(catalog.shards.len());
    let allowance = Allowance::of_a_model();
    for shard in &catalog.shards {
        let mut task = ShardTask::default();
        for index in shard.first..shard.first + shard.count {
            plan_tensor(&mut task, index as u32, &catalog.tensors[index])?;
        }
        tasks.extend(task.finish(&shard.name, &allowance)?);
    }
    Ok(tasks)
}
