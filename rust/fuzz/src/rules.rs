//! What users write: `architecture.toml`, `target.toml` and `dialect.toml` of a folder (see
//! [`crate::folder`]), asked about its `config.json`.
//!
//! Every tensor that a model expects is one that it knows again by its name.

use lingconv_core::dialect::{Dialect, ScaleKind};
use lingconv_core::io::root::check_name;
use lingconv_core::model::parallel::RankOnly;
use lingconv_core::model::{Architecture, Model, Role};
use lingconv_core::numeric::Arith;
use lingconv_core::target::{Split, Target};
use serde_json::Value;

use crate::{folder, sound};

/// Most tensors of a model that are looked at; there may be millions.
const MAX_TENSORS: usize = 300;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    let files = folder::files(data);
    let config = folder::text(&files, "config.json");
    let config: Value = config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if let Some(text) = folder::text(&files, "architecture.toml")
        && let Some(architecture) = sound(Architecture::parse(text))
        && let Some(model) = sound(architecture.model(&config))
    {
        check_model(&model);
    }
    if let Some(text) = folder::text(&files, "target.toml")
        && let Some(target) = sound(Target::parse(text))
    {
        check_target(&target, &config);
    }
    if let Some(text) = folder::text(&files, "dialect.toml")
        && let Ok(dialect) = Dialect::parse(text)
    {
        check_dialect(&dialect);
    }
}

fn check_model(model: &Model) {
    for expected in model.expected().take(MAX_TENSORS) {
        let Some(placed) = model.role_of(&expected.name) else {
            panic!("{} is expected and has no role", expected.name)
        };
        assert_eq!(placed.rule.role, expected.rule.role, "{}", expected.name);
        assert_eq!(placed.shape, Some(expected.shape), "{}", expected.name);
        assert!(placed.layer.is_none_or(|layer| model.layer_kind(layer).is_some()));
        assert!(placed.expert.is_none_or(|expert| expert < model.experts()));
    }
    model.rules().take(MAX_TENSORS).for_each(|rule| {
        model.layers_text(rule);
    });
    model.expected_count();
}

fn check_target(target: &Target, config: &Value) {
    let layout = &target.layout;
    for stage in [None, Some(0), Some(u32::MAX)] {
        let path = layout.path(stage, 3, 7);
        let ranks = RankOnly { tp: Some(3), pp: stage };
        let own = sound(layout.paths_of(&ranks, stage.is_some()));
        // A name that cannot be one is refused when a plan is made.
        let named = check_name(&path).is_ok() && path.contains('3');
        assert!(own.is_none_or(|own| !named || own.is_match(&path)), "{path:?}");
        layout.shard_path(stage.map(|s| s as usize), Some(1), "folder/model.safetensors");
    }
    let layers = [1, 2];
    for pp in [1, 2] {
        let split = Split { tp: 2, pp, ep: 2, partition: Some(&layers), written: &[0] };
        assert!(!target.launch(&split).is_empty());
    }
    let names: Vec<&str> = target.architectures().collect();
    for rules in names.iter().filter_map(|name| target.rules(name)) {
        for role in Role::ALL {
            rules.place(*role, "model.layers.1.mlp.up_proj.weight", Some(1), config);
        }
        rules.computes("model.layers.1.mlp.up_proj.weight");
        rules.expert_map(1);
        rules.constant.iter().for_each(|constant| {
            constant.name(1);
        });
    }
}

fn check_dialect(dialect: &Dialect) {
    for kind in [ScaleKind::F32, ScaleKind::Ue8m0] {
        for arith in [Arith::Ieee, Arith::Cuda] {
            let asked = dialect.scale_kinds().contains(&kind) && dialect.ariths().contains(&arith);
            let encoding = dialect.encoding(Some("expert.up"), kind, arith);
            assert_eq!(encoding.is_ok(), asked);
            if let Ok(encoding) = encoding {
                check_scales(&encoding.rule);
            }
        }
    }
}

/// Whatever the largest magnitude, its scale is a number that a weight can be divided by.
fn check_scales(rule: &lingconv_core::numeric::ScaleRule) {
    for amax in [0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1.0, 448.0, f32::MAX] {
        let scale = rule.scale(amax);
        assert!(scale > 0.0 && scale.is_finite(), "{rule:?} makes {scale} of {amax}");
    }
}
