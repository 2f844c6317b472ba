//! What the embedded dialects say, and what files are refused.
#![allow(clippy::unwrap_used)]

use super::*;

fn rule(name: &str, role: Option<&str>, scale: ScaleKind) -> ScaleRule {
    Dialect::builtin(name).unwrap().encoding(role, scale, Arith::Ieee).unwrap().rule
}

#[test]
fn every_builtin_parses_under_its_own_name() {
    for (name, text) in BUILTIN {
        let dialect = Dialect::parse(text).unwrap();
        assert_eq!(dialect.name(), name);
        assert!(!dialect.description().is_empty());
    }
    assert_eq!(Dialect::names().count(), 5);
    assert!(Dialect::builtin("nvfp4").is_none());
}

#[test]
fn rules_are_those_of_the_table() {
    let deepseek = rule("deepseek", Some("expert.gate"), ScaleKind::F32);
    assert_eq!(deepseek.floor.unwrap().to_bits(), 0x2B8D_0000);
    assert_eq!(deepseek.power_of_two, None);
    let ue8m0 = rule("deepseek", None, ScaleKind::Ue8m0);
    assert_eq!((ue8m0.floor, ue8m0.power_of_two), (Some(1e-4), Some(PowerOfTwo::Ue8m0)));
    for (role, expected) in [
        (Some("attention.dense"), Some(PowerOfTwo::ExponentBits)),
        (Some("expert.gate"), Some(PowerOfTwo::ExponentBits)),
        (Some("expert.up"), Some(PowerOfTwo::ExponentBits)),
        (Some("expert.down"), None),
        (None, None),
    ] {
        let ling = rule("ling", role, ScaleKind::F32);
        assert_eq!((ling.power_of_two, ling.floor), (expected, Some(1e-4)));
    }
    for name in ["compressed-tensors", "compressed-tensors-channel", "compressed-tensors-cpu"] {
        let rule = rule(name, None, ScaleKind::F32);
        assert_eq!(
            (rule.floor, rule.zero, rule.stored),
            (None, Some(0.007_812_5), StoredScale::Bf16)
        );
    }
}

#[test]
fn spelling_is_that_of_the_formats() {
    let spelled = |name| {
        let dialect = Dialect::builtin(name).unwrap();
        (
            dialect.scale_name("a.weight"),
            dialect.skip_list().to_owned(),
            dialect.config_family(),
            dialect.grid(),
        )
    };
    let block = Grid::Block { rows: 128, cols: 128 };
    let fp8 = (
        "a.weight_scale_inv".to_owned(),
        "modules_to_not_convert".to_owned(),
        ConfigFamily::Fp8,
        block,
    );
    assert_eq!(spelled("deepseek"), fp8);
    assert_eq!(spelled("ling"), fp8);
    let family = ConfigFamily::CompressedTensors;
    let compressed = |grid| ("a.weight_scale".to_owned(), "ignore".to_owned(), family, grid);
    assert_eq!(spelled("compressed-tensors"), compressed(block));
    assert_eq!(spelled("compressed-tensors-cpu"), compressed(block));
    assert_eq!(spelled("compressed-tensors-channel"), compressed(Grid::Channel));
}

#[test]
fn what_a_dialect_lacks_is_refused() {
    for name in Dialect::names() {
        let dialect = Dialect::builtin(name).unwrap();
        let ue8m0 = dialect.encoding(None, ScaleKind::Ue8m0, Arith::Ieee);
        assert_eq!(ue8m0.is_ok(), name == "deepseek", "{name}");
        assert_eq!(dialect.scale_fmt(ScaleKind::Ue8m0).is_some(), name == "deepseek", "{name}");
        let cuda = dialect.encoding(None, ScaleKind::F32, Arith::Cuda);
        assert_eq!(cuda.is_ok(), ["deepseek", "ling"].contains(&name), "{name}");
    }
}

#[test]
fn malformed_files_are_refused() {
    let good = BUILTIN[0].1;
    for (from, to) in [
        ("name = \"deepseek\"", "name = \"Deep Seek\""),
        ("quotient = \"f32\"", "quotient = \"f16\""),
        ("quotient = \"f32\"", "quotient = \"f32\"\nextra = 1"),
        ("[128, 128]", "[0, 128]"),
        ("[128, 128]", "[128, 100000]"),
        ("block = [128, 128]", ""),
        ("\"block\"", "\"channel\""),
        ("\"_scale_inv\"", "\"scale inv\""),
        ("\"F32\"", "\"F16\""),
        ("\"0x2B8D0000\"", "\"2B8D\""),
        ("\"0x2B8D0000\"", "\"0x7F800000\""),
        ("\"0x2B8D0000\"", "\"0x00000001\""),
        ("\"0x2B8D0000\"", "-1.0"),
        ("floor = \"0x2B8D0000\"", ""),
        ("[\"f32\", \"ue8m0\"]", "[\"f32\"]"),
        ("[\"f32\", \"ue8m0\"]", "[\"ue8m0\"]"),
        ("[\"ieee\", \"cuda\"]", "[]"),
        ("family = \"fp8\"", "family = \"int8\""),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(Dialect::parse(&good.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}
