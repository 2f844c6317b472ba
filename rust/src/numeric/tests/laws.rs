//! What has to hold of encoded tensors: the laws of `prove`, round trips, the error report.

use proptest::prelude::*;

use super::super::{
    ErrorStats, Grid, Law, ScaleRule, Scratch, StoredScale, bf16_to_f32, decode, e4m3, load_scales,
    measure, prove, store_scales,
};
use super::*;

fn decoded(encoded: &Encoded, rows: usize, cols: usize, encoding: &Encoding) -> Vec<u8> {
    let mut out = vec![0; rows * cols * 2];
    let q = Tile::packed(&encoded.q, rows, cols, 1);
    decode(Level::detect(), &q, encoding.grid, &encoded.scales, &mut out);
    out
}

#[test]
fn laws_hold_in_every_dialect() {
    let mut scratch = Scratch::default();
    for (rows, cols) in [(1, 1), (129, 127), (300, 517)] {
        for (content, weights) in contents(rows, cols, 21) {
            for float in [Float::Bf16, Float::F16, Float::F32] {
                let bytes = elements(&weights, float);
                for (label, encoding) in encodings() {
                    if content == "subnormal" && encoding.rule.floor.is_none() {
                        continue;
                    }
                    for level in Level::available() {
                        let tile = Tile::packed(&bytes, rows, cols, float.bytes());
                        let result = encoded(level, &tile, float, &encoding).unwrap();
                        let q = Tile::packed(&result.q, rows, cols, 1);
                        let proof =
                            prove(level, &q, float, &encoding, &result.scales, &mut scratch);
                        assert_eq!(
                            proof,
                            Ok(()),
                            "{rows}x{cols} {content} {float:?} {label} {level}"
                        );
                    }
                }
            }
        }
    }
}

/// One weight a channel, so that every BF16 number is a maximum once.
#[test]
fn exceptions_to_the_laws_are_these() {
    let maxima: Vec<f32> = (0..0x7F80).map(bf16_to_f32).collect();
    for (label, encoding) in encodings() {
        let encoding = Encoding { grid: Grid::Channel, ..encoding };
        let encoded = encoded_best(&maxima, maxima.len(), 1, &encoding);
        let broken: Vec<(f32, Law)> = maxima
            .iter()
            .zip(encoded.q.chunks(1).zip(encoded.scales.chunks(1)))
            .filter_map(|(&largest, (q, scale))| {
                let q = Tile::packed(q, 1, 1, 1);
                let proof = prove(
                    Level::Baseline,
                    &q,
                    Float::Bf16,
                    &encoding,
                    scale,
                    &mut Scratch::default(),
                );
                proof.err().map(|unproven| (largest, unproven.law))
            })
            .collect();
        let expected = match encoding.rule {
            ScaleRule { stored: StoredScale::Bf16, .. } => 35,
            ScaleRule { power_of_two: Some(_), .. } => 8,
            _ => 0,
        };
        assert_eq!(broken.len(), expected, "{label}");
        for (largest, law) in broken {
            match law {
                Law::Finite => assert!(largest > 3.29e38, "{label} {largest:e}"),
                Law::SameCode | Law::SameValue => {
                    assert!(largest < 448.0 * f32::MIN_POSITIVE, "{label} {largest:e}");
                }
            }
        }
    }
}

#[test]
fn nan_codes_are_found_and_halved_scales_are_not() {
    let (rows, cols) = (300, 517);
    let (_, weights) = contents(rows, cols, 4).swap_remove(0);
    let mut random = Random(9);
    for (label, encoding) in encodings() {
        let sound = encoded_best(&weights, rows, cols, &encoding);
        for _ in 0..6 {
            let position = random.bits() as usize % sound.q.len();
            let mut q = sound.q.clone();
            q[position] = 0x7F;
            let tile = Tile::packed(&q, rows, cols, 1);
            let proof = prove(
                Level::detect(),
                &tile,
                Float::Bf16,
                &encoding,
                &sound.scales,
                &mut Scratch::default(),
            );
            let unproven = proof.unwrap_err();
            assert_eq!((unproven.row, unproven.col), (position / cols, position % cols), "{label}");
            assert_eq!(unproven.law, Law::Finite);
        }
        let mut halved = sound.scales.clone();
        halved[7] /= 2.0;
        let tile = Tile::packed(&sound.q, rows, cols, 1);
        let proof =
            prove(Level::detect(), &tile, Float::Bf16, &encoding, &halved, &mut Scratch::default());
        assert_eq!(proof, Ok(()), "{label}: half as large is sound too");
    }
}

/// 225 steps round to 224, and the second scale is half the first: other bytes, the same values.
#[test]
fn a_power_of_two_scale_may_halve_and_change_no_value() {
    for encoding in [encoding("deepseek", ScaleKind::Ue8m0), {
        let ling = Dialect::builtin("ling").unwrap();
        ling.encoding(Some("expert.gate"), ScaleKind::F32, Arith::Ieee).unwrap()
    }] {
        let weights = [226.0, 3.0, -17.0, 0.002];
        let first = encoded_best(&weights, 1, 4, &encoding);
        let decoded_once = decoded(&first, 1, 4, &encoding);
        let again: Vec<f32> = decoded_once.chunks(2).map(|bytes| Float::Bf16.read(bytes)).collect();
        let second = encoded_best(&again, 1, 4, &encoding);
        assert_eq!(second.scales[0], first.scales[0] / 2.0);
        assert_ne!(second.q, first.q);
        assert_eq!(decoded(&second, 1, 4, &encoding), decoded_once);
        let q = Tile::packed(&first.q, 1, 4, 1);
        let proof = prove(
            Level::detect(),
            &q,
            Float::Bf16,
            &encoding,
            &first.scales,
            &mut Scratch::default(),
        );
        assert_eq!(proof, Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if full() { 2000 } else { 100 }))]

    /// FP8 made from BF16 comes back byte for byte through BF16, where scales are no powers of two.
    #[test]
    fn round_trips_are_exact(seed in 1u64.., rows in 1usize..300, cols in 1usize..300, exponent in -60i32..60) {
        let mut random = Random(seed);
        let unit = 2f32.powi(exponent);
        let weights: Vec<f32> = (0..rows * cols).map(|_| random.normal() * unit).collect();
        for dialect in ["deepseek", "compressed-tensors", "compressed-tensors-channel", "compressed-tensors-cpu"] {
            let encoding = encoding(dialect, ScaleKind::F32);
            let first = encoded_best(&weights, rows, cols, &encoding);
            let back: Vec<f32> =
                decoded(&first, rows, cols, &encoding).chunks(2).map(|bytes| Float::Bf16.read(bytes)).collect();
            let second = encoded_best(&back, rows, cols, &encoding);
            prop_assert_eq!(&first.scales, &second.scales, "{}", dialect);
            prop_assert_eq!(&first.q, &second.q, "{}", dialect);
            let mut bytes = Vec::new();
            store_scales(&first.scales, encoding.rule.stored, &mut bytes);
            prop_assert_eq!(load_scales(&bytes, encoding.rule.stored.into()), Ok(first.scales));
        }
    }
}

fn total(stripes: &[ErrorStats]) -> ErrorStats {
    let mut total = ErrorStats::default();
    for stripe in stripes {
        total.merge(stripe);
    }
    total
}

#[test]
fn figures_are_those_of_the_formulas() {
    let (rows, cols) = (300, 517);
    let (_, mut weights) = contents(rows, cols, 6).swap_remove(0);
    for row in 0..128 {
        weights[row * cols..][..128].fill(0.0);
    }
    weights[cols * 200] = 1e-9;
    let bytes = elements(&weights, Float::Bf16);
    let encoding = encoding("deepseek", ScaleKind::F32);
    let encoded = encoded_best(&weights, rows, cols, &encoding);
    let tile = Tile::packed(&bytes, rows, cols, 2);
    let stripes =
        measure(Level::detect(), &tile, Float::Bf16, encoding.grid, &encoded.q, &encoded.scales);
    assert_eq!(stripes.len(), 3);
    let stats = total(&stripes);

    let (mut noise, mut signal, mut worst) = (0.0, 0.0, 0f64);
    for (index, code) in encoded.q.iter().enumerate() {
        let weight = f64::from(Float::Bf16.read(&bytes[index * 2..]));
        let scale = encoded.scales[index / cols / 128 * 5 + index % cols / 128];
        let error = weight - f64::from(e4m3::decode(*code) * scale);
        (noise, signal, worst) =
            (noise + error * error, signal + weight * weight, worst.max(error.abs()));
    }
    let sqnr = 10.0 * (signal / noise).log10();
    assert!((stats.sqnr_db() - sqnr).abs() < 1e-9 && (31.0..32.0).contains(&sqnr), "{sqnr}");
    assert_eq!(stats.max_abs_error, worst);
    assert!((0.999..1.0).contains(&stats.cosine()));
    assert_eq!((stats.elements, stats.blocks, stats.zero_blocks), (300 * 517, 15, 1));
    assert_eq!(
        stats.saturated,
        encoded.q.iter().filter(|&code| code & 0x7F == 0x7E).count() as u64
    );
    assert!(stats.saturated >= 14 && stats.saturated_share() < 1e-3);
    let lost =
        encoded.q.iter().zip(bytes.chunks(2)).filter(|&(&code, weight)| {
            e4m3::decode(code) == 0.0 && Float::Bf16.read(weight) != 0.0
        });
    assert_eq!(stats.underflowed, lost.count() as u64);
    assert!(stats.underflowed >= 1 && stats.underflowed_share() > 0.0);
}

#[test]
fn figures_depend_on_neither_level_nor_cut_nor_text() {
    let (rows, cols) = (300, 517);
    for (content, weights) in contents(rows, cols, 12) {
        for float in [Float::Bf16, Float::F16, Float::F32] {
            let bytes = elements(&weights, float);
            let stride = cols * float.bytes();
            for dialect in ["deepseek", "compressed-tensors-channel"] {
                let encoding = encoding(dialect, ScaleKind::F32);
                let whole = Tile::packed(&bytes, rows, cols, float.bytes());
                let Encoded { q, scales } =
                    encoded(Level::detect(), &whole, float, &encoding).unwrap();
                let expected = measure(Level::Baseline, &whole, float, encoding.grid, &q, &scales);
                for level in Level::available() {
                    assert_eq!(
                        measure(level, &whole, float, encoding.grid, &q, &scales),
                        expected,
                        "{content}"
                    );
                }
                let (_, wide) = encoding.grid.scale_shape(1, cols);
                let mut pieces = Vec::new();
                for first in (0..rows).step_by(128) {
                    let count = 128.min(rows - first);
                    let part = Tile::packed(&bytes[first * stride..], count, cols, float.bytes());
                    let start = encoding.grid.scale_shape(first, cols).0 * wide;
                    let (high, _) = encoding.grid.scale_shape(count, cols);
                    let scales = &scales[start..][..high * wide];
                    let q = &q[first * cols..][..count * cols];
                    pieces.extend(measure(Level::detect(), &part, float, encoding.grid, q, scales));
                }
                assert_eq!(pieces, expected);
                let text = serde_json::to_string(&expected).unwrap();
                assert_eq!(serde_json::from_str::<Vec<ErrorStats>>(&text).unwrap(), expected);
            }
        }
    }
}

#[test]
fn figures_of_nothing_are_defined() {
    let nothing = ErrorStats::default();
    assert_eq!((nothing.sqnr_db(), nothing.cosine()), (f64::INFINITY, 1.0));
    assert_eq!((nothing.saturated_share(), nothing.underflowed_share()), (0.0, 0.0));
}
