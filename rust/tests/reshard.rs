//! Random layouts of random models: every rank file equals what a plain cut of the whole tensors
//! gives, undoing gives the original files, and cutting a cut folder again is cutting the original.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Bench, bf16_bytes, options, run, tensors, write_shard};
use lingconv_core::catalog::Catalog;
use lingconv_core::dtype::Dtype::{self, BF16, F32};
use lingconv_core::plan::{self, Request, original};
use lingconv_core::target::Target;
use proptest::prelude::*;
use serde_json::json;

/// A Bailing V2 model, small enough to cut it a thousand times.
#[derive(Debug, Clone)]
struct Model {
    layers: u64,
    dense: u64,
    hidden: u64,
    heads: u64,
    kv: u64,
    dim: u64,
    dense_inter: u64,
    moe_inter: u64,
    experts: u64,
    vocab: u64,
    shards: usize,
    seed: u64,
}

#[derive(Debug, Clone)]
struct Layout {
    tp: u64,
    pp: u64,
    ep: u64,
    part: u64,
}

type Whole = BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>;

fn model() -> impl Strategy<Value = (Model, Layout, Layout)> {
    let sizes = (1u64..=4, 0u64..=2, 1u64..=3, 0u32..=2, 1u64..=2, 1u64..=2);
    let rest = (1u64..=3, 3u64..=9, 1usize..=4, any::<u64>(), layout(), layout());
    (sizes, rest).prop_map(
        |((layers, dense, hidden, kv, dim, inter), (shared, experts, shards, seed, a, b))| {
            let kv = 1u64 << kv;
            let model = Model {
                layers,
                dense: dense.min(layers),
                hidden: hidden * 16,
                heads: 8,
                kv,
                dim: dim * 2,
                dense_inter: inter * 16,
                moe_inter: shared * 1024,
                experts,
                vocab: 50 + seed % 30,
                shards,
                seed,
            };
            let fit = |l: Layout| Layout { pp: l.pp.min(layers), ..l };
            (model, fit(a), fit(b))
        },
    )
}

fn layout() -> impl Strategy<Value = Layout> {
    (0u32..=3, 1u64..=3, any::<bool>(), 1u64..200_000).prop_map(|(tp, pp, expert, part)| {
        let tp = 1u64 << tp;
        Layout { tp, pp, ep: if expert && tp <= 2 { tp } else { 1 }, part }
    })
}

impl Model {
    fn config(&self) -> serde_json::Value {
        json!({
            "architectures": ["BailingMoeV2ForCausalLM"], "num_hidden_layers": self.layers,
            "hidden_size": self.hidden, "vocab_size": self.vocab,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv,
            "head_dim": self.dim, "intermediate_size": self.dense_inter,
            "num_experts": self.experts, "num_experts_per_tok": 2, "num_shared_experts": 1,
            "moe_intermediate_size": self.moe_inter, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": self.dense, "use_qk_norm": true, "router_dtype": "fp32",
            "moe_router_enable_expert_bias": true, "tie_word_embeddings": false,
        })
    }

    fn tensors(&self) -> Whole {
        let mut whole = Whole::new();
        let mut add = |name: String, dtype: Dtype, shape: Vec<u64>| {
            let count: u64 = shape.iter().product();
            let seed = self.seed.wrapping_add(whole.len() as u64 * 7919);
            let mut data = bf16_bytes((count * dtype.bits() / 16) as usize, seed);
            data.truncate((count * dtype.bits() / 8) as usize);
            whole.insert(name, (dtype, shape, data));
        };
        let (h, q) = (self.hidden, self.heads * self.dim);
        add("model.word_embeddings.weight".into(), BF16, vec![self.vocab, h]);
        add("lm_head.weight".into(), BF16, vec![self.vocab, h]);
        add("model.norm.weight".into(), BF16, vec![h]);
        for layer in 0..self.layers {
            let at = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
            add(at("input_layernorm"), BF16, vec![h]);
            add(at("post_attention_layernorm"), BF16, vec![h]);
            let rows = (self.heads + 2 * self.kv) * self.dim;
            add(at("attention.query_key_value"), BF16, vec![rows, h]);
            add(at("attention.query_layernorm"), BF16, vec![self.dim]);
            add(at("attention.key_layernorm"), BF16, vec![self.dim]);
            add(at("attention.dense"), BF16, vec![h, q]);
            let mut block = |path: &str, inter: u64| {
                add(at(&format!("{path}.gate_proj")), BF16, vec![inter, h]);
                add(at(&format!("{path}.up_proj")), BF16, vec![inter, h]);
                add(at(&format!("{path}.down_proj")), BF16, vec![h, inter]);
            };
            if layer < self.dense {
                block("mlp", self.dense_inter);
                continue;
            }
            block("mlp.shared_experts", self.moe_inter);
            (0..self.experts).for_each(|e| block(&format!("mlp.experts.{e}"), self.moe_inter));
            add(at("mlp.gate"), BF16, vec![self.experts, h]);
            add(format!("model.layers.{layer}.mlp.gate.expert_bias"), F32, vec![self.experts]);
        }
        whole
    }

    fn write(&self, folder: &Path) -> Whole {
        let whole = self.tensors();
        std::fs::write(folder.join("config.json"), self.config().to_string()).unwrap();
        let mut map = serde_json::Map::new();
        for shard in 0..self.shards {
            let file = format!("model-{shard}.safetensors");
            let own: Vec<_> = whole
                .iter()
                .enumerate()
                .filter(|(i, _)| i % self.shards == shard)
                .map(|(_, (name, (dtype, shape, data)))| {
                    map.insert(name.clone(), file.clone().into());
                    (name.as_str(), *dtype, shape.as_slice(), data.clone())
                })
                .collect();
            write_shard(&folder.join(file), &own);
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        whole
    }

    /// A map of experts that the seed shuffles, and what the tensors are in that order.
    fn reordered(&self, whole: &Whole) -> (String, Whole) {
        let (mut rows, mut moved) = (Vec::new(), whole.clone());
        for layer in 0..self.layers {
            let mut order: Vec<u64> = (0..self.experts).collect();
            if layer >= self.dense {
                order.sort_by_key(|e| {
                    (e + 1).wrapping_mul(self.seed | 1) ^ (self.seed >> 7) ^ layer
                });
            }
            for (new, old) in order.iter().enumerate().filter(|_| layer >= self.dense) {
                for part in ["gate", "up", "down"] {
                    let of =
                        |e: u64| format!("model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight");
                    moved.insert(of(new as u64), whole[&of(*old)].clone());
                }
                for (name, width) in [("weight", self.hidden as usize * 2), ("expert_bias", 4)] {
                    let name = format!("model.layers.{layer}.mlp.gate.{name}");
                    let row = &whole[&name].2[*old as usize * width..][..width];
                    let to = &mut moved.get_mut(&name).unwrap().2[new * width..][..width];
                    to.copy_from_slice(row);
                }
            }
            rows.push(order);
        }
        (json!({ "physical_to_logical_map": rows }).to_string(), moved)
    }

    /// What rank `rank` of `tp` holds of all layers, by vLLM's own rules on whole tensors.
    #[expect(clippy::too_many_lines, reason = "the engine's rules, to be read at one go")]
    fn rank(&self, whole: &Whole, layout: &Layout, rank: u64) -> BTreeMap<String, Vec<u8>> {
        let tp = layout.tp;
        let bytes = |name: &str| whole[name].2.as_slice();
        let width = |name: &str| whole[name].1.get(1).copied().unwrap_or(1) as usize * 2;
        let rows = |name: &str, from: u64, to: u64| {
            bytes(name)[from as usize * width(name)..to as usize * width(name)].to_vec()
        };
        let share = |name: &str| {
            let n = whole[name].1[0];
            rows(name, rank * n / tp, (rank + 1) * n / tp)
        };
        let columns = |name: &str| {
            let w = width(name) / tp as usize;
            let rows = bytes(name).chunks(width(name));
            rows.flat_map(|r| r[rank as usize * w..][..w].to_vec()).collect::<Vec<u8>>()
        };
        let mut held = BTreeMap::new();
        let padded = self.vocab.next_multiple_of(64);
        for name in ["model.word_embeddings.weight", "lm_head.weight"] {
            let mut all = bytes(name).to_vec();
            all.resize(padded as usize * width(name), 0);
            let part = all.len() / tp as usize;
            held.insert(name.to_owned(), all[rank as usize * part..][..part].to_vec());
        }
        held.insert("model.norm.weight".into(), bytes("model.norm.weight").to_vec());
        for layer in 0..self.layers {
            let at = |rest: &str| format!("model.layers.{layer}.{rest}");
            for norm in [
                "input_layernorm",
                "post_attention_layernorm",
                "attention.query_layernorm",
                "attention.key_layernorm",
            ] {
                let name = at(&format!("{norm}.weight"));
                held.insert(name.clone(), bytes(&name).to_vec());
            }
            let qkv = at("attention.query_key_value.weight");
            let each = (self.kv / tp).max(1);
            let first = if tp <= self.kv { rank * each } else { rank / (tp / self.kv) };
            let heads = [
                (rank * self.heads / tp, self.heads / tp),
                (self.heads + first, each),
                (self.heads + self.kv + first, each),
            ];
            let cut = heads.iter().flat_map(|(h, n)| rows(&qkv, h * self.dim, (h + n) * self.dim));
            held.insert(qkv.clone(), cut.collect());
            let dense = at("attention.dense.weight");
            held.insert(dense.clone(), columns(&dense));
            for scale in ["k", "v", "q", "prob"] {
                held.insert(
                    at(&format!("attention.attn._{scale}_scale")),
                    1f32.to_le_bytes().to_vec(),
                );
            }
            let mut block = |path: &str, to: &str| {
                let of = |part: &str| at(&format!("{path}.{part}_proj.weight"));
                held.insert(
                    at(&format!("{to}.gate_up_proj.weight")),
                    [share(&of("gate")), share(&of("up"))].concat(),
                );
                held.insert(at(&format!("{to}.down_proj.weight")), columns(&of("down")));
            };
            if layer < self.dense {
                block("mlp", "mlp");
                continue;
            }
            block("mlp.shared_experts", "mlp.experts._shared_experts._layer");
            let (mut w13, mut w2) = (Vec::new(), Vec::new());
            let (each, left) = (self.experts / layout.ep, self.experts % layout.ep);
            let start = rank * each + rank.min(left);
            let own = if layout.ep > 1 {
                start..start + each + u64::from(rank < left)
            } else {
                0..self.experts
            };
            for e in own {
                let of = |part: &str| at(&format!("mlp.experts.{e}.{part}_proj.weight"));
                if layout.ep > 1 {
                    w13.extend([bytes(&of("gate")), bytes(&of("up"))].concat());
                    w2.extend(bytes(&of("down")));
                } else {
                    w13.extend([share(&of("gate")), share(&of("up"))].concat());
                    w2.extend(columns(&of("down")));
                }
            }
            held.insert(at("mlp.experts.routed_experts.w13_weight"), w13);
            held.insert(at("mlp.experts.routed_experts.w2_weight"), w2);
            let gate = bytes(&at("mlp.gate.weight")).chunks(2).flat_map(|b| [0, 0, b[0], b[1]]);
            held.insert(at("mlp.gate.weight"), gate.collect());
            held.insert(
                at("mlp.experts.routed_experts.e_score_correction_bias"),
                bytes(&at("mlp.gate.expert_bias")).to_vec(),
            );
        }
        held
    }
}

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
