//! Random layouts of random models: every rank file equals what a plain cut of the whole tensors
//! gives, undoing gives the original files, and cutting a cut folder again is cutting the original.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;
#[path = "common/cuts.rs"]
mod cuts;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Bench, options, run, tensors};
use cuts::{Layout, model};
use lingconv_core::catalog::Catalog;
use lingconv_core::plan::{self, Request, original};
use lingconv_core::target::Target;
use proptest::prelude::*;
use serde_json::json;

fn reshard(source: &Path, layout: &Layout, target: &str, out: &Path) -> u64 {
    reorder(source, layout, target, None, out)
}

/// As [`reshard`], with a map of experts.
fn reorder(source: &Path, layout: &Layout, target: &str, map: Option<&str>, out: &Path) -> u64 {
    ask(source, layout, &json!({ "target": target, "experts": map }), out)
}

/// Cuts `source` as `more` says besides the layout; the bytes that were read.
fn ask(source: &Path, layout: &Layout, more: &serde_json::Value, out: &Path) -> u64 {
    let catalog: Catalog = original::open(source).unwrap();
    // A file that stays as it is would be linked, and nothing of it read.
    let link = if more["target"] == "hf" { "copy" } else { "auto" };
    let mut reshard = json!({
        "tp": layout.tp, "pp": layout.pp, "ep": layout.ep, "shard_size": layout.part, "link": link,
    });
    reshard.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let request = json!({ "verb": "reshard", "reshard": reshard });
    let plan = plan::build(&catalog, &Request::parse(&request.to_string()).unwrap()).unwrap();
    run(&catalog, &plan, &options(out.to_path_buf())).unwrap().1
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
    let names = names.map(|n| n.into_string().unwrap());
    let data = names.filter(|n| {
        let ending = Path::new(n).extension().and_then(|e| e.to_str());
        matches!(ending, Some("safetensors" | "json"))
    });
    data.filter(|n| !n.starts_with("lingconv"))
        .map(|n| (n.clone(), std::fs::read(folder.join(n)).unwrap()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: common::cases(24), ..ProptestConfig::default() })]

    #[test]
    fn every_rank_holds_its_part_and_the_whole_comes_back((model, first, second) in model()) {
        let bench = Bench::new();
        let whole = model.write(&bench.source());
        let cut = bench.output("cut");
        let read = reshard(&bench.source(), &first, "vllm-0.32", &cut);
        prop_assert_eq!(read, whole.values().map(|t| t.2.len() as u64).sum::<u64>());
        for rank in 0..first.tp {
            let mut held = BTreeMap::new();
            for name in files(&cut).keys().filter(|n| n.contains(&format!("rank-{rank}-")) || n.contains(&format!("tp-{rank}-"))) {
                held.extend(tensors(&cut.join(name)));
            }
            let expected = model.rank(&whole, &first, rank);
            prop_assert_eq!(held.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (name, bytes) in &expected {
                prop_assert!(held[name] == *bytes, "{} of rank {}", name, rank);
            }
        }
        let back = bench.output("back");
        reshard(&cut, &Layout { tp: 1, pp: 1, ep: 1, part: 1 }, "hf", &back);
        prop_assert!(files(&back) == files(&bench.source()), "undone");
        let (again, direct) = (bench.output("again"), bench.output("direct"));
        reshard(&cut, &second, "vllm-0.32", &again);
        reshard(&bench.source(), &second, "vllm-0.32", &direct);
        prop_assert!(files(&again) == files(&direct), "cut again");
    }

}

proptest! {
    #![proptest_config(ProptestConfig { cases: common::cases(8), ..ProptestConfig::default() })]

    #[test]
    fn experts_move_with_their_router_rows_and_come_back((model, first, second) in model()) {
        let bench = Bench::new();
        let whole = model.write(&bench.source());
        let (map, moved) = model.reordered(&whole);
        let (cut, named) = (bench.output("cut"), bench.output("named"));
        let read = reorder(&bench.source(), &first, "vllm-0.32", Some(&map), &cut);
        prop_assert_eq!(read, whole.values().map(|t| t.2.len() as u64).sum::<u64>());
        for rank in 0..first.tp {
            let mut held = BTreeMap::new();
            for name in files(&cut).keys().filter(|n| n.contains(&format!("rank-{rank}-")) || n.contains(&format!("tp-{rank}-"))) {
                held.extend(tensors(&cut.join(name)));
            }
            for (name, bytes) in &model.rank(&moved, &first, rank) {
                prop_assert!(held[name] == *bytes, "{} of rank {}", name, rank);
            }
        }
        let one = Layout { tp: 1, pp: 1, ep: 1, part: 1 };
        let read = reorder(&bench.source(), &one, "hf", Some(&map), &named);
        prop_assert_eq!(read, whole.values().map(|t| t.2.len() as u64).sum::<u64>());
        for name in files(&named).keys().filter(|n| n.ends_with("safetensors")) {
            for (name, bytes) in tensors(&named.join(name)) {
                prop_assert!(moved[&name].2 == bytes, "{} under its name", name);
            }
        }
        for (i, folder) in [&cut, &named].into_iter().enumerate() {
            let back = bench.output(&format!("back-{i}"));
            reshard(folder, &one, "hf", &back);
            prop_assert!(files(&back) == files(&bench.source()), "undone");
            let again = bench.output(&format!("again-{i}"));
            reshard(folder, &second, "vllm-0.32", &again);
            let direct = bench.output(&format!("direct-{i}"));
            reorder(&bench.source(), &second, "vllm-0.32", Some(&map), &direct);
            prop_assert!(files(&again) == files(&direct), "cut again in the same order");
        }
    }
}

/// Target vllm-0.32, were its engine to build these tensors on every stage.
fn on_every_stage(roles: &[&str]) -> String {
    let text = Target::builtin_text("vllm-0.32").unwrap();
    text.replacen("[layout]\n", &format!("[layout]\nevery_stage = {roles:?}\n"), 1)
}

const SHARED: [(&str, &str); 4] = [
    ("embedding", "model.word_embeddings.weight"),
    ("norm.final", "model.norm.weight"),
    ("head", "lm_head.weight"),
    ("attention.qkv", "attention.query_key_value.weight"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: common::cases(8), ..ProptestConfig::default() })]

    #[test]
    fn what_every_stage_has_is_read_once(
        (model, first, second) in model(),
        shared in proptest::sample::subsequence(&SHARED[..], 1..=SHARED.len()),
    ) {
        let bench = Bench::new();
        let whole = model.write(&bench.source());
        let roles: Vec<&str> = shared.iter().map(|(role, _)| *role).collect();
        let more = json!({ "target": "vllm-0.32", "target_file": on_every_stage(&roles) });
        let cut = bench.output("cut");
        let read = ask(&bench.source(), &first, &more, &cut);
        prop_assert_eq!(read, whole.values().map(|t| t.2.len() as u64).sum::<u64>());
        let held_by = |rank: u64, stage: u64| {
            let own = if first.pp > 1 {
                format!("model-pp-{stage}-tp-{rank}-")
            } else {
                format!("model-rank-{rank}-")
            };
            let names = files(&cut).into_keys().filter(move |name| name.starts_with(&own));
            names.flat_map(|name| tensors(&cut.join(name))).collect::<BTreeMap<_, _>>()
        };
        let is_shared = |name: &str| shared.iter().any(|(_, end)| name.ends_with(end));
        for rank in 0..first.tp {
            let expected = model.rank(&whole, &first, rank);
            let stages: Vec<_> = (0..first.pp).map(|stage| held_by(rank, stage)).collect();
            for (name, bytes) in &expected {
                let copies: Vec<_> = stages.iter().filter_map(|held| held.get(name)).collect();
                let wanted = if is_shared(name) { stages.len() } else { 1 };
                prop_assert_eq!(copies.len(), wanted, "{} of rank {}", name, rank);
                prop_assert!(copies.iter().all(|c| *c == bytes), "{} of rank {}", name, rank);
            }
            let mut all = stages.iter().flat_map(BTreeMap::keys);
            prop_assert!(all.all(|name| expected.contains_key(name)));
        }
        let back = bench.output("back");
        reshard(&cut, &Layout { tp: 1, pp: 1, ep: 1, part: 1 }, "hf", &back);
        prop_assert!(files(&back) == files(&bench.source()), "undone");
        let (again, direct) = (bench.output("again"), bench.output("direct"));
        ask(&cut, &second, &more, &again);
        ask(&bench.source(), &second, &more, &direct);
        prop_assert!(files(&again) == files(&direct), "cut again");
    }
}
