//! `dequantize`: FP8 weights and their scales become BF16; everything else is copied.
//!
//! Which weights are FP8, and how their scales are laid out, is read from the tensors themselves:
//! a companion's presence, dtype and shape are the truth, config.json is not asked.

use super::data::{Dropped, Plan};
use super::request::Request;
use super::select::in_mtp_layer;
use super::shard_task::plan_shards;
use super::sidecars::{self, Quantization, Sidecars};
use crate::catalog::{Catalog, Tensor};
use crate::companion::{self, is_scale, weight_of};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::transform::Op;

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
        sidecars::plan(catalog, request, Sidecars::indexed(catalog, &tasks, Quantization::Remove))?;
    Ok(Plan {
        request: request.clone(),
        catalog_digest: catalog.digest(),
        tasks,
        dropped,
        sidecars,
        config_changes,
        warnings: catalog.warnings.clone(),
        launch: Vec::new(),
        expected: Vec::new(),
        ranks: Vec::new(),
        elsewhere: Vec::new(),
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
        let orphan = is_scale(&tensor.name) && !used[index];
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

fn find_scale(catalog: &Catalog, tensor: &Tensor) -> std::result::Result<Op, String> {
    let lookup = |name: &str| {
        let found = catalog.tensor(catalog.find(name)?);
        Some((found.dtype, &*found.shape))
    };
    let companion = companion::find(&tensor.name, &tensor.shape, lookup)?;
    let scale = catalog.find(&companion.name).ok_or("no scale")?;
    Ok(Op::Decode { grid: companion.grid, scale, scale_dtype: companion.dtype })
}
