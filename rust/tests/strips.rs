//! Rows too wide for the memory, which are cut in columns: the same bytes as with plenty of it.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::sync::atomic::Ordering;

use common::{
    Bench, bf16_bytes, entry, folder_bytes, options, plan as plan_of, run, target, task,
    write_shard,
};
use lingconv_core::catalog::{CONFIG, Catalog};
use lingconv_core::dialect::Dialect;
use lingconv_core::dtype::Dtype::{BF16, F8E4M3, F16, F32};
use lingconv_core::error::Kind;
use lingconv_core::exec::budget::{Together, budget};
use lingconv_core::exec::{Options, Progress, Run};
use lingconv_core::numeric::{Float, Grid, Level};
use lingconv_core::plan::{self, Plan, Request, Step};
use lingconv_core::transform::Op;

/// Too little for any of the rows below.
const LITTLE: u64 = 13 << 19;

/// A checkpoint with a few wide matrices and one that is not.
fn source() -> (Bench, Catalog) {
    let bench = Bench::new();
    let of = |rows: usize, cols: usize, seed| bf16_bytes(rows * cols, seed);
    // F16 of the same patterns: small exponents, all finite.
    let halves = of(3, 400_001, 2).iter().map(|b| b & 0xBB).collect();
    let singles = (0..5 * 200_003).flat_map(|i| (i as f32 * 0.37 - 9.0).to_le_bytes()).collect();
    write_shard(
        &bench.source().join("model.safetensors"),
        &[
            ("a.weight", BF16, &[3, 1_200_000], of(3, 1_200_000, 1)),
            ("b.weight", F16, &[3, 400_001], halves),
            ("c.weight", BF16, &[130, 30_000], of(130, 30_000, 3)),
            ("d.weight", F32, &[5, 200_003], singles),
            ("e.weight", BF16, &[200, 300], of(200, 300, 4)),
        ],
    );
    std::fs::write(bench.source().join(CONFIG), "{}").unwrap();
    let catalog = bench.catalog();
    (bench, catalog)
}

fn quantized(catalog: &Catalog, dialect: &str) -> Plan {
    let request = format!(r#"{{"verb":"quantize","only":["*"],"dialect":"{dialect}"}}"#);
    plan::build(catalog, &Request::parse(&request).unwrap()).unwrap()
}

fn little(options: Options) -> Options {
    Options { memory: LITTLE, ..options }
}

/// The same where a task has four outputs.
fn little_of_four(options: Options) -> Options {
    Options { memory: LITTLE + (1 << 20), ..options }
}

#[test]
fn every_dialect_gives_the_bytes_of_whole_rows() {
    let (bench, catalog) = source();
    for dialect in Dialect::names() {
        let plan = quantized(&catalog, dialect);
        let wide: u64 = catalog.tensors[..4].iter().map(|t| t.bytes).sum();
        let budget_of = |memory| budget(&plan, memory, 1, Together::of(&plan)).unwrap();
        assert_eq!(budget_of(1 << 30).read_twice, 0);
        let (calm, tight) =
            (bench.output(&format!("{dialect}-calm")), bench.output(&format!("{dialect}-tight")));
        let (_, once) = run(&catalog, &plan, &options(calm.clone())).unwrap();
        for level in Level::available() {
            let options = Options { level, force: true, ..little(options(tight.clone())) };
            let (_, read) = run(&catalog, &plan, &Options { resume: false, ..options }).unwrap();
            assert!(folder_bytes(&tight) == folder_bytes(&calm), "{dialect} {level}");
            assert_eq!(read, once + budget_of(LITTLE).read_twice, "{dialect} {level}");
        }
        if Dialect::builtin(dialect).unwrap().grid() != Grid::Channel {
            assert_eq!(budget_of(LITTLE).read_twice, wide, "{dialect}");
        }
    }
}

#[test]
fn what_was_encoded_is_decoded_and_cut_in_strips_too() {
    let (bench, catalog) = source();
    for dialect in Dialect::names() {
        let coded = bench.output(dialect);
        run(&catalog, &quantized(&catalog, dialect), &options(coded.clone())).unwrap();
        let catalog = Catalog::open(&coded).unwrap();
        let plan = plan::build(&catalog, &Request::parse(r#"{"verb":"dequantize"}"#).unwrap());
        let plan = plan.unwrap();
        let (calm, tight) =
            (bench.output(&format!("{dialect}-calm")), bench.output(&format!("{dialect}-tight")));
        let (_, once) = run(&catalog, &plan, &options(calm.clone())).unwrap();
        let (_, read) = run(&catalog, &plan, &little(options(tight.clone()))).unwrap();
        assert!(folder_bytes(&tight) == folder_bytes(&calm), "{dialect}");
        assert_eq!(read, once, "codes are read once");
    }
}

/// One wide matrix of 200 rows, and outputs that take columns of it, one of them twice.
fn scattered(op: Op) -> (Bench, Catalog, Plan) {
    let (rows, cols, split) = (200u64, 40_000u64, 25_600u64);
    let bench = Bench::new();
    let weights = bf16_bytes((rows * cols) as usize, 7);
    write_shard(&bench.source().join("model.safetensors"), &[("w", BF16, &[rows, cols], weights)]);
    let catalog = bench.catalog();
    let encoded = matches!(op, Op::Encode { .. });
    let dtype = match op {
        Op::Encode { .. } => F8E4M3,
        Op::Widen { .. } => F32,
        _ => BF16,
    };
    let parts = [[0, split], [split, cols], [0, cols], [split, cols]];
    let outputs: Vec<_> = parts
        .iter()
        .enumerate()
        .map(|(i, [from, to])| {
            let mut tensors = vec![entry("w", dtype, &[rows, to - from])];
            if encoded {
                let wide = (to - from).div_ceil(128);
                tensors.push(entry("s", F32, &[rows.div_ceil(128), wide]));
            }
            (format!("{i}.safetensors"), tensors)
        })
        .collect();
    let targets = parts.iter().zip(0..).flat_map(|(cols, i)| {
        let scale = encoded.then_some(1);
        [[0, 128], [128, rows]].map(|rows| target(i, 0, rows, *cols, scale))
    });
    let mut targets: Vec<_> = targets.collect();
    targets.sort_by_key(|t| t.rows.start);
    let step = Step { source: 0, rows, cols, op, targets };
    let outputs = outputs.iter().map(|(name, t)| (name.as_str(), t.clone())).collect();
    let plan = plan_of(&catalog, vec![task(outputs, vec![step])]);
    plan::check::check(&catalog, &plan).unwrap();
    (bench, catalog, plan)
}

#[test]
fn outputs_of_columns_get_theirs_from_strips() {
    let encode = Op::Encode { float: Float::Bf16, encoding: common::deepseek() };
    for op in [Op::Copy { unit: 2 }, Op::Widen { float: Float::Bf16 }, encode] {
        let (bench, catalog, plan) = scattered(op);
        let (calm, tight) = (bench.output("calm"), bench.output("tight"));
        run(&catalog, &plan, &options(calm.clone())).unwrap();
        // A row of a copy takes 80 kB: only blocks of rows are cut here.
        run(&catalog, &plan, &little_of_four(options(tight.clone()))).unwrap();
        assert!(folder_bytes(&tight) == folder_bytes(&calm), "{}", op.name());
    }
}

#[test]
fn rows_of_a_copy_are_cut_too() {
    let bench = Bench::new();
    let (rows, cols, split) = (3u64, 700_000u64, 300_001u64);
    let weights = bf16_bytes((rows * cols) as usize, 9);
    write_shard(&bench.source().join("model.safetensors"), &[("w", BF16, &[rows, cols], weights)]);
    let catalog = bench.catalog();
    for (op, dtype) in [(Op::Copy { unit: 2 }, BF16), (Op::Widen { float: Float::Bf16 }, F32)] {
        let outputs = vec![
            ("left", vec![entry("w", dtype, &[rows, split])]),
            ("right", vec![entry("w", dtype, &[rows, cols - split])]),
        ];
        let targets = vec![
            target(0, 0, [0, rows], [0, split], None),
            target(1, 0, [0, rows], [split, cols], None),
        ];
        let step = Step { source: 0, rows, cols, op, targets };
        let plan = plan_of(&catalog, vec![task(outputs, vec![step])]);
        let place = |name: &str| bench.output(&format!("{}-{name}", op.name()));
        run(&catalog, &plan, &options(place("calm"))).unwrap();
        run(&catalog, &plan, &little(options(place("tight")))).unwrap();
        assert!(folder_bytes(&place("calm")) == folder_bytes(&place("tight")), "{}", op.name());
    }
}

/// Runs until `limit` bytes have been written, then stops; whether it had finished.
fn run_until(catalog: &Catalog, plan: &Plan, options: &Options, limit: u64) -> bool {
    let progress = Progress::default();
    let key = plan.digest();
    let run = Run::new(catalog, plan, &key, options, &progress);
    std::thread::scope(|scope| {
        let handle = scope.spawn(|| run.execute());
        while !handle.is_finished() && progress.written.load(Ordering::Relaxed) < limit {
            std::hint::spin_loop();
        }
        progress.cancel.store(true, Ordering::Relaxed);
        handle.join().unwrap().map_err(|e| assert_eq!(e.kind, Kind::Cancelled, "{e}")).is_ok()
    })
}

#[test]
fn stopped_amid_a_row_it_goes_on_there_with_more_or_less_memory() {
    let (bench, catalog) = source();
    let mut amid = 0;
    for dialect in Dialect::names() {
        let plan = quantized(&catalog, dialect);
        let calm = bench.output(&format!("{dialect}-calm"));
        run(&catalog, &plan, &options(calm.clone())).unwrap();
        for round in 0..6u64 {
            let output = bench.output(&format!("{dialect}-{round}"));
            for limit in 1u64.. {
                let memory = if limit % (2 + round % 3) == 1 { LITTLE } else { 1 << 30 };
                let options = Options { memory, point_every: 100_000, ..options(output.clone()) };
                if run_until(&catalog, &plan, &options, limit * (150_000 + round * 77_003)) {
                    break;
                }
                amid += usize::from(journal(&output).contains("\"col\":"));
            }
            assert!(folder_bytes(&output) == folder_bytes(&calm), "{dialect} {round}");
        }
    }
    assert!(amid > 0, "no point lay amid a row");
}

/// All records of a run that was stopped.
fn journal(output: &std::path::Path) -> String {
    let files = walk(&output.join(".lingconv"));
    files.iter().map(|p| String::from_utf8_lossy(&std::fs::read(p).unwrap()).into_owned()).collect()
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|e| e.unwrap().path());
    paths.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
}

#[test]
fn a_value_that_is_not_finite_is_named_where_it_is() {
    let (bench, catalog, plan) =
        scattered(Op::Encode { float: Float::Bf16, encoding: common::deepseek() });
    let path = bench.source().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let data = bytes.len() - 200 * 40_000 * 2;
    for (row, col) in [(131, 39_990), (150, 3)] {
        let at = data + (row * 40_000 + col) * 2;
        bytes[at..at + 2].copy_from_slice(&0x7F80u16.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    drop(catalog);
    let catalog = bench.catalog();
    let error = run(&catalog, &plan, &little_of_four(options(bench.output("out")))).unwrap_err();
    assert_eq!((error.kind, error.tensor.as_deref()), (Kind::NonFinite, Some("w")));
    assert_eq!(error.message, "non-finite value inf at [131, 39990]");
}

#[test]
fn what_is_measured_whole_says_how_much_memory_that_takes() {
    let (_bench, catalog) = source();
    for option in ["prove", "report"] {
        let request = format!(r#"{{"verb":"quantize","only":["*"],"{option}":true}}"#);
        let plan = plan::build(&catalog, &Request::parse(&request).unwrap()).unwrap();
        let error = budget(&plan, LITTLE, 1, Together::of(&plan)).unwrap_err();
        assert_eq!((error.kind, error.tensor.as_deref()), (Kind::Space, Some("c.weight")));
        let need: u64 = error
            .message
            .split(' ')
            .filter_map(|w| w.trim_end_matches(',').parse().ok())
            .nth(1)
            .unwrap();
        assert!(budget(&plan, need, 1, Together::of(&plan)).is_ok());
        assert!(budget(&plan, need - 1, 1, Together::of(&plan)).is_err());
    }
}
