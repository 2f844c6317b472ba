use super::*;
use crate::dtype::Dtype;
use crate::target::select::BUILTIN;
use serde_json::json;

#[test]
fn built_in_targets_parse() {
    assert_eq!(Target::builtins().count(), BUILTIN.len());
}

#[test]
fn roles_are_renamed_and_the_rest_keeps_its_name() {
    let target = Target::builtin("vllm-0.32").unwrap();
    let rules = target.rules("BailingMoeV2ForCausalLM").unwrap();
    let config = json!({ "router_dtype": "fp32" });
    let up = "model.layers.7.mlp.experts.3.up_proj.weight_scale_inv";
    let place = rules.place(Role::ExpertUp, up, Some(7), &config);
    assert_eq!(place.name, "model.layers.7.mlp.experts.routed_experts.w13_weight_scale_inv");
    assert_eq!((place.position, place.stack, place.dtype), (1, true, None));
    let gate = "model.layers.7.mlp.gate.weight";
    let place = rules.place(Role::RouterWeight, gate, Some(7), &config);
    assert_eq!((place.name.as_str(), place.dtype), (gate, Some(Dtype::F32)));
    let place = rules.place(Role::RouterWeight, gate, Some(7), &json!({}));
    assert_eq!(place.dtype, None);
}

#[test]
fn launch_lines_name_the_layers_of_odd_stages() {
    let target = Target::builtin("vllm-0.32").unwrap();
    let split = Split { tp: 8, pp: 2, ep: 8, partition: Some(&[41, 39]), written: &[0, 1] };
    let [line] = &target.launch(&split)[..] else { panic!("one line") };
    assert!(line.starts_with("VLLM_PP_LAYER_PARTITION=41,39 vllm serve {out} "), "{line}");
    assert!(line.contains("--pipeline-parallel-size 2 --enable-expert-parallel "), "{line}");
    assert!(!target.launch(&Split { ep: 1, ..split })[0].contains("expert"));
}

#[test]
fn stage_folders_have_lines_of_their_own() {
    let split = Split { tp: 8, pp: 2, ep: 1, partition: None, written: &[0, 1] };
    let lines = |name| Target::builtin(name).unwrap().launch(&split);
    for name in ["vllm-0.11", "hf"] {
        let lines = lines(name);
        assert!(lines[1].starts_with("rsync -aL {out}/pp1/ NODE1:/"), "{lines:?}");
        assert!(lines[2].starts_with("vllm serve /"), "{lines:?}");
    }
    let sglang = lines("sglang");
    assert_eq!(sglang.len(), 2);
    assert!(sglang[1].contains("{out}/pp1 ") && sglang[1].contains("--node-rank 1"), "{sglang:?}");
    let only = Split { written: &[1], ..split };
    assert_eq!(Target::builtin("sglang").unwrap().launch(&only), sglang[1..]);
    let one = Split { pp: 1, written: &[0], ..split };
    assert!(Target::builtin("sglang").unwrap().launch(&one)[0].contains("--model-path {out} "));
}

#[test]
fn files_of_ranks_are_told_by_their_names() {
    let of = |target: &str, tp, pp, staged: bool, path: &str| {
        let layout = Target::builtin(target).unwrap().layout;
        layout.paths_of(&RankOnly { tp, pp }, staged).unwrap().is_match(path)
    };
    let path = "model-pp-1-tp-12-part-0.safetensors";
    assert!(of("vllm-0.32", None, Some(1), true, path));
    assert!(of("vllm-0.32", Some(12), Some(1), true, path));
    assert!(!of("vllm-0.32", Some(1), None, true, path));
    assert!(!of("vllm-0.32", Some(2), None, true, path));
    assert!(!of("vllm-0.32", None, Some(0), true, path));
    assert!(of("vllm-0.32", Some(1), Some(0), false, "model-rank-1-part-7.safetensors"));
    assert!(of("hf", Some(3), Some(1), true, "pp1/model-00001-of-00002.safetensors"));
    assert!(!of("hf", None, Some(1), true, "pp11/model.safetensors"));
}

#[test]
fn mistakes_in_target_files_are_named() {
    let good = BUILTIN[0];
    for (from, to) in [
        ("versions = [\"0.32.0\"", "versions = [\"new\""),
        ("{part}", "{tp}"),
        ("vocab_multiple = 64", "vocab_multiple = 0"),
        ("dtype = \"F32\"", "dtype = \"F64\""),
        ("roles = [\"shared.down\"]", "roles = []"),
        ("remainder", "rest"),
    ] {
        let error = Target::parse(&good.replace(from, to)).unwrap_err();
        assert_eq!(error.kind.exit_code(), 2, "{from}: {error}");
    }
}
