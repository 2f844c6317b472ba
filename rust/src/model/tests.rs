use serde_json::{Value, json};

use super::LayerKind::{Dense, Moe};
use super::*;
use crate::error::Kind;

/// The config of a preset, with `edits` applied (null removes a key).
fn config(preset: &str, edits: &Value) -> Value {
    #[derive(serde::Deserialize)]
    struct Preset {
        config: Value,
    }
    let mut config = toml::from_str::<Preset>(preset).unwrap().config;
    for (key, value) in edits.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

const LING_1T: &str = include_str!("../../data/presets/ling-1t.toml");
const FLASH: &str = include_str!("../../data/presets/ling-flash-2.0.toml");
const MINI: &str = include_str!("../../data/presets/ling-mini-2.0.toml");

fn bind(config: &Value) -> Model {
    Architecture::builtin_for(config).unwrap().model(config).unwrap()
}

fn parameters(model: &Model) -> u64 {
    model.expected().map(|t| t.shape.iter().product::<u64>()).sum()
}

/// Checks that every expected name leads back to its rule, layer, expert and shape.
fn assert_round_trip(model: &Model) {
    let mut count = 0;
    for t in model.expected() {
        let placed = model.role_of(&t.name).unwrap();
        assert_eq!(placed.rule.role, t.rule.role, "{}", t.name);
        assert_eq!((placed.layer, placed.expert), (t.layer, t.expert), "{}", t.name);
        assert_eq!(placed.shape, Some(t.shape), "{}", t.name);
        count += 1;
    }
    assert_eq!(count, model.expected_count());
}

fn deepseek_v3() -> Value {
    json!({"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168,
        "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "vocab_size": 129_280})
}

fn qwen3_30b() -> Value {
    json!({"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "vocab_size": 151_936, "tie_word_embeddings": false})
}

#[test]
fn builtin_files_parse() {
    let names = Architecture::builtin_names();
    assert_eq!(names, ["BailingMoeV2ForCausalLM", "DeepseekV3ForCausalLM", "Qwen3MoeForCausalLM"]);
}

#[test]
fn ling_1t_is_complete() {
    let model = bind(&config(LING_1T, &json!({})));
    assert_eq!(model.expected_count(), 59_243);
    assert_eq!(parameters(&model), 999_705_328_640);
    let bytes: u64 = model.expected().map(|t| t.rule.dtype.byte_len(t.shape).unwrap()).sum();
    assert_eq!(bytes, 1_999_410_696_192);
    assert_round_trip(&model);
    assert_eq!((model.layers(), model.dense_layers(), model.moe_layers()), (80, 4, 76));
    assert_eq!((model.experts(), model.mtp_layers()), (256, 0));
    assert_eq!(model.dim("shared_intermediate"), Some(2048));
}

#[test]
fn ling_1t_in_fp8() {
    let model = bind(&config(LING_1T, &json!({})));
    let (mut tensors, mut bytes) = (0, 0);
    for t in model.expected() {
        let (count, size) = if t.rule.quantize {
            let blocks: u64 = t.shape.iter().map(|d| d.div_ceil(128)).product();
            (2, t.shape.iter().product::<u64>() + 4 * blocks)
        } else {
            (1, t.rule.dtype.byte_len(t.shape).unwrap())
        };
        (tensors, bytes) = (tensors + count, bytes + size);
    }
    assert_eq!((tensors, bytes), (118_011, 1_002_684_813_312));
}

#[test]
fn siblings_and_their_mtp_layers() {
    for (preset, plain, with_mtp) in [(MINI, 16_256, 17_084), (FLASH, 102_890, 106_196)] {
        let model = bind(&config(preset, &json!({})));
        assert_eq!((parameters(&model) + 500_000) / 1_000_000, plain);
        let model = bind(&config(preset, &json!({"num_nextn_predict_layers": 1})));
        assert_eq!((parameters(&model) + 500_000) / 1_000_000, with_mtp);
        assert_eq!(model.mtp_layers(), 1);
        assert_round_trip(&model);
    }
}

#[test]
fn deepseek_v3_matches_the_published_size() {
    let model = bind(&deepseek_v3());
    assert_round_trip(&model);
    let main: u64 = model
        .expected()
        .filter(|t| t.layer.is_none_or(|l| l < 61))
        .map(|t| t.shape.iter().product::<u64>())
        .sum();
    assert_eq!(main, 671_026_419_200);
    assert_eq!(parameters(&model), 684_489_845_504);
    let placed = model.role_of("model.layers.61.shared_head.head.weight").unwrap();
    assert_eq!((placed.rule.role, placed.rule.optional), (Role::MtpHead, true));
    assert!(model.role_of("model.layers.60.eh_proj.weight").is_none());
    assert!(!model.role_of("model.layers.61.eh_proj.weight").unwrap().rule.quantize);
}

#[test]
fn deepseek_v3_without_query_compression() {
    let mut config = deepseek_v3();
    config["q_lora_rank"] = Value::Null;
    let model = bind(&config);
    assert!(model.expected().any(|t| t.rule.role == Role::AttentionQ));
    assert!(model.expected().all(|t| t.rule.role != Role::AttentionQA));
}

#[test]
fn qwen3_moe_layer_rule_and_tied_head() {
    let model = bind(&qwen3_30b());
    assert_round_trip(&model);
    assert_eq!(parameters(&model), 30_532_122_624);
    let mut config = qwen3_30b();
    config["mlp_only_layers"] = json!([5]);
    config["decoder_sparse_step"] = json!(2);
    config["tie_word_embeddings"] = json!(true);
    let model = bind(&config);
    let kinds: Vec<_> = (0..6).filter_map(|l| model.layer_kind(l)).collect();
    assert_eq!(kinds, [Dense, Moe, Dense, Moe, Dense, Dense]);
    assert!(model.expected().all(|t| t.rule.role != Role::Head));
    assert_eq!(model.role_of("lm_head.weight").unwrap().rule.role, Role::Head);
}

#[test]
fn names_in_the_wrong_place_have_no_role() {
    let model = bind(&config(LING_1T, &json!({})));
    for name in [
        "model.layers.3.mlp.experts.0.up_proj.weight",
        "model.layers.4.mlp.up_proj.weight",
        "model.layers.4.mlp.experts.256.up_proj.weight",
        "model.layers.80.input_layernorm.weight",
        "model.layers.04.input_layernorm.weight",
        "model.layers.+4.input_layernorm.weight",
        "model.layers.99999999999.input_layernorm.weight",
        "model.layers..input_layernorm.weight",
        "model.layers.4.mlp.experts.gate_up_proj",
        "model.layers.4.mlp.experts..up_proj.weight",
        "",
    ] {
        assert!(model.role_of(name).is_none(), "{name}");
    }
}

#[test]
fn order_keeps_an_expert_together() {
    let model = bind(&config(LING_1T, &json!({})));
    let names: Vec<String> = model.expected().map(|t| t.name).collect();
    assert_eq!(names[0], "model.word_embeddings.weight");
    assert_eq!(names[names.len() - 1], "lm_head.weight");
    let first = names.iter().position(|n| n.contains("experts.0.gate_proj")).unwrap();
    assert_eq!(names[first + 3], "model.layers.4.mlp.experts.1.gate_proj.weight");
}

#[test]
fn all_names_in_well_under_50_ms() {
    let model = bind(&config(LING_1T, &json!({})));
    let names: Vec<String> = model.expected().map(|t| t.name).collect();
    let start = std::time::Instant::now();
    assert!(names.iter().all(|n| model.role_of(n).is_some()));
    let elapsed = start.elapsed();
    println!("{elapsed:?} for {} names", names.len());
    assert!(elapsed.as_millis() < 500, "{elapsed:?}");
}

#[test]
fn hostile_configs_are_errors() {
    for edits in [
        json!({"num_hidden_layers": -1}),
        json!({"num_hidden_layers": null}),
        json!({"num_hidden_layers": "80"}),
        json!({"num_hidden_layers": 80.5}),
        json!({"num_experts": [256]}),
        json!({"num_experts": null}),
        json!({"hidden_size": 0}),
        json!({"hidden_size": u64::MAX}),
        json!({"hidden_size": null}),
        json!({"num_attention_heads": u64::MAX / 2}),
        json!({"head_dim": null, "num_attention_heads": 3}),
        json!({"head_dim": null, "num_attention_heads": 0}),
        json!({"first_k_dense_replace": {"a": 1}}),
        json!({"tie_word_embeddings": "no"}),
    ] {
        let config = config(LING_1T, &edits);
        let architecture = Architecture::builtin_for(&config).unwrap();
        let error = architecture.model(&config).unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{edits}: {error}");
    }
    for edits in [
        json!({"num_hidden_layers": 10_001}),
        json!({"num_hidden_layers": u64::MAX, "num_nextn_predict_layers": u64::MAX}),
        json!({"num_nextn_predict_layers": 10_000}),
        json!({"num_experts": 65_537}),
        json!({"num_experts": 65_536, "num_hidden_layers": 9_000}),
    ] {
        let config = config(LING_1T, &edits);
        let error = Architecture::builtin_for(&config).unwrap().model(&config).unwrap_err();
        assert_eq!(error.kind, Kind::Impossible, "{edits}: {error}");
    }
    for config in
        [json!(null), json!([]), json!({"architectures": 3}), json!({"architectures": [3]})]
    {
        assert!(Architecture::builtin_for(&config).is_none());
    }
    let mut qwen = qwen3_30b();
    qwen["mlp_only_layers"] = json!([1, "x"]);
    assert!(Architecture::builtin_for(&qwen).unwrap().model(&qwen).is_err());
    qwen["mlp_only_layers"] = json!([]);
    qwen["decoder_sparse_step"] = json!(0);
    assert!(Architecture::builtin_for(&qwen).unwrap().model(&qwen).is_err());
    let architecture = Architecture::builtin_for(&qwen3_30b()).unwrap();
    assert!(architecture.model(&json!(null)).is_err());
}

const SMALL: &str = r#"
name = "X"
architectures = ["X"]
[dims]
layers = ["n"]
hidden = ["h"]
experts = ["e"]
[[tensor]]
name = "a.{layer}.b.{expert}.c"
role = "expert.up"
where = "moe"
tp = "row"
shape = ["hidden", "hidden"]
"#;

#[test]
fn user_file_is_accepted() {
    let architecture = Architecture::parse(SMALL).unwrap();
    let model = architecture.model(&json!({"n": 2, "h": 4, "e": 3})).unwrap();
    assert_eq!(model.expected_count(), 6);
    assert_round_trip(&model);
}

#[test]
fn mistakes_in_a_file_are_usage_errors() {
    for (from, to) in [
        ("name = \"X\"", "name = \"\""),
        ("name = \"X\"", "nome = \"X\""),
        ("name = \"X\"", "name = \"X\"\nextra = 1"),
        ("architectures = [\"X\"]", "architectures = []"),
        ("layers = [\"n\"]", "layers = []"),
        ("layers = [\"n\"]", "lairs = [\"n\"]"),
        ("layers = [\"n\"]", "layers = [-1]"),
        ("layers = [\"n\"]", "layers = [1.5]"),
        ("layers = [\"n\"]", "layers = [\"n +\"]"),
        ("layers = [\"n\"]", "layers = [\"(n\"]"),
        ("layers = [\"n\"]", "layers = [\"n - 1\"]"),
        ("layers = [\"n\"]", "layers = [\"99999999999999999999\"]"),
        ("layers = [\"n\"]", "layers = [\"n\"]\nlayers = [\"m\"]"),
        ("experts = [\"e\"]", ""),
        ("a.{layer}.b.{expert}.c", "a.{layer}.b.c{expert}"),
        ("a.{layer}.b.{expert}.c", "a.{expert}.b.{layer}.c"),
        ("a.{layer}.b.{expert}.c", "a.{layer}.b.{layer}.c"),
        ("a.{layer}.b.{expert}.c", "a.b.{expert}.c"),
        ("a.{layer}.b.{expert}.c", "a.{head}.b"),
        ("a.{layer}.b.{expert}.c", ""),
        ("a.{layer}.b.{expert}.c", "a.b"),
        ("where = \"moe\"", ""),
        ("where = \"moe\"", "where = \"sometimes\""),
        ("expert.up", "expert.sideways"),
        ("tp = \"row\"", "tp = \"diagonal\""),
        ("tp = \"row\"", "tp = \"col\"\nquantize = 1"),
        ("shape = [\"hidden\", \"hidden\"]", "shape = [\"hidden\", \"height\"]"),
        ("shape = [\"hidden\", \"hidden\"]", "shape = []"),
        ("shape = [\"hidden\", \"hidden\"]", "shape = [1, 1, 1, 1, 1, 1, 1, 1, 1]"),
        ("shape = [\"hidden\", \"hidden\"]", "shape = [\"hidden\"]\nquantize = true"),
        ("[dims]", "[layers]\nmoe_offset = -1\n[dims]"),
        ("[dims]", "[layers]\nunknown = 1\n[dims]"),
    ] {
        assert!(SMALL.contains(from), "{from}");
        let error = Architecture::parse(&SMALL.replace(from, to)).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{to}: {error}");
    }
    let twice = format!("{SMALL}{}", &SMALL[SMALL.find("[[tensor]]").unwrap()..]);
    assert_eq!(Architecture::parse(&twice).unwrap_err().kind, Kind::Usage);
    let deep = format!("layers = [\"{}n{}\"]", "(".repeat(100), ")".repeat(100));
    assert!(Architecture::parse(&SMALL.replace("layers = [\"n\"]", &deep)).is_err());
}
