//! Whatever is made of an untrusted checkpoint passes its own proof, or is refused by its fault.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Bench, cases};
use lingconv_core::catalog::Catalog;
use lingconv_core::error::Kind;
use lingconv_core::header::PREFIX;
use lingconv_core::plan::{self, Request};
use lingconv_core::synth;
use serde_json::{Map, Value, json};

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % sides.max(1)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }
}

/// A checkpoint as headers and configuration alone.
#[derive(Clone)]
struct Model {
    config: Map<String, Value>,
    tensors: Vec<(String, String, Vec<u64>)>,
}

const DTYPES: [&str; 9] =
    ["BF16", "F32", "F16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64", "U8", "BOOL"];

impl Model {
    fn of(preset: &str, fp8: bool) -> Self {
        let bench = Bench::new();
        let mut options = synth::Options::new(preset);
        (options.experts, options.sparse, options.mtp) = (Some(4), true, true);
        let folder = bench.output("synth");
        synth::write(&options, &folder, &|_, _| true).unwrap();
        let catalog = Catalog::open(&folder).unwrap();
        let Some(Value::Object(config)) = catalog.config.clone() else { panic!("no config") };
        let mut tensors = Vec::new();
        for t in &catalog.tensors {
            let (name, shape) = (t.name.to_string(), t.shape.to_vec());
            let coded = fp8 && name.contains("proj.weight") && shape.len() == 2;
            if coded {
                let blocks = shape.iter().map(|n| n.div_ceil(128)).collect();
                tensors.push((format!("{name}_scale_inv"), "F32".into(), blocks));
            }
            let dtype = if coded { "F8_E4M3".into() } else { t.dtype.to_string() };
            tensors.push((name, dtype, shape));
        }
        Self { config, tensors }
    }

    fn mutate(&mut self, dice: &mut Dice) {
        let at = dice.roll(self.tensors.len());
        let sizes = [0, 1, 2, 3, 4, 8, 64, 127, 128, 129, 256, 320, 512, 1 << 33];
        match dice.roll(9) {
            0 => {
                let keys: Vec<String> = self.config.keys().cloned().collect();
                let (key, n) = (dice.pick(&keys), dice.pick(&sizes));
                let odd =
                    [json!(-1), json!(1.5), json!(u64::MAX), json!("x"), json!([]), Value::Null];
                let (odd, plain) = (dice.pick(&odd), json!(n));
                self.config.insert(key, dice.pick(&[odd, plain.clone(), plain]));
            }
            1 => {
                let keys: Vec<String> = self.config.keys().cloned().collect();
                self.config.remove(&dice.pick(&keys));
            }
            2 => drop(self.tensors.remove(at)),
            3 => dice.pick(&DTYPES).clone_into(&mut self.tensors[at].1),
            4 => {
                let shape = &mut self.tensors[at].2;
                let axis = dice.roll(shape.len());
                match dice.roll(4) {
                    0 => shape.push(dice.pick(&sizes[..9])),
                    1 => drop(shape.pop()),
                    2 => shape.reverse(),
                    _ => shape[axis..].iter_mut().take(1).for_each(|n| *n = dice.pick(&sizes)),
                }
            }
            5 => {
                let (name, _, shape) = self.tensors[at].clone();
                let suffix = dice.pick(&["_scale_inv", "_scale", ".bias", "s"]);
                let blocks = shape.iter().map(|n| n.div_ceil(128)).collect();
                let shape = dice.pick(&[shape, blocks, Vec::new()]);
                self.tensors.push((name + suffix, dice.pick(&DTYPES).into(), shape));
            }
            6 => {
                let from = dice.pick(&[
                    "experts.1",
                    "layers.1",
                    "layers.0",
                    "gate_proj",
                    "shared_experts",
                ]);
                let to = dice.pick(&["experts.9", "layers.7", "layers.2", "up_proj", "experts.0"]);
                self.tensors[at].0 = self.tensors[at].0.replace(from, to);
            }
            7 => {
                let (name, dtype, shape) = self.tensors[at].clone();
                let to = dice.pick(&["experts.3", "experts.4", "experts.01"]);
                self.tensors.push((name.replace("experts.0", to), dtype, shape));
            }
            _ => {
                let other = dice.roll(self.tensors.len());
                let name = self.tensors[at].0.clone();
                self.tensors[at].0 = std::mem::replace(&mut self.tensors[other].0, name);
            }
        }
    }

    /// Writes config.json and one shard without data; `None` if it has no size.
    fn write(&self, folder: &Path) -> Option<()> {
        let (mut header, mut at) = (Map::new(), 0u64);
        for (name, dtype, shape) in &self.tensors {
            let bits = match dtype.as_str() {
                "I64" => 64,
                "F32" => 32,
                "BF16" | "F16" => 16,
                _ => 8u64,
            };
            let count = shape.iter().try_fold(bits / 8, |all, n| all.checked_mul(*n))?;
            let end = at.checked_add(count).filter(|end| *end < 1 << 42)?;
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
            header.insert(name.clone(), entry);
            at = end;
        }
        if header.len() != self.tensors.len() {
            return None;
        }
        let json = Value::Object(header).to_string();
        let file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
        file.write_all_at(&(json.len() as u64).to_le_bytes(), 0).unwrap();
        file.write_all_at(json.as_bytes(), PREFIX).unwrap();
        file.set_len(PREFIX + json.len() as u64 + at).unwrap();
        std::fs::write(folder.join("config.json"), Value::Object(self.config.clone()).to_string())
            .unwrap();
        Some(())
    }
}

fn requests() -> Vec<Request> {
    let cut = |target: &str, tp: u32, pp: u32, ep: u32, rest: &str| {
        format!(
            r#"{{"verb":"reshard","reshard":
            {{"target":"{target}","tp":{tp},"pp":{pp},"ep":{ep}{rest}}}}}"#
        )
    };
    let fp8 = r#","format":"fp8""#;
    let texts = [
        r#"{"verb":"quantize"}"#.to_owned(),
        r#"{"verb":"quantize","dialect":"compressed-tensors-channel","only":["*"]}"#.to_owned(),
        r#"{"verb":"quantize","drop_mtp":true,"experts_only":true}"#.to_owned(),
        r#"{"verb":"dequantize"}"#.to_owned(),
        r#"{"verb":"dequantize","drop_mtp":true}"#.to_owned(),
        cut("vllm-0.32", 1, 1, 1, ""),
        cut("vllm-0.32", 2, 1, 1, ""),
        cut("vllm-0.32", 2, 2, 2, ""),
        cut("vllm-0.32", 2, 1, 1, fp8),
        cut("vllm-0.32", 4, 1, 4, ""),
        cut("vllm-0.32", 2, 2, 1, r#","rank":{"pp":1}"#),
        cut("vllm-0.11", 2, 1, 2, ""),
        cut("hf", 1, 2, 1, ""),
        cut("hf", 1, 1, 2, ""),
        cut("sglang", 2, 2, 1, ""),
    ];
    texts.iter().map(|text| Request::parse(text).unwrap()).collect()
}

#[test]
fn a_mutated_checkpoint_is_planned_and_proved_or_refused() {
    let presets = ["tiny", "tiny-deepseek-v3", "tiny-qwen3-moe"];
    let models: Vec<Model> =
        presets.iter().flat_map(|p| [Model::of(p, false), Model::of(p, true)]).collect();
    let requests = requests();
    let bench = Bench::new();
    let mut wrong = std::collections::BTreeMap::new();
    let mut planned = 0;
    for case in 0..u64::from(cases(150)) {
        let mut dice = Dice((case + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let mut model = dice.pick(&models);
        (0..=dice.roll(3)).for_each(|_| model.mutate(&mut dice));
        if model.write(&bench.source()).is_none() {
            continue;
        }
        let Ok(catalog) = Catalog::open(&bench.source()) else { continue };
        for request in &requests {
            match plan::build(&catalog, request) {
                Ok(_) => planned += 1,
                Err(e) if [Kind::Invalid, Kind::Impossible, Kind::Usage].contains(&e.kind) => {}
                Err(e) => {
                    let text = format!("case {case}, {request:?}: {e}");
                    wrong.entry(e.message).or_insert(text);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(planned > 0);
}
