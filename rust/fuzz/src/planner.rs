//! The planners and the proof: the input is a row of choices that damage a tiny checkpoint and
//! ask for something to be made of it.
//!
//! A plan is either refused for what the checkpoint or the request is, or it is proved.

use arbitrary::{Result, Unstructured};
use lingconv_core::catalog::Catalog;
use lingconv_core::dialect::Dialect;
use lingconv_core::dtype::Dtype;
use lingconv_core::header::Entry;
use lingconv_core::plan::{self, Plan, Request, explain, summary};
use lingconv_core::target::Target;
use serde_json::{Map, Value, json};

use crate::{folder, sound, tiny};

/// Numbers that shapes and settings are changed to: edges of blocks, of types, and of sense.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    16,
    64,
    127,
    128,
    129,
    255,
    256,
    257,
    320,
    1 << 20,
    u32::MAX as u64,
    1 << 40,
    u64::MAX,
];
/// Element types that tensors are changed to.
const DTYPES: [Dtype; 8] = [
    Dtype::BF16,
    Dtype::F16,
    Dtype::F32,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::I32,
    Dtype::U8,
    Dtype::F64,
];
/// Most damages of the configuration, and of the tensors: what nothing is made of teaches little.
const MAX_DAMAGES: usize = 2;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    // Choices that the input is too short for are the first of their kind.
    let _ = attempt(&mut Unstructured::new(data));
}

fn attempt(choices: &mut Unstructured) -> Result<()> {
    let place = folder::scratch();
    let (config, shards) = checkpoint(choices)?;
    let request = request(choices, &config, &shards)?;
    let Some(catalog) = sound(tiny::catalog(place.path(), &config, shards)) else { return Ok(()) };
    let Some(request) = sound(Request::parse(&request.to_string())) else { return Ok(()) };
    if let Some(plan) = sound(plan::build(&catalog, &request)) {
        holds(&catalog, &plan);
    }
    Ok(())
}

/// What a plan is asked for, it can answer.
fn holds(catalog: &Catalog, plan: &Plan) {
    sound(summary::summarize(catalog, plan));
    let first = catalog.tensors.first().map(|tensor| &*tensor.name);
    first.map(|name| sound(explain::explain(catalog, plan, name)));
    let outputs = plan.tasks.iter().flat_map(|task| &task.outputs);
    let files: u64 = outputs.map(|output| output.size - output.data_start).sum();
    let bytes: u64 = plan.tasks.iter().map(plan::Task::bytes).sum();
    assert!(bytes >= files, "{files} bytes of files, {bytes} of tasks");
}

/// A checkpoint of one of three architectures, damaged.
fn checkpoint(choices: &mut Unstructured) -> Result<(Value, Vec<Vec<Entry>>)> {
    let mut config = tiny::config(choices.int_in_range(0..=2)?);
    let fp8 = choices.arbitrary()?;
    if choices.arbitrary()? {
        config["num_nextn_predict_layers"] = 1.into();
    }
    if fp8 {
        config["quantization_config"] =
            json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]});
    }
    for _ in 0..choices.int_in_range(0..=MAX_DAMAGES)? {
        damage_config(choices, &mut config)?;
    }
    let model = tiny::model(&config);
    let mut tensors = model.map(|model| tiny::tensors(&model, fp8)).unwrap_or_default();
    for _ in 0..choices.int_in_range(0..=MAX_DAMAGES)? {
        damage_tensors(choices, &mut tensors)?;
    }
    let first = choices.int_in_range(0..=tensors.len())?;
    let rest = tensors.split_off(first);
    Ok((config, vec![tensors, rest]))
}

fn damage_config(choices: &mut Unstructured, config: &mut Value) -> Result<()> {
    let Some(keys) = config.as_object_mut() else { return Ok(()) };
    let known: Vec<String> = keys.keys().cloned().collect();
    let key = choices.choose(&known)?.clone();
    let value = match choices.int_in_range(0..=5)? {
        0 => {
            keys.remove(&key);
            return Ok(());
        }
        1 => json!(choices.arbitrary::<bool>()?),
        2 => json!([0, 1]),
        3 => json!(-1.5),
        _ => json!(choices.choose(&NUMBERS)?),
    };
    keys.insert(key, value);
    Ok(())
}

fn damage_tensors(choices: &mut Unstructured, tensors: &mut Vec<Entry>) -> Result<()> {
    if tensors.is_empty() {
        return Ok(());
    }
    let at = choices.choose_index(tensors.len())?;
    let other = choices.choose_index(tensors.len())?;
    let tensor = &mut tensors[at];
    match choices.int_in_range(0..=7)? {
        0 => {
            tensors.remove(at);
        }
        1 => tensor.dtype = *choices.choose(&DTYPES)?,
        2 => tensor.shape.reverse(),
        3 => tensor.shape = tensor.shape.iter().copied().chain([1]).take(8).collect(),
        4 => tensor.shape = tensor.shape.iter().copied().skip(1).collect(),
        5 => tensor.name = format!("{}{}", tensor.name, choices.choose(&SUFFIXES)?).into(),
        6 => tensors.swap(at, other),
        _ => {
            let number = *choices.choose(&NUMBERS)?;
            if let Some(dim) = tensor.shape.first_mut() {
                *dim = number;
            }
        }
    }
    Ok(())
}

/// What is put behind names; what begins so may be a companion.
const SUFFIXES: [&str; 5] = ["_scale_inv", "_scale", ".extra", "/..", " "];

fn request(choices: &mut Unstructured, config: &Value, shards: &[Vec<Entry>]) -> Result<Value> {
    let dialects: Vec<&str> = Dialect::names().collect();
    let verb = *choices.choose(&["quantize", "dequantize", "reshard", "reshard"])?;
    let mut request = json!({
        "verb": verb,
        "dialect": choices.choose(&dialects)?,
        "scale": choices.choose(&["f32", "ue8m0"])?,
        "scale_arith": choices.choose(&["ieee", "cuda"])?,
        "experts_only": choices.arbitrary::<bool>()?,
        "drop_mtp": choices.arbitrary::<bool>()?,
        "keep_nonfinite": true,
    });
    if choices.arbitrary()? {
        request["only"] =
            json!([choices.choose(&["*experts*", "*", "*_proj*", "[", "lm_head*"])?]);
    }
    if choices.arbitrary()? {
        request["skip"] = json!([choices.choose(&["*gate*", "**", "*.1.*", "{", ""])?]);
    }
    if choices.arbitrary()? {
        request["rope_yarn"] = json!(choices.choose(&[1.0, 4.0, 1024.0, 1e300])?);
    }
    if choices.arbitrary()? {
        let named = shards.iter().flatten().next().map_or("none", |tensor| &*tensor.name);
        request["nonfinite"] = json!([named]);
    }
    if verb == "reshard" || choices.ratio(1, 8)? {
        request["reshard"] = Value::Object(reshard(choices, config)?);
    }
    Ok(request)
}

fn reshard(choices: &mut Unstructured, config: &Value) -> Result<Map<String, Value>> {
    const SIZES: [u64; 9] = [1, 1, 1, 2, 2, 2, 3, 4, 16];
    let targets: Vec<String> = Target::builtins().map(|target| target.name).collect();
    let mut ask = Map::new();
    let mut set = |key: &str, value: Value| ask.insert(key.to_owned(), value);
    set("target", json!(choices.choose(&targets)?));
    for key in ["tp", "pp", "ep"] {
        set(key, json!(choices.choose(&SIZES)?));
    }
    set("shard_size", json!(choices.choose(&[5_000_000_000, 10_000, 100_000, u64::MAX])?));
    if choices.ratio(1, 4)? {
        set("pp_layers", json!([choices.choose(&NUMBERS[..4])?, choices.choose(&NUMBERS[..4])?]));
    }
    if choices.arbitrary()? {
        set("format", json!("fp8"));
    }
    set("keep_mtp", json!(choices.arbitrary::<bool>()?));
    set("partial", json!(choices.arbitrary::<bool>()?));
    if choices.ratio(1, 4)? {
        let rank = |choices: &mut Unstructured| -> Result<Value> {
            Ok(json!({"tp": choices.choose(&NUMBERS[..4])?, "pp": choices.choose(&NUMBERS[..3])?}))
        };
        set("rank", rank(choices)?);
        set("earlier", json!([rank(choices)?]));
    }
    if choices.ratio(1, 4)? {
        set("experts", json!(experts(choices, config)?));
    }
    Ok(ask)
}

/// A map of experts that swaps two groups of the last layer, or two experts.
fn experts(choices: &mut Unstructured, config: &Value) -> Result<String> {
    let layers = config["num_hidden_layers"].as_u64().unwrap_or(2).min(8);
    let moved = *choices.choose(&[[2, 3, 0, 1], [1, 0, 2, 3], [0, 0, 1, 2], [0, 1, 2, 9]])?;
    let mut rows = vec![vec![0, 1, 2, 3]; layers as usize];
    if let Some(last) = rows.last_mut() {
        *last = moved.to_vec();
    }
    Ok(json!({ "physical_to_logical_map": rows }).to_string())
}
