//! The proof of a plan finds every way in which a planner could go wrong.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use common::{Bench, bf16_bytes, deepseek, entry, plan, target, task, write_shard};
use lingconv_core::catalog::Catalog;
use lingconv_core::dtype::Dtype::{self, BF16, F8E4M3, F32};
use lingconv_core::error::Kind;
use lingconv_core::numeric::Float;
use lingconv_core::plan::{Dropped, OutputFile, Plan, Sidecar, SidecarContent, Step, check};
use lingconv_core::transform::Op;

fn source() -> (Bench, Catalog) {
    let bench = Bench::new();
    let w = || bf16_bytes(256 * 384, 1);
    write_shard(
        &bench.source().join("a.safetensors"),
        &[
            ("u", BF16, &[256, 384], w()),
            ("w", BF16, &[256, 384], w()),
            ("n", BF16, &[384], bf16_bytes(384, 2)),
        ],
    );
    let catalog = bench.catalog();
    (bench, catalog)
}

fn sound(catalog: &Catalog) -> Plan {
    let find = |name| catalog.find(name).unwrap();
    let op = Op::Encode { float: Float::Bf16, encoding: deepseek() };
    let outputs = vec![
        ("l.safetensors", layout(256)),
        (
            "r.safetensors",
            vec![
                entry("w", F8E4M3, &[256, 128]),
                entry("s", F32, &[2, 1]),
                entry("n", BF16, &[384]),
            ],
        ),
    ];
    let steps = vec![
        Step {
            source: find("w"),
            rows: 256,
            cols: 384,
            op,
            targets: vec![
                target(0, 0, [0, 256], [0, 256], Some(1)),
                target(1, 0, [0, 256], [256, 384], Some(1)),
            ],
        },
        Step {
            source: find("n"),
            rows: 768,
            cols: 1,
            op: Op::Copy { unit: 1 },
            targets: vec![
                target(0, 2, [0, 768], [0, 1], None),
                target(1, 2, [0, 768], [0, 1], None),
            ],
        },
    ];
    let mut plan = plan(catalog, vec![task(outputs, steps)]);
    plan.dropped = vec![Dropped { tensor: find("u"), reason: "test" }];
    plan
}

fn layout(cols: u64) -> Vec<lingconv_core::header::Entry> {
    vec![
        entry("w", F8E4M3, &[256, cols]),
        entry("s", F32, &[2, cols / 128]),
        entry("n", BF16, &[384]),
    ]
}

type Mutation = fn(&mut Plan);

fn output(plan: &mut Plan, path: &str, tensors: Vec<lingconv_core::header::Entry>) {
    plan.tasks[0].outputs[0] = OutputFile::new(path.into(), tensors).unwrap();
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn mutations() -> Vec<(&'static str, Mutation)> {
    vec![
        ("a tensor lost", |p| p.dropped.clear()),
        ("used and dropped", |p| p.dropped[0].tensor = p.tasks[0].steps[0].source),
        ("a target lost", |p| p.tasks[0].steps[0].targets.truncate(1)),
        ("a step lost", |p| p.tasks[0].steps.truncate(1)),
        ("steps in the wrong order", |p| p.tasks[0].steps.swap(0, 1)),
        ("a step twice", |p| {
            let step = p.tasks[0].steps[1].clone();
            p.tasks[0].steps.push(step);
        }),
        ("the wrong source", |p| p.tasks[0].steps[1].source = p.tasks[0].steps[0].source),
        ("no such source", |p| p.tasks[0].steps[0].source = 99),
        ("too many rows", |p| p.tasks[0].steps[0].rows = 384),
        ("columns off the grid", |p| {
            p.tasks[0].steps[0].targets[0].cols = 0..200;
            p.tasks[0].steps[0].targets[1].cols = 200..384;
        }),
        ("columns twice", |p| p.tasks[0].steps[0].targets[1].cols = 128..256),
        ("rows out of bounds", |p| p.tasks[0].steps[0].targets[0].rows = 0..300),
        ("rows upside down", |p| {
            let mut b = p.tasks[0].steps[0].targets[0].clone();
            b.rows = 0..128;
            p.tasks[0].steps[0].targets[0].rows = 128..256;
            p.tasks[0].steps[0].targets.insert(1, b);
        }),
        ("the wrong output", |p| p.tasks[0].steps[0].targets[1].output = 0),
        ("no such output", |p| p.tasks[0].steps[0].targets[1].output = 7),
        ("the wrong tensor", |p| p.tasks[0].steps[1].targets[0].tensor = 1),
        ("scales nowhere", |p| p.tasks[0].steps[0].targets[0].scale = None),
        ("scales of a copy", |p| p.tasks[0].steps[1].targets[0].scale = Some(1)),
        ("scales into a weight", |p| p.tasks[0].steps[0].targets[0].scale = Some(0)),
        ("scales of the wrong dtype", |p| {
            output(
                p,
                "l.safetensors",
                vec![
                    entry("w", F8E4M3, &[256, 256]),
                    entry("s", BF16, &[2, 2]),
                    entry("n", BF16, &[384]),
                ],
            );
        }),
        ("scales of the wrong size", |p| {
            output(
                p,
                "l.safetensors",
                vec![
                    entry("w", F8E4M3, &[256, 256]),
                    entry("s", F32, &[2, 3]),
                    entry("n", BF16, &[384]),
                ],
            );
        }),
        ("an output of the wrong dtype", |p| {
            output(
                p,
                "l.safetensors",
                vec![
                    entry("w", Dtype::I8, &[256, 256]),
                    entry("s", F32, &[2, 2]),
                    entry("n", BF16, &[384]),
                ],
            );
        }),
        ("an output too large", |p| {
            output(
                p,
                "l.safetensors",
                vec![
                    entry("w", F8E4M3, &[256, 384]),
                    entry("s", F32, &[2, 2]),
                    entry("n", BF16, &[384]),
                ],
            );
        }),
        ("an output nobody fills", |p| {
            let mut tensors = layout(256);
            tensors.push(entry("x", BF16, &[1]));
            output(p, "l.safetensors", tensors);
        }),
        ("a name twice", |p| {
            output(
                p,
                "l.safetensors",
                vec![
                    entry("w", F8E4M3, &[256, 256]),
                    entry("w", F32, &[2, 2]),
                    entry("n", BF16, &[384]),
                ],
            );
        }),
        ("a shape of the wrong size", |p| {
            p.tasks[0].outputs[0].tensors[0].shape = [256, 200].into();
        }),
        ("a wrong file size", |p| p.tasks[0].outputs[0].size += 1),
        ("a wrong data start", |p| p.tasks[0].outputs[0].data_start += 1),
        ("a float read as another", |p| {
            p.tasks[0].steps[0].op = Op::Encode { float: Float::F16, encoding: deepseek() };
        }),
        ("a decode of BF16", |p| {
            let grid = deepseek().grid;
            let scale_dtype = lingconv_core::numeric::ScaleDtype::F32;
            p.tasks[0].steps[0].op = Op::Decode { grid, scale: 0, scale_dtype };
        }),
    ]
}

#[test]
fn a_sound_plan_holds_and_every_mutation_is_found() {
    let (_bench, catalog) = source();
    check::check(&catalog, &sound(&catalog)).unwrap();
    for (name, mutate) in mutations() {
        let mut plan = sound(&catalog);
        mutate(&mut plan);
        let error = check::check(&catalog, &plan).expect_err(name);
        let kinds = [Kind::Internal, Kind::Invalid];
        assert!(kinds.contains(&error.kind), "{name}: {error}");
    }
}

#[test]
fn paths_that_lingconv_needs_or_others_confuse_are_refused() {
    let (_bench, catalog) = source();
    let refused = |data: Option<&str>, small: &[&str]| {
        let mut plan = sound(&catalog);
        if let Some(path) = data {
            plan.tasks[0].outputs[0].path = path.into();
        }
        let sidecar = |path: &&str| {
            let content = SidecarContent::Bytes(Vec::new());
            Sidecar { path: (*path).into(), size: 0, sha256: String::new(), content }
        };
        plan.sidecars.extend(small.iter().map(sidecar));
        let error = check::check(&catalog, &plan).err();
        error.map(|e| {
            assert!(matches!(e.kind, Kind::Invalid | Kind::Impossible), "{e}");
            assert!(e.hint.is_some(), "{e}");
        })
    };
    let long = format!("{}.safetensors", "x".repeat(239));
    let fits = format!("{}.safetensors", "x".repeat(238));
    for name in [
        ".lingconv/a.safetensors",
        "a/.hidden/b.safetensors",
        "SHA256SUMS",
        "sha256sums",
        "SHA256SUMS.",
        "pp0/SHA256SUMS",
        "lingconv.manifest.json",
        "lingconv.manifest.json .",
        "lingconv.mani\u{200c}fest.json",
        "config.json ",
        "a.safetensors.part. ",
        "config.json",
        "Tokenizer.JSON",
        "a.safetensors.part",
        "a.part/b.safetensors",
        "r.safetensors",
        "R.safetensors",
        "r.safetensors.",
        "r.safetensors/b.safetensors",
        "../a.safetensors",
        &long,
    ] {
        assert!(refused(Some(name), &[]).is_some(), "{name}");
    }
    for name in [&*fits, "folder/l.safetensors", "l.safetensors."] {
        assert!(refused(Some(name), &[]).is_none(), "{name}");
    }
    assert!(refused(None, &["config.json", "README.md", "pp0/config.json"]).is_none());
    for pair in [
        ["README.md", "readme.md"],
        ["é.txt", "e\u{301}.txt"],
        ["a.txt", "a.txt/b.txt"],
        ["a.txt", "a.txt "],
    ] {
        assert!(refused(None, &pair).is_some(), "{pair:?}");
    }
    for name in ["SHA256SUMS", "Lingconv.Manifest.json", "config.json.part", ".x/a.json"] {
        assert!(refused(None, &[name]).is_some(), "{name}");
    }
}
