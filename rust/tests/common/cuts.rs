//! Random models and layouts, and what a plain cut of whole tensors gives to each rank.

use std::collections::BTreeMap;
use std::path::Path;

use lingconv_core::dtype::Dtype::{self, BF16, F32};
use proptest::prelude::*;
use serde_json::json;

use crate::common::{bf16_bytes, write_shard};

/// A Bailing V2 model, small enough to cut it a thousand times.
#[derive(Debug, Clone)]
pub struct Model {
    pub layers: u64,
    pub dense: u64,
    pub hidden: u64,
    pub heads: u64,
    pub kv: u64,
    pub dim: u64,
    pub dense_inter: u64,
    pub moe_inter: u64,
    pub experts: u64,
    pub vocab: u64,
    pub shards: usize,
    pub seed: u64,
}

#[derive(Debug, Clone)]
pub struct Layout {
    pub tp: u64,
    pub pp: u64,
    pub ep: u64,
    pub part: u64,
}

pub type Whole = BTreeMap<String, (Dtype, Vec<u64>, Vec<u8>)>;

pub fn model() -> impl Strategy<Value = (Model, Layout, Layout)> {
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
    pub fn config(&self) -> serde_json::Value {
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

    pub fn tensors(&self) -> Whole {
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

    pub fn write(&self, folder: &Path) -> Whole {
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
    pub fn reordered(&self, whole: &Whole) -> (String, Whole) {
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
    pub fn rank(&self, whole: &Whole, layout: &Layout, rank: u64) -> BTreeMap<String, Vec<u8>> {
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
