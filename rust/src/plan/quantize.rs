//! `quantize fp8`: every shard becomes one shard, its weights E4M3 codes with their scales.

use serde_json::{Map, Value, json};

use super::data::{Dropped, Plan};
use super::request::Request;
use super::select::{Choice, in_mtp_layer, select};
use super::shard_task::plan_shards;
use super::sidecars::{self, Quantization, Sidecars};
use crate::catalog::{Catalog, MANIFEST};
use crate::dialect::{ConfigFamily, Dialect, Strategy};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{Model, Role};
use crate::numeric::Grid;
use crate::transform::{Op, float_of};

/// Plans `quantize fp8`.
pub fn plan(catalog: &Catalog, request: &Request) -> Result<Plan> {
    let dialect = request.load_dialect()?;
    let model = request.load_model(catalog)?;
    let choices = choose(catalog, model.as_ref(), request)?;
    let mut dropped = Vec::new();
    let encoding = |role: Option<Role>| {
        dialect
            .encoding(role.map(Role::name), request.scale, request.scale_arith)
            .map_err(Error::usage)
    };
    let tasks = plan_shards(catalog, |task, index, tensor| {
        match (choices[index as usize], float_of(tensor.dtype)) {
            (Choice::Encode(role), Some(float)) => {
                let scale_name = dialect.scale_name(&tensor.name);
                if catalog.find(&scale_name).is_some() {
                    return Err(Error::impossible("the scale's name is taken by a source tensor")
                        .tensor(scale_name));
                }
                let encoding = encoding(role)?;
                task.encode(index, tensor, (Op::Encode { float, encoding }, encoding), &scale_name);
            }
            (Choice::DropMtp, _) => {
                dropped.push(Dropped { tensor: index, reason: "MTP layer, --drop-mtp" });
            }
            _ => task.copy(index, tensor),
        }
        Ok(())
    })?;
    let quantization = Quantization::Set(config(catalog, request, &choices)?);
    let (sidecars, config_changes) =
        sidecars::plan(catalog, request, Sidecars::indexed(catalog, &tasks, quantization))?;
    Ok(Plan {
        request: request.clone(),
        catalog_digest: catalog.digest(),
        tasks,
        dropped,
        sidecars,
        config_changes,
        warnings: warnings(catalog, model.as_ref(), request)?,
        launch: Vec::new(),
        expected: Vec::new(),
        ranks: Vec::new(),
        elsewhere: Vec::new(),
    })
}

/// What becomes of each tensor of the catalog; refuses checkpoints that are quantised already.
pub(super) fn choose(
    catalog: &Catalog,
    model: Option<&Model>,
    request: &Request,
) -> Result<Vec<Choice>> {
    refuse_sources(catalog)?;
    select(catalog, model, request)
}

/// The `quantization_config` that says so.
pub(super) fn config(
    catalog: &Catalog,
    request: &Request,
    choices: &[Choice],
) -> Result<Map<String, Value>> {
    Ok(quantization_config(&request.load_dialect()?, request, kept_modules(catalog, choices)))
}

fn refuse_sources(catalog: &Catalog) -> Result<()> {
    let fp8 = catalog.tensors.iter().find(|t| matches!(t.dtype, Dtype::F8E4M3 | Dtype::F8E5M2));
    if let Some(tensor) = fp8 {
        return Err(Error::impossible("the checkpoint is already FP8")
            .tensor(&*tensor.name)
            .at(catalog.root.path().join(&catalog.shards[tensor.shard as usize].name))
            .hint("turn it into BF16 first: `lingconv dequantize`"));
    }
    if catalog.config.as_ref().is_some_and(|c| !c["quantization_config"].is_null()) {
        return Err(Error::impossible("config.json says that the checkpoint is already quantised")
            .at(catalog.root.path().join(crate::catalog::CONFIG))
            .hint("start from the BF16 checkpoint, or remove a stale quantization_config"));
    }
    let rank_file = |name: &str| name.contains("model-rank-") || name.contains("model-pp-");
    if let Some(shard) = catalog.shards.iter().find(|s| rank_file(&s.name)) {
        return Err(Error::impossible("the checkpoint is already cut for tensor parallelism")
            .at(catalog.root.path().join(&shard.name))
            .hint("start from the original: `lingconv reshard --format fp8`"));
    }
    Ok(())
}

/// Paths of the modules that stay as they are and have a two-dimensional weight.
fn kept_modules(catalog: &Catalog, choices: &[Choice]) -> Vec<String> {
    let kept =
        catalog.tensors.iter().zip(choices).filter(|(t, c)| {
            **c == Choice::Keep && t.shape.len() == 2 && float_of(t.dtype).is_some()
        });
    let mut modules: Vec<String> =
        kept.filter_map(|(t, _)| t.name.strip_suffix(".weight").map(str::to_owned)).collect();
    modules.sort_unstable();
    modules
}

fn quantization_config(
    dialect: &Dialect,
    request: &Request,
    kept: Vec<String>,
) -> Map<String, Value> {
    let block = match dialect.grid() {
        Grid::Block { rows, cols } => json!([rows, cols]),
        Grid::Channel => Value::Null,
    };
    let mut config = match dialect.config_family() {
        ConfigFamily::Fp8 => json!({
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": block,
        }),
        ConfigFamily::CompressedTensors => compressed_tensors(dialect.strategy(), &block),
    };
    if let Some(fmt) = dialect.scale_fmt(request.scale) {
        config["scale_fmt"] = fmt.into();
    }
    config[dialect.skip_list()] = kept.into();
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The block that llm-compressor writes for FP8 weights with dynamic activations.
fn compressed_tensors(strategy: Strategy, block: &Value) -> Value {
    let weights = |strategy: &str, block: &Value| {
        json!({
            "num_bits": 8, "type": "float", "symmetric": true, "dynamic": false,
            "strategy": strategy, "block_structure": block, "group_size": null,
            "actorder": null, "observer": "minmax", "observer_kwargs": {},
        })
    };
    let activations = |strategy: &str, group: Value| {
        json!({
            "num_bits": 8, "type": "float", "symmetric": true, "dynamic": true,
            "strategy": strategy, "block_structure": null, "group_size": group,
            "actorder": null, "observer": null, "observer_kwargs": {},
        })
    };
    let (weights, activations) = match strategy {
        Strategy::Block => (weights("block", block), activations("group", block[1].clone())),
        Strategy::Channel => (weights("channel", &Value::Null), activations("token", Value::Null)),
    };
    json!({
        "quant_method": "compressed-tensors",
        "version": "0.12.2",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": null,
        "kv_cache_scheme": null,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": "float-quantized",
                "weights": weights,
                "input_activations": activations,
                "output_activations": null,
            },
        },
    })
}

fn warnings(catalog: &Catalog, model: Option<&Model>, request: &Request) -> Result<Vec<String>> {
    let mut warnings = catalog.warnings.clone();
    let mtp = |name: &str| in_mtp_layer(model, model.and_then(|m| m.role_of(name)));
    if !request.drop_mtp && catalog.tensors.iter().any(|t| mtp(&t.name)) {
        warnings.push(
            "the checkpoint has an MTP layer, which vLLM's default loader rejects for this \
             architecture; --drop-mtp leaves it out"
                .into(),
        );
    }
    if !request.nonfinite.is_empty() {
        let names = request.nonfinite.join(", ");
        warnings.push(format!("kept unquantised for their NaN or infinity: {names}"));
    }
    if catalog.root.resolve(MANIFEST)?.is_some() {
        warnings.push(format!("the source was written by lingconv ({MANIFEST})"));
    }
    Ok(warnings)
}
