use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::dtype::Dtype;
use crate::header::{Entry, Header, PREFIX};
use crate::model::Role;
use crate::numeric::{Arith, Float, Level, Tile, bf16_to_f32, encode};

fn run(options: &Options, folder: &Path) -> Result<Summary> {
    write(options, folder, &|_, _| true)
}

fn json(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&small::read(&folder.join(name), 100 << 20).unwrap()).unwrap()
}

/// File names of the index, each once.
fn files(folder: &Path) -> Vec<String> {
    let index = json(folder, "model.safetensors.index.json");
    let mut names: Vec<String> = index["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[allow(clippy::disallowed_methods)]
fn header_of(path: &Path) -> Header {
    use std::io::Read;
    let mut file = std::fs::File::open(path).unwrap();
    let mut prefix = [0; 8];
    file.read_exact(&mut prefix).unwrap();
    let size = file.metadata().unwrap().len();
    let length = header::json_length(prefix, size).unwrap();
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).unwrap();
    Header::parse(&text, size - PREFIX - length).unwrap()
}

/// Every tensor of a small checkpoint: entry and bytes.
fn load(folder: &Path) -> BTreeMap<String, (Entry, Vec<u8>)> {
    let mut tensors = BTreeMap::new();
    for name in files(folder) {
        let path = folder.join(&name);
        let bytes = small::read(&path, 1 << 30).unwrap();
        let header = header_of(&path);
        let start = bytes.len() - header.tensors.last().unwrap().end as usize;
        for entry in header.tensors {
            let data = bytes[start + entry.begin as usize..start + entry.end as usize].to_vec();
            assert!(tensors.insert(entry.name.to_string(), (entry, data)).is_none());
        }
    }
    tensors
}

fn bytes_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    load(folder).into_iter().map(|(name, (_, bytes))| (name, bytes)).collect()
}

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes
        .chunks_exact(2)
        .map(|b| f64::from(bf16_to_f32(u16::from_le_bytes([b[0], b[1]]))))
        .collect()
}

#[test]
fn ling_1t_sparse_has_its_size_and_takes_none() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { sparse: true, ..Options::new("ling-1t") };
    let summary = run(&options, folder.path()).unwrap();
    assert_eq!(summary, Summary { files: 155, tensors: 59_243, bytes: 1_999_410_696_192 });
    let index = json(folder.path(), "model.safetensors.index.json");
    assert_eq!(index["metadata"]["total_size"].as_u64(), Some(summary.bytes));
    assert_eq!(index["weight_map"].as_object().unwrap().len(), 59_243);
    let names = files(folder.path());
    assert_eq!((names.len(), &*names[154]), (155, "model-00155-of-00155.safetensors"));
    let (mut tensors, mut data, mut disk) = (0, 0, 0);
    for name in &names {
        let path = folder.path().join(name);
        let header = header_of(&path);
        tensors += header.tensors.len();
        let bytes = header.tensors.last().unwrap().end;
        assert!((12_000_000_000..13_500_000_000).contains(&bytes), "{name}: {bytes}");
        data += bytes;
        disk += path.metadata().unwrap().blocks() * 512;
    }
    assert_eq!((tensors, data), (summary.tensors, summary.bytes));
    assert!(disk < 50_000_000, "{disk}");
}

#[test]
fn ling_1t_fp8_sparse() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { sparse: true, fp8: true, ..Options::new("ling-1t") };
    let summary = run(&options, folder.path()).unwrap();
    assert_eq!((summary.tensors, summary.bytes), (118_011, 1_002_684_813_312));
    let config = json(folder.path(), "config.json");
    assert_eq!(config["quantization_config"]["weight_block_size"], json!([128, 128]));
    let index = json(folder.path(), "model.safetensors.index.json");
    let map = index["weight_map"].as_object().unwrap();
    let apart = map.iter().filter(|(name, file)| {
        name.strip_suffix("_scale_inv").is_some_and(|weight| map[weight] != **file)
    });
    assert!(apart.count() > 0);
}

#[test]
fn bytes_depend_on_seed_and_name_alone() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plain = Options::new("tiny");
    let summary = run(&plain, &at("a")).unwrap();
    assert!(summary.files > 3);
    let one = Options { shard_size: Some(u64::MAX), jobs: 1, ..plain.clone() };
    assert_eq!(run(&one, &at("b")).unwrap().files, 1);
    let many = Options { shard_size: Some(100_000), jobs: 5, mtp: true, ..plain.clone() };
    run(&many, &at("c")).unwrap();
    let other = Options { seed: 1, ..plain };
    run(&other, &at("d")).unwrap();
    let [a, b, mut c, d] = ["a", "b", "c", "d"].map(|name| bytes_of(&at(name)));
    assert!(a == b);
    assert!(c.keys().any(|name| name.ends_with("3.eh_proj.weight")));
    c.retain(|name, _| !name.starts_with("model.layers.3."));
    assert!(a == c);
    assert!(a.iter().all(|(name, bytes)| d[name] != *bytes));
    let distinct: std::collections::BTreeSet<_> = a.values().collect();
    assert_eq!(distinct.len(), a.len());
}

/// The exact bytes are part of what a seed means; a change would make recorded digests stale.
#[test]
fn bytes_are_these() {
    let folder = tempfile::tempdir().unwrap();
    run(&Options::new("tiny"), folder.path()).unwrap();
    let mut all = Vec::new();
    for (name, bytes) in bytes_of(folder.path()) {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(&bytes);
    }
    assert_eq!(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&all)), "8cf3faf572dfe78c");
}

#[test]
fn fp8_is_the_encoding_of_the_bf16_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (wide, fp8) = (folder.path().join("bf16"), folder.path().join("fp8"));
    run(&Options::new("tiny"), &wide).unwrap();
    run(&Options { fp8: true, ..Options::new("tiny") }, &fp8).unwrap();
    let (wide, fp8) = (load(&wide), load(&fp8));
    let dialect = crate::dialect::Dialect::builtin("deepseek").unwrap();
    let encoding = dialect.encoding(None, crate::dialect::ScaleKind::F32, Arith::Ieee).unwrap();
    let mut encoded = 0;
    for (name, (entry, bytes)) in &wide {
        let (stored, codes) = &fp8[name];
        if stored.dtype == entry.dtype {
            assert_eq!(bytes, codes, "{name}");
            continue;
        }
        assert_eq!((stored.dtype, &stored.shape), (Dtype::F8E4M3, &entry.shape));
        let (rows, cols) = (entry.shape[0] as usize, entry.shape[1] as usize);
        let (high, wide) = encoding.grid.scale_shape(rows, cols);
        let (mut q, mut scales) = (vec![0; rows * cols], vec![0.0; high * wide]);
        let tile = Tile::packed(bytes, rows, cols, 2);
        encode(Level::Scalar, &tile, Float::Bf16, &encoding, &mut q, &mut scales).unwrap();
        assert_eq!(&q, codes, "{name}");
        let scales: Vec<u8> = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!(scales, fp8[&dialect.scale_name(name)].1, "{name}");
        encoded += 1;
    }
    assert_eq!(fp8.len(), wide.len() + encoded);
    assert_eq!(encoded, 3 * 2 + 3 + 2 * 9 * 3);
}

#[test]
fn weights_have_heavy_tails_and_outlier_columns() {
    let weight = layout::Weight { name: "x".into(), role: Role::ExpertGate, rows: 512, cols: 1024 };
    let generator = Generator::new(7);
    let stored = layout::Stored { weight, form: layout::Form::Bf16 };
    let mut bytes = Vec::new();
    let sink = &mut |chunk: &[u8]| {
        bytes.extend_from_slice(chunk);
        Ok(())
    };
    Producer::new(&generator).produce(&stored, sink).unwrap();
    let values = floats(&bytes);
    let column = |c: usize| values.iter().skip(c).step_by(1024);
    let mut deviations: Vec<f64> =
        (0..1024).map(|c| (column(c).map(|v| v * v).sum::<f64>() / 512.0).sqrt()).collect();
    let kurtosis: f64 = (0..1024)
        .map(|c| {
            let fourth = column(c).map(|v| v.powi(4)).sum::<f64>() / 512.0;
            fourth / deviations[c].powi(4)
        })
        .sum::<f64>()
        / 1024.0;
    assert!((4.0..7.0).contains(&kurtosis), "{kurtosis}");
    deviations.sort_by(f64::total_cmp);
    let median = deviations[512];
    assert!(deviations[1021] < 2.0 * median && deviations[1022] > 5.0 * median);
    let typical = median * 32.0;
    assert!((0.5..2.0).contains(&typical), "{typical}");
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 0.05 * median, "{mean}");
}

#[test]
fn norms_are_near_one_and_biases_balanced() {
    let folder = tempfile::tempdir().unwrap();
    run(&Options { experts: Some(250), ..Options::new("tiny") }, folder.path()).unwrap();
    for (name, (entry, bytes)) in load(folder.path()) {
        if name.ends_with("expert_bias") {
            assert_eq!((entry.dtype, &*entry.shape), (Dtype::F32, &[250][..]));
            let steps: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()) / 0.001)
                .collect();
            assert!(steps.iter().all(|s| (s - s.round()).abs() < 1e-3));
            assert_eq!(steps.iter().map(|s| s.round() as i64).sum::<i64>(), 0);
            assert!(steps.iter().any(|s| *s > 5.0) && steps.iter().any(|s| *s < -5.0));
        } else if name.contains("norm") {
            let values = floats(&bytes);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            assert!((0.9..1.1).contains(&mean), "{name}: {mean}");
        }
    }
}

#[test]
fn routing_groups_follow_the_experts() {
    let preset = Preset::named("ling-1t").unwrap();
    for (experts, expected) in [
        (256, [8, 4, 8]),
        (512, [8, 4, 8]),
        (64, [8, 4, 8]),
        (20, [5, 3, 8]),
        (8, [4, 2, 4]),
        (7, [1, 1, 7]),
        (2, [1, 1, 2]),
        (1, [1, 1, 1]),
    ] {
        let options = Options { experts: Some(experts), ..Options::new("ling-1t") };
        let config = preset.config(&options).unwrap();
        let routing = ["n_group", "topk_group", "num_experts_per_tok"].map(|k| config[k].as_u64());
        assert_eq!(routing, expected.map(Some), "{experts} experts");
    }
}

#[test]
fn fewer_layers_keep_a_moe_layer() {
    let folder = tempfile::tempdir().unwrap();
    for (layers, dense) in [(1, 0), (3, 2), (6, 4)] {
        let folder = folder.path().join(layers.to_string());
        let options = Options { sparse: true, layers: Some(layers), ..Options::new("ling-1t") };
        run(&options, &folder).unwrap();
        let config = json(&folder, "config.json");
        assert_eq!(config["num_hidden_layers"].as_u64(), Some(u64::from(layers)));
        assert_eq!(config["first_k_dense_replace"].as_u64(), Some(dense));
    }
}

#[test]
fn every_preset_is_sound() {
    for name in presets() {
        let preset = Preset::named(name).unwrap();
        let plain = Options::new(name);
        let other = Options { layers: Some(2), experts: Some(16), ..plain.clone() };
        for options in [plain, other] {
            let config = preset.config(&options).unwrap();
            assert!(config.get("auto_map").is_none());
            let model = Architecture::builtin_for(&config).unwrap().model(&config).unwrap();
            assert!(model.moe_layers() > 0);
            assert_eq!(model.layers(), options.layers.unwrap_or(model.layers()));
            assert_eq!(model.experts(), options.experts.unwrap_or(model.experts()));
        }
    }
}

#[test]
fn nonsense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Options { sparse: true, ..Options::new("tiny") };
    for options in [
        Options { preset: "huge".into(), ..plain.clone() },
        Options { layers: Some(0), ..plain.clone() },
        Options { layers: Some(10_001), ..plain.clone() },
        Options { experts: Some(0), ..plain.clone() },
        Options { experts: Some(70_000), ..plain.clone() },
        Options { shard_size: Some(0), ..plain.clone() },
        Options { shard_size: Some(1), ..plain.clone() },
    ] {
        let error = run(&options, &folder.path().join("x")).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{options:?}: {error}");
    }
    small::write_durable(&folder.path().join("mine.txt"), b"x").unwrap();
    assert_eq!(run(&plain, folder.path()).unwrap_err().kind, Kind::Foreign);
    assert_eq!(small::list(folder.path()).unwrap(), ["mine.txt"]);
}

#[test]
fn a_stopped_run_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let progress = |_, _| count.fetch_add(1, Ordering::Relaxed) < 30;
    let error = write(&Options::new("tiny"), folder.path(), &progress).unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    assert!(small::list(folder.path()).unwrap().is_empty());
}

#[test]
fn small_files_come_along() {
    let folder = tempfile::tempdir().unwrap();
    let total = AtomicUsize::new(0);
    let progress = |bytes, _| {
        total.fetch_add(bytes as usize, Ordering::Relaxed);
        true
    };
    let summary = write(&Options::new("tiny"), folder.path(), &progress).unwrap();
    assert_eq!(total.into_inner() as u64, summary.bytes);
    let names = small::list(folder.path()).unwrap();
    for name in ["config.json", "configuration_bailing_moe_v2.py", "generation_config.json"] {
        assert!(names.iter().any(|n| n == name), "{name}");
    }
    assert!(names.iter().all(|n| !n.contains(".part")));
    assert!(json(folder.path(), "tokenizer_config.json").is_object());
}
