//! What a checkpoint is, from headers alone.

use std::collections::BTreeMap;

use globset::Glob;
use serde::Serialize;

use crate::catalog::{Catalog, Tensor};
use crate::companion::weight_of;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::folding::{Folded, fold};
use crate::model::{Expected, Group, Model};

/// Names of the row for tensors without a role.
const OTHER: &str = "other";
/// Bytes of names after which a page of tensors ends.
const MAX_PAGE_TEXT: usize = 1 << 20;
/// Most problems that are listed.
const MAX_PROBLEMS: usize = 20;

/// How a checkpoint is cut.
#[derive(Debug, Serialize)]
struct Layout {
    /// Target and ranks.
    words: String,
    /// Files that hold the pieces.
    files: usize,
    /// Their bytes.
    bytes: u64,
}

/// Tensors of one dtype.
#[derive(Debug, Serialize)]
pub struct DtypeRow {
    /// Element type.
    pub dtype: Dtype,
    /// Number of tensors.
    pub tensors: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Tensors of one group of roles.
#[derive(Debug, Serialize)]
pub struct GroupRow {
    /// Group in words.
    pub group: &'static str,
    /// Number of tensors.
    pub tensors: u64,
    /// Elements; scales count as none.
    pub parameters: u64,
    /// Bytes.
    pub bytes: u64,
    /// Element types found.
    pub dtypes: Vec<Dtype>,
}

/// Number format of the weights.
#[derive(Debug, Serialize)]
pub struct Format {
    /// `bf16`, `fp8 block`, `fp8 channel` and so on.
    pub kind: String,
    /// Name family of the scales.
    pub dialect: Option<&'static str>,
    /// Element type of the scales.
    pub scale_dtype: Option<Dtype>,
}

/// Everything `inspect` prints.
#[derive(Debug, Serialize)]
pub struct Summary {
    schema: &'static str,
    name: String,
    architecture: Option<String>,
    known: bool,
    layers: Option<u32>,
    dense_layers: Option<u32>,
    moe_layers: Option<u32>,
    mtp_layers: Option<u32>,
    experts: Option<u32>,
    experts_per_token: Option<u64>,
    shared_experts: Option<u64>,
    hidden: Option<u64>,
    heads: Option<u64>,
    kv_heads: Option<u64>,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    file_bytes: u64,
    shards: usize,
    indexed: bool,
    /// What the checkpoint was cut for, if its tensors lie in pieces, and files that hold them.
    layout: Option<Layout>,
    dtypes: Vec<DtypeRow>,
    groups: Vec<GroupRow>,
    format: Format,
    problems: Vec<String>,
    warnings: Vec<String>,
}

/// One tensor for `inspect --tree` and `--tensor`.
#[derive(Debug, Serialize)]
pub struct TensorRow<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: &'a [u64],
    file: &'a str,
    offset: u64,
    bytes: u64,
    role: Option<&'static str>,
    layer: Option<u32>,
    expert: Option<u32>,
}

/// A scale tensor and the weight it belongs to.
fn weight_of_scale<'a>(catalog: &Catalog, tensor: &'a Tensor) -> Option<(&'a str, u32)> {
    let weight = Some(weight_of(&tensor.name)).filter(|w| w.len() < tensor.name.len())?;
    let index = catalog.find(weight)?;
    (catalog.tensor(index).dtype == Dtype::F8E4M3).then_some((weight, index))
}

/// Sums up `catalog`; `model` is its architecture where that is known.
pub fn summarize(catalog: &Catalog, model: Option<&Model>) -> Summary {
    let architecture = catalog.config.as_ref().and_then(|c| c["architectures"][0].as_str());
    let (groups, parameters) = group_rows(catalog, model);
    let path = catalog.root.path();
    let name = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let dim = |name: &str| model.and_then(|m| m.dim(name));
    Summary {
        schema: "lingconv.inspect/1",
        name: name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        architecture: architecture.map(str::to_owned),
        known: model.is_some(),
        layers: model.map(Model::layers),
        dense_layers: model.map(Model::dense_layers),
        moe_layers: model.map(Model::moe_layers),
        mtp_layers: model.map(Model::mtp_layers),
        experts: model.map(Model::experts),
        experts_per_token: dim("experts_per_token"),
        shared_experts: dim("shared_experts"),
        hidden: dim("hidden"),
        heads: dim("heads"),
        kv_heads: dim("kv_heads"),
        tensors: catalog.tensors.len(),
        parameters,
        bytes: catalog.bytes(),
        file_bytes: catalog.file_bytes(),
        shards: catalog.shards.len(),
        indexed: catalog.indexed(),
        layout: catalog.pieces.as_ref().map(|p| Layout {
            words: p.layout.clone(),
            files: p.files.len(),
            bytes: p.files.iter().map(|f| f.stamp.size).sum(),
        }),
        dtypes: dtype_rows(catalog),
        groups,
        format: format_of(catalog),
        problems: problems(catalog, model),
        warnings: catalog.warnings.clone(),
    }
}

fn dtype_rows(catalog: &Catalog) -> Vec<DtypeRow> {
    let mut rows: BTreeMap<Dtype, (u64, u64)> = BTreeMap::new();
    for tensor in &catalog.tensors {
        let row = rows.entry(tensor.dtype).or_default();
        *row = (row.0 + 1, row.1 + tensor.bytes);
    }
    let mut rows: Vec<DtypeRow> = rows
        .into_iter()
        .map(|(dtype, (tensors, bytes))| DtypeRow { dtype, tensors, bytes })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
    rows
}

fn group_rows(catalog: &Catalog, model: Option<&Model>) -> (Vec<GroupRow>, u64) {
    let mut order: Vec<&str> = Group::ALL.iter().map(|g| g.name()).collect();
    order.push(OTHER);
    let mut rows: Vec<GroupRow> = order
        .iter()
        .map(|group| GroupRow { group, tensors: 0, parameters: 0, bytes: 0, dtypes: Vec::new() })
        .collect();
    let mut parameters = 0;
    for tensor in &catalog.tensors {
        let scale = weight_of_scale(catalog, tensor);
        let name = scale.map_or(&*tensor.name, |(weight, _)| weight);
        let group =
            model.and_then(|m| m.role_of(name)).map_or(OTHER, |p| p.rule.role.group().name());
        let elements = if scale.is_some() { 0 } else { tensor.shape.iter().product() };
        parameters += elements;
        let Some(row) = rows.iter_mut().find(|row| row.group == group) else { continue };
        row.tensors += 1;
        row.parameters += elements;
        row.bytes += tensor.bytes;
        if !row.dtypes.contains(&tensor.dtype) {
            row.dtypes.push(tensor.dtype);
        }
    }
    rows.retain(|row| row.tensors > 0);
    (rows, parameters)
}

fn format_of(catalog: &Catalog) -> Format {
    let scale = catalog.tensors.iter().find_map(|t| Some((t, weight_of_scale(catalog, t)?.1)));
    let Some((scale, weight)) = scale else {
        let largest = dtype_rows(catalog).first().map(|row| row.dtype.name().to_lowercase());
        return Format { kind: largest.unwrap_or_default(), dialect: None, scale_dtype: None };
    };
    let rows = catalog.tensor(weight).shape.first().copied();
    let channel =
        scale.shape.first().copied() == rows && scale.shape.iter().skip(1).all(|d| *d == 1);
    let quantization = catalog.config.as_ref().map(|c| &c["quantization_config"]);
    let ue8m0 = quantization.is_some_and(|q| q["scale_fmt"] == "ue8m0");
    let dialect = match (scale.name.ends_with("_scale_inv"), channel, ue8m0) {
        (true, _, true) => "deepseek --scale ue8m0",
        (true, _, false) => "deepseek or ling",
        (false, true, _) => "compressed-tensors-channel",
        (false, false, _) => "compressed-tensors",
    };
    let kind = if channel { "fp8 channel" } else { "fp8 block" };
    Format { kind: kind.into(), dialect: Some(dialect), scale_dtype: Some(scale.dtype) }
}

/// Where the tensors contradict config.json: absent ones and wrong shapes.
fn problems(catalog: &Catalog, model: Option<&Model>) -> Vec<String> {
    let Some(model) = model else { return Vec::new() };
    let lacks_mtp = model.lacks_mtp(catalog.tensors.iter().map(|t| &*t.name));
    let problem = |expected: Expected| match catalog.find(&expected.name) {
        None if expected.rule.optional => None,
        None => Some(format!("{} is missing", expected.name)),
        Some(i) if *catalog.tensor(i).shape != *expected.shape => Some(format!(
            "{} has shape {:?}, config.json implies {:?}",
            expected.name,
            catalog.tensor(i).shape,
            expected.shape
        )),
        Some(_) => None,
    };
    let present = |e: &Expected| !(lacks_mtp && model.is_mtp(e.layer));
    // A configuration can imply millions of tensors.
    let mut found = model.expected().filter(present).filter_map(problem);
    let mut problems: Vec<String> = found.by_ref().take(MAX_PROBLEMS).collect();
    let rest = found.count();
    if rest > 0 {
        problems.push(format!("… and {rest} more"));
    }
    problems
}

/// Some of the tensors that are asked for.
#[derive(Debug, Serialize)]
pub struct TensorPage<'a> {
    /// In the order of the shards.
    pub rows: Vec<TensorRow<'a>>,
    /// Where to go on, unless these were the last.
    pub next: Option<usize>,
}

/// Whether the name of a tensor matches `glob`, if that is given.
fn matching(glob: Option<&str>) -> Result<impl Fn(&Tensor) -> bool> {
    let matcher = glob
        .map(|g| Glob::new(g).map(|g| g.compile_matcher()))
        .transpose()
        .map_err(|e| Error::usage(format!("bad pattern: {e}")))?;
    Ok(move |t: &Tensor| matcher.as_ref().is_none_or(|m| m.is_match(&*t.name)))
}

/// The names of the tensors that match `glob`, or of all, numbers folded.
pub fn names(catalog: &Catalog, glob: Option<&str>) -> Result<Folded> {
    let wanted = matching(glob)?;
    Ok(fold(catalog.tensors.iter().filter(|tensor| wanted(tensor))))
}

/// Tensors from position `first` on whose name matches `glob`, or all of them, at most `count`; fewer
/// where names are long.
pub fn tensors<'a>(
    catalog: &'a Catalog,
    model: Option<&Model>,
    glob: Option<&str>,
    (first, count): (usize, usize),
) -> Result<TensorPage<'a>> {
    let wanted = matching(glob)?;
    let row = |tensor: &'a Tensor| {
        let placed = model.and_then(|m| m.role_of(&tensor.name));
        TensorRow {
            name: &tensor.name,
            dtype: tensor.dtype,
            shape: &tensor.shape,
            file: &catalog.shards[tensor.shard as usize].name,
            offset: tensor.offset,
            bytes: tensor.bytes,
            role: placed.map(|p| p.rule.role.name()),
            layer: placed.and_then(|p| p.layer),
            expert: placed.and_then(|p| p.expert),
        }
    };
    let rest = catalog.tensors.iter().enumerate().skip(first);
    let (mut rows, mut text) = (Vec::new(), 0);
    for (position, tensor) in rest.filter(|(_, tensor)| wanted(tensor)) {
        if rows.len() == count || text > MAX_PAGE_TEXT {
            return Ok(TensorPage { rows, next: Some(position) });
        }
        text += tensor.name.len();
        rows.push(row(tensor));
    }
    Ok(TensorPage { rows, next: None })
}
