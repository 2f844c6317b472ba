//! A task that reads a layer once and scatters it to eight rank files, as resharding will.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::{
    Bench, bf16_bytes, cut, deepseek, entry, options, plan, run, target, task, tensors, write_shard,
};
use lingconv_core::catalog::Catalog;
use lingconv_core::dtype::Dtype::{BF16, F8E4M3, F32};
use lingconv_core::numeric::{self, Float, Grid, Level, ScaleDtype, Tile, store_scales};
use lingconv_core::plan::{Plan, Step, Target, check};
use lingconv_core::transform::Op;

const RANKS: u64 = 8;
const HIDDEN: u64 = 2048;

/// Q of 16 heads, K and V of 4 heads each, 128 rows a head, as one matrix.
const QKV_ROWS: u64 = (16 + 4 + 4) * 128;

fn source() -> (Bench, Catalog, Vec<Vec<u8>>) {
    let bench = Bench::new();
    let shapes: [(&str, [u64; 2]); 4] = [
        ("qkv", [QKV_ROWS, HIDDEN]),
        ("dense", [HIDDEN, 2048]),
        ("gate", [2048, HIDDEN]),
        ("up", [2048, HIDDEN]),
    ];
    let data: Vec<Vec<u8>> =
        shapes.iter().zip(1..).map(|((_, s), i)| bf16_bytes((s[0] * s[1]) as usize, i)).collect();
    let tensors: Vec<_> =
        shapes.iter().zip(&data).map(|((n, s), d)| (*n, BF16, s.as_slice(), d.clone())).collect();
    write_shard(&bench.source().join("model.safetensors"), &tensors);
    let catalog = bench.catalog();
    (bench, catalog, data)
}

/// Rows of Q, K and V that rank `r` holds; two ranks share a KV head.
fn qkv_rows(r: u64) -> [[u64; 2]; 3] {
    let kv = r / 2;
    [
        [r * 256, (r + 1) * 256],
        [2048 + kv * 128, 2048 + (kv + 1) * 128],
        [2560 + kv * 128, 2560 + (kv + 1) * 128],
    ]
}

fn steps(catalog: &Catalog, op: Op, scale: bool) -> Vec<Step> {
    let step = |name: &str, targets: Vec<Target>| {
        let source = catalog.find(name).unwrap();
        let shape = &catalog.tensor(source).shape;
        Step { source, rows: shape[0], cols: shape[1], op, targets }
    };
    let tensor = |n: u32| if scale { n * 2 } else { n };
    let place = |r: u64, n: u32, rows, cols| {
        target(r as u32, tensor(n), rows, cols, scale.then(|| tensor(n) + 1))
    };
    let qkv = (0..RANKS).flat_map(|r| qkv_rows(r).map(|rows| place(r, 0, rows, [0, HIDDEN])));
    let dense = (0..RANKS).map(|r| place(r, 1, [0, HIDDEN], [r * 256, (r + 1) * 256]));
    let half = |name| {
        let rows = |r| [r * 256, (r + 1) * 256];
        step(name, (0..RANKS).map(|r| place(r, 2, rows(r), [0, HIDDEN])).collect())
    };
    vec![step("qkv", qkv.collect()), step("dense", dense.collect()), half("gate"), half("up")]
}

fn scatter(catalog: &Catalog, steps: Vec<Step>, encoded: bool) -> Plan {
    let shapes = [("qkv", [512, HIDDEN]), ("dense", [HIDDEN, 256]), ("gate_up", [512, HIDDEN])];
    let paths: Vec<String> = (0..RANKS).map(|r| format!("rank-{r}.safetensors")).collect();
    let outputs = paths.iter().map(|path| {
        let tensors = shapes.iter().flat_map(|(name, [rows, cols])| {
            let weight = entry(name, if encoded { F8E4M3 } else { BF16 }, &[*rows, *cols]);
            let scale = entry(&format!("{name}_scale"), F32, &[rows / 128, cols / 128]);
            [Some(weight), encoded.then_some(scale)].into_iter().flatten()
        });
        (path.as_str(), tensors.collect())
    });
    plan(catalog, vec![task(outputs.collect(), steps)])
}

#[test]
fn slices_of_a_layer_reach_eight_ranks_with_one_read() {
    let (bench, catalog, data) = source();
    let plan = scatter(&catalog, steps(&catalog, Op::Copy { unit: 2 }, false), false);
    check::check(&catalog, &plan).unwrap();
    let out = bench.output("out");
    let (_, read) = run(&catalog, &plan, &options(out.clone())).unwrap();
    assert_eq!(read, catalog.bytes());
    for r in 0..RANKS {
        let found = tensors(&out.join(format!("rank-{r}.safetensors")));
        let h = HIDDEN as usize;
        let rows = |d: &[u8], rows: [u64; 2]| cut(d, h, rows.map(|r| r as usize), [0, h], 2);
        let qkv: Vec<u8> = qkv_rows(r).iter().flat_map(|q| rows(&data[0], *q)).collect();
        let own = [r * 256, (r + 1) * 256];
        let gate_up = [rows(&data[2], own), rows(&data[3], own)].concat();
        let dense = cut(&data[1], 2048, [0, h], own.map(|c| c as usize), 2);
        assert!(found["qkv"] == qkv && found["gate_up"] == gate_up && found["dense"] == dense);
    }
}

/// Codes and scales of a packed matrix.
fn encoded(data: &[u8], rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let mut codes = vec![0; rows * cols];
    let mut scales = vec![0.0; rows.div_ceil(128) * cols.div_ceil(128)];
    let tile = Tile::packed(data, rows, cols, 2);
    let encoding = deepseek();
    numeric::encode(Level::Scalar, &tile, Float::Bf16, &encoding, &mut codes, &mut scales).unwrap();
    let mut bytes = Vec::new();
    store_scales(&scales, encoding.rule.stored, &mut bytes);
    (codes, bytes)
}

#[test]
fn encoding_while_scattering_equals_slicing_first() {
    let (bench, catalog, data) = source();
    let op = Op::Encode { float: Float::Bf16, encoding: deepseek() };
    let plan = scatter(&catalog, steps(&catalog, op, true), true);
    check::check(&catalog, &plan).unwrap();
    let out = bench.output("out");
    let (_, read) = run(&catalog, &plan, &options(out.clone())).unwrap();
    assert_eq!(read, catalog.bytes());
    for r in 0..RANKS {
        let found = tensors(&out.join(format!("rank-{r}.safetensors")));
        let own = [r * 256, (r + 1) * 256].map(|c| c as usize);
        let h = HIDDEN as usize;
        let rows = |d: &[u8], rows: [usize; 2]| cut(d, h, rows, [0, h], 2);
        let qkv = qkv_rows(r)
            .iter()
            .flat_map(|q| rows(&data[0], q.map(|r| r as usize)))
            .collect::<Vec<_>>();
        let gate_up = [rows(&data[2], own), rows(&data[3], own)].concat();
        let dense = cut(&data[1], 2048, [0, h], own, 2);
        for (name, bytes, shape) in
            [("qkv", qkv, (512, h)), ("gate_up", gate_up, (512, h)), ("dense", dense, (h, 256))]
        {
            let (codes, scales) = encoded(&bytes, shape.0, shape.1);
            assert!(found[name] == codes, "{name} of rank {r}");
            assert!(found[&format!("{name}_scale")] == scales, "scales of {name} of rank {r}");
        }
    }
}

#[test]
fn decoding_a_slice_takes_its_own_scales() {
    let bench = Bench::new();
    let (rows, cols) = (384usize, 512usize);
    let (codes, scales) = encoded(&bf16_bytes(rows * cols, 7), rows, cols);
    write_shard(
        &bench.source().join("a.safetensors"),
        &[("w", F8E4M3, &[384, 512], codes.clone())],
    );
    write_shard(&bench.source().join("b.safetensors"), &[("s", F32, &[3, 4], scales.clone())]);
    let catalog = bench.catalog();
    let grid = Grid::Block { rows: 128, cols: 128 };
    let op = Op::Decode { grid, scale: catalog.find("s").unwrap(), scale_dtype: ScaleDtype::F32 };
    let halves = [[0u64, 256], [256, 512]];
    let targets = (0..2).map(|o| target(o, 0, [0, 384], halves[o as usize], None)).collect();
    let step = Step { source: catalog.find("w").unwrap(), rows: 384, cols: 512, op, targets };
    let outputs =
        ["l.safetensors", "r.safetensors"].map(|p| (p, vec![entry("w", BF16, &[384, 256])]));
    let plan = plan(&catalog, vec![task(outputs.to_vec(), vec![step])]);
    check::check(&catalog, &plan).unwrap();
    let out = bench.output("out");
    run(&catalog, &plan, &options(out.clone())).unwrap();
    let scales = numeric::load_scales(&scales, ScaleDtype::F32).unwrap();
    let mut whole = vec![0; rows * cols * 2];
    numeric::decode(Level::Scalar, &Tile::packed(&codes, rows, cols, 1), grid, &scales, &mut whole);
    for (path, half) in ["l.safetensors", "r.safetensors"].iter().zip(halves) {
        let expected = cut(&whole, cols, [0, rows], half.map(|c| c as usize), 2);
        assert!(tensors(&out.join(path))["w"] == expected);
    }
}
