//! Fast levels against the definition, and independence of how a matrix is cut.

use super::super::{Grid, Quotient, bf16_to_f32, decode, encode_with_scales, measure};
use super::*;

const SHAPES: [(usize, usize); 6] =
    [(1, 1), (129, 127), (300, 517), (128, 128), (3, 1000), (257, 5)];

fn fast_levels() -> impl Iterator<Item = Level> {
    Level::available().into_iter().filter(|&level| level != Level::Scalar)
}

/// Scales of every kind: quotients of random maxima, powers of two, BF16 numbers, subnormals, the largest.
fn scales(count: usize) -> Vec<f32> {
    let mut random = Random(11);
    let mut scales =
        vec![f32::from_bits(1), f32::MIN_POSITIVE, 1.0, 2f32.powi(-20), f32::MAX / 448.0, f32::MAX];
    while scales.len() < count {
        let positive = f32::from_bits(random.bits() % 0x7F80_0000).max(f32::from_bits(1));
        let usual = bf16_to_f32(0x3000 + (random.bits() % 0x1000) as u16) / 448.0;
        scales.extend([usual, positive, usual, bf16_to_f32(f32_to_bf16(usual))]);
    }
    scales
}

#[test]
fn every_16_bit_pattern_by_many_scales() {
    let scales = scales(if full() { 640 } else { 40 });
    for float in [Float::Bf16, Float::F16] {
        let patterns: Vec<u8> = (0..=u16::MAX)
            .map(u16::to_le_bytes)
            .filter(|bytes| !float.read(bytes).is_nan())
            .flatten()
            .collect();
        let tile = Tile::packed(&patterns, 1, patterns.len() / 2, 2);
        for scale in &scales {
            compare_codes(&tile, float, *scale);
        }
    }
}

#[test]
fn f32_patterns_by_many_scales() {
    let mut random = Random(5);
    for scale in scales(if full() { 640 } else { 40 }) {
        let near = |random: &mut Random| (random.unit() * 16.0).exp2() * scale / 128.0;
        let weights: Vec<f32> = (0..30_000)
            .map(|_| {
                if random.unit() < 0.2 { f32::from_bits(random.bits()) } else { near(&mut random) }
            })
            .filter(|weight| !weight.is_nan())
            .collect();
        let bytes = elements(&weights, Float::F32);
        compare_codes(&Tile::packed(&bytes, 1, weights.len(), 4), Float::F32, scale);
    }
}

fn compare_codes(tile: &Tile<'_>, float: Float, scale: f32) {
    for quotient in [Quotient::F32, Quotient::Bf16] {
        let run = |level| {
            let mut q = vec![0; tile.rows * tile.cols];
            encode_with_scales(level, tile, float, Grid::Channel, quotient, &[scale], &mut q);
            q
        };
        let expected = run(Level::Scalar);
        for level in fast_levels() {
            assert!(run(level) == expected, "{float:?} {quotient:?} {level} scale {scale:e}");
        }
    }
}

#[test]
fn every_weight_below_many_maxima() {
    let step = if full() { 1 } else { 211 };
    let encoding = Encoding { grid: Grid::Channel, ..encoding("deepseek", ScaleKind::F32) };
    for largest in (0x2B8Du16..0x7F80).step_by(step) {
        let bytes: Vec<u8> =
            (0..=largest).flat_map(|bits| (bits | bits << 15).to_le_bytes()).collect();
        let tile = Tile::packed(&bytes, 1, usize::from(largest) + 1, 2);
        let expected = encoded(Level::Scalar, &tile, Float::Bf16, &encoding).unwrap();
        for level in fast_levels() {
            let result = encoded(level, &tile, Float::Bf16, &encoding).unwrap();
            assert!(
                result.q == expected.q && result.scales == expected.scales,
                "{largest:#06x} {level}"
            );
        }
    }
}

#[test]
fn every_code_by_many_scales() {
    let codes: Vec<u8> = (0..=255).cycle().take(1000).collect();
    for scale in scales(2000) {
        let run = |level| {
            let mut out = vec![0; 2000];
            decode(level, &Tile::packed(&codes, 1, 1000, 1), Grid::Channel, &[scale], &mut out);
            out
        };
        let expected = run(Level::Scalar);
        for level in fast_levels() {
            assert!(run(level) == expected, "{level} {scale:e}");
        }
    }
}

#[test]
fn whole_matrices_of_every_shape_content_and_dialect() {
    for (rows, cols) in SHAPES {
        for (content, weights) in contents(rows, cols, 3) {
            for float in [Float::Bf16, Float::F16, Float::F32] {
                let bytes = elements(&weights, float);
                let tile = Tile::packed(&bytes, rows, cols, float.bytes());
                for (label, encoding) in encodings() {
                    compare_matrix(
                        &tile,
                        float,
                        &encoding,
                        &format!("{rows}x{cols} {content} {float:?} {label}"),
                    );
                }
            }
        }
    }
}

fn compare_matrix(tile: &Tile<'_>, float: Float, encoding: &Encoding, case: &str) {
    let expected = encoded(Level::Scalar, tile, float, encoding).unwrap();
    let decoded = |level, encoded: &Encoded| {
        let q = Tile::packed(&encoded.q, tile.rows, tile.cols, 1);
        let mut out = vec![0; encoded.q.len() * 2];
        decode(level, &q, encoding.grid, &encoded.scales, &mut out);
        out
    };
    assert!(expected.q.iter().all(|code| code & 0x7F != 0x7F), "{case}");
    for level in fast_levels() {
        let result = encoded(level, tile, float, encoding).unwrap();
        assert!(result.scales == expected.scales, "{case} {level}");
        assert!(result.q == expected.q, "{case} {level}");
        assert!(decoded(level, &result) == decoded(Level::Scalar, &expected), "{case} {level}");
    }
}

#[test]
fn cuts_and_strides_change_nothing() {
    let (rows, cols) = (300, 517);
    let (_, weights) = contents(rows, cols, 8).swap_remove(1);
    let bytes = elements(&weights, Float::Bf16);
    let whole = Tile::packed(&bytes, rows, cols, 2);
    let encoding = encoding("deepseek", ScaleKind::F32);
    for level in Level::available() {
        let expected = encoded(level, &whole, Float::Bf16, &encoding).unwrap();
        for (first, count) in [(0, 128), (128, 172), (256, 44)] {
            for (left, width) in [(0, 256), (128, 389), (512, 5)] {
                let part = Tile {
                    bytes: &bytes[first * whole.stride + left * 2..],
                    rows: count,
                    cols: width,
                    ..whole
                };
                let result = encoded(level, &part, Float::Bf16, &encoding).unwrap();
                for row in 0..count {
                    let codes = &expected.q[(first + row) * cols + left..][..width];
                    assert_eq!(&result.q[row * width..][..width], codes, "{level} {first} {left}");
                }
                let blocks = width.div_ceil(128);
                for (row, scales) in result.scales.chunks(blocks).enumerate() {
                    assert_eq!(
                        scales,
                        &expected.scales[(first / 128 + row) * 5 + left / 128..][..blocks]
                    );
                }
            }
        }
    }
}

#[test]
fn empty_matrices_are_encoded_to_nothing() {
    for (_, encoding) in encodings() {
        for (rows, cols) in [(0, 0), (0, 200), (200, 0)] {
            for level in Level::available() {
                let tile = Tile::packed(&[], rows, cols, 2);
                let result = encoded(level, &tile, Float::Bf16, &encoding).unwrap();
                assert!(result.q.is_empty());
                let stats =
                    measure(level, &tile, Float::Bf16, encoding.grid, &result.q, &result.scales);
                assert_eq!(stats.iter().map(|stats| stats.elements).sum::<u64>(), 0);
            }
        }
    }
}

#[test]
fn the_first_non_finite_value_is_found() {
    let (rows, cols) = (300, 517);
    for float in [Float::Bf16, Float::F16, Float::F32] {
        for (label, encoding) in encodings() {
            for positions in
                [vec![(0, 0)], vec![(299, 516)], vec![(140, 130), (139, 516), (260, 0)]]
            {
                let mut bytes = elements(&vec![1.0; rows * cols], float);
                for (index, &(row, col)) in positions.iter().enumerate() {
                    let bad = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY][index];
                    let bad = match float {
                        Float::F16 => half::f16::from_f32(bad).to_le_bytes().to_vec(),
                        _ => elements(&[bad], float),
                    };
                    bytes[(row * cols + col) * float.bytes()..][..float.bytes()]
                        .copy_from_slice(&bad);
                }
                let first = positions.iter().min().unwrap();
                for level in Level::available() {
                    let tile = Tile::packed(&bytes, rows, cols, float.bytes());
                    let found = encoded(level, &tile, float, &encoding).err().unwrap();
                    assert_eq!((found.row, found.col), *first, "{float:?} {label} {level}");
                    assert!(!found.value.is_finite());
                }
            }
        }
    }
}
