//! `dequantize`: FP8 weights and their scales become BF16; everything else is copied.
//!
//! Which weights are FP8, and how their scales are laid out, is read from the tensors themselves:
//! a companion's presence, dtype and shape are the truth, config.json is not asked.

use super::data::{Dropped, Plan};
use super::request::Request;
use super::select::in_mtp_layer;
use super::shard_task::{matrix, plan_shards};
use super::sidecars;
use crate::catalog::{Catalog, Tensor};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::numeric::Grid;
use crate::transform::{Op, scale_dtype_of};

/// Suffixes of scale tensors, appended to the weight's name.
const SCALE_SUFFIXES: [&str; 2] = ["_scale_inv", "_scale"];
/// The one block size that checkpoints are published with.
const BLOCK: Grid = Grid::Block { rows: 128, cols: 128 };

/// Plans `dequantize`.
pub fn plan(catalog: &Catalog, request: &Request) -> Result<Plan> {
    let model = request.load_model(catalog)?;
    let (decodes, problems) = find_decodes(catalog);
    if !problems.is_empty() {
        return Err(Error::invalid(format!("{} tensors cannot be decoded", problems.len()))
            .at(catalog.root.path())
            .details(problems)
            .hint("the download is incomplete, or of a format that lingconv does not know yet"));
    }
    if decodes.iter().all(Option::is_none) {
        return Err(Error::impossible("nothing to dequantize: no tensor is FP8")
            .at(catalog.root.path())
            .hint("see what it holds: `lingconv inspect`"));
    }
    let scales: Vec<bool> = scale_marks(catalog, &decodes);
    let mut dropped = Vec::new();
    let tasks = plan_shards(catalog, |task, index, tensor| {
        let placed = model.as_ref().and_then(|m| m.role_of(weight_of(&tensor.name)));
        if request.drop_mtp && in_mtp_layer(model.as_ref(), placed) {
            dropped.push(Dropped { tensor: index, reason: "MTP layer, --drop-mtp" });
        } else if let Some(op) = decodes[index as usize] {
            task.decode(index, tensor, op);
        } else if !scales[index as usize] {
            task.copy(index, tensor);
        }
        Ok(())
    })?;
    let (sidecars, config_changes) =
        sidecars::plan(catalog, request, &tasks, sidecars::Quantization::Remove)?;
    Ok(Plan {
        request: request.clone(),
        catalog_digest: catalog.digest(),
        tasks,
        dropped,
        sidecars,
        config_changes,
        warnings: catalog.warnings.clone(),
    })
}

/// For each tensor of the catalog how it is decoded, and what stands in the way.
fn find_decodes(catalog: &Catalog) -> (Vec<Option<Op>>, Vec<String>) {
    let mut problems = Vec::new();
    let mut decodes = Vec::with_capacity(catalog.tensors.len());
    for (index, tensor) in catalog.tensors.iter().enumerate() {
        let found = match tensor.dtype {
            Dtype::F8E4M3 => find_scale(catalog, tensor).map(Some),
            Dtype::F8E5M2 | Dtype::F8E4M3Fnuz | Dtype::F8E5M2Fnuz => {
                Err(format!("{} is not supported", tensor.dtype))
            }
            _ => Ok(None),
        };
        decodes.push(found.unwrap_or_else(|problem| {
            let file = &catalog.shard_of(index as u32).name;
            problems.push(format!("{} in {file}: {problem}", tensor.name));
            None
        }));
    }
    let used = scale_marks(catalog, &decodes);
    for (index, tensor) in catalog.tensors.iter().enumerate() {
        let weight = weight_of(&tensor.name);
        let orphan =
            weight.len() < tensor.name.len() && weight.ends_with(".weight") && !used[index];
        let reported =
            catalog.find(weight).is_some_and(|w| catalog.tensor(w).dtype == Dtype::F8E4M3);
        if orphan && !reported {
            let file = &catalog.shard_of(index as u32).name;
            problems.push(format!("{} in {file}: a scale without an FP8 weight", tensor.name));
        }
    }
    (decodes, problems)
}

fn scale_marks(catalog: &Catalog, decodes: &[Option<Op>]) -> Vec<bool> {
    let mut marks = vec![false; catalog.tensors.len()];
    for op in decodes.iter().flatten() {
        if let Op::Decode { scale, .. } = op {
            marks[*scale as usize] = true;
        }
    }
    marks
}

/// The name of the weight that a scale belongs to; any other name as it is.
fn weight_of(name: &str) -> &str {
    SCALE_SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

fn find_scale(catalog: &Catalog, tensor: &Tensor) -> std::result::Result<Op, String> {
    let (rows, cols) = matrix(tensor)
        .ok_or_else(|| format!("FP8 of shape {:?}, a matrix is needed", tensor.shape))?;
    let named = SCALE_SUFFIXES.iter().filter_map(|suffix| {
        let name = format!("{}{suffix}", tensor.name);
        catalog.find(&name).map(|index| (name, index))
    });
    let candidates: Vec<(String, u32)> = named.collect();
    let (name, scale) = match candidates.as_slice() {
        [] => return Err("no scale: neither …_scale_inv nor …_scale exists".into()),
        [one] => one,
        _ => return Err("two scales, …_scale_inv and …_scale".into()),
    };
    let companion = catalog.tensor(*scale);
    let dtype = companion.dtype;
    let scale_dtype = scale_dtype_of(dtype).ok_or_else(|| format!("scale {name} is {dtype}"))?;
    let shape_of = |grid: Grid| {
        let (high, wide) = grid.scale_shape(rows as usize, cols as usize);
        [high as u64, wide as u64]
    };
    let grid = match &*companion.shape {
        shape if *shape == shape_of(BLOCK) => BLOCK,
        [high, 1] | [high] if *high == rows => Grid::Channel,
        shape => {
            return Err(format!(
                "scale {name} has shape {shape:?}; a weight of {rows}×{cols} needs {:?} for \
                 128×128 blocks or [{rows}, 1] for channels",
                shape_of(BLOCK)
            ));
        }
    };
    Ok(Op::Decode { grid, scale: *scale, scale_dtype })
}
