//! Every level against the definition, and the laws against every dialect.
//!
//! `LINGCONV_FULL=1` replaces seeded samples by whole ranges.

mod laws;
mod levels;

use crate::dialect::{Dialect, ScaleKind};

use super::{Arith, Encoding, Float, Level, NonFinite, Tile, encode, f32_to_bf16};

/// Whether to run whole ranges; a sample otherwise.
fn full() -> bool {
    std::env::var_os("LINGCONV_FULL").is_some_and(|value| value == "1")
}

/// xorshift64*: seeded, so that a failure repeats.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }

    fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    /// Roughly normal, of standard deviation 1.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }
}

/// Every way of encoding that a built-in dialect offers, with a label.
fn encodings() -> Vec<(String, Encoding)> {
    let mut all = Vec::new();
    for name in Dialect::names() {
        let dialect = Dialect::builtin(name).unwrap();
        for kind in [ScaleKind::F32, ScaleKind::Ue8m0] {
            for arith in [Arith::Ieee, Arith::Cuda] {
                for role in [None, Some("expert.up")] {
                    if let Ok(encoding) = dialect.encoding(role, kind, arith) {
                        all.push((format!("{name} {kind} {arith} {role:?}"), encoding));
                    }
                }
            }
        }
    }
    all
}

fn encoding(dialect: &str, kind: ScaleKind) -> Encoding {
    Dialect::builtin(dialect).unwrap().encoding(None, kind, Arith::Ieee).unwrap()
}

/// The same weights as elements of `float`; F16 by way of the `half` crate.
fn elements(weights: &[f32], float: Float) -> Vec<u8> {
    let bytes = |&weight: &f32| match float {
        Float::Bf16 => f32_to_bf16(weight).to_le_bytes().to_vec(),
        Float::F16 => half::f16::from_f32(weight.clamp(-65504.0, 65504.0)).to_le_bytes().to_vec(),
        Float::F32 => weight.to_le_bytes().to_vec(),
    };
    weights.iter().flat_map(bytes).collect()
}

/// Kinds of content that weights have or could have.
fn contents(rows: usize, cols: usize, seed: u64) -> Vec<(&'static str, Vec<f32>)> {
    let mut random = Random(seed);
    let mut fill =
        |next: &dyn Fn(&mut Random) -> f32| (0..rows * cols).map(|_| next(&mut random)).collect();
    vec![
        ("normal", fill(&|random| random.normal() * 0.02)),
        ("heavy tails", fill(&|random| random.normal() / (random.unit() + 1e-4).powi(3))),
        ("zero", fill(&|_| 0.0)),
        ("signed zero", fill(&|random| if random.unit() < 0.5 { -0.0 } else { 0.0 })),
        ("subnormal", fill(&|random| f32::from_bits(random.bits() & 0x807F_FFFF))),
        ("any exponent", fill(&|random| f32::from_bits(random.bits() & 0xBFFF_FFFF))),
        ("huge", fill(&|random| random.normal() * 5e37)),
    ]
}

struct Encoded {
    q: Vec<u8>,
    scales: Vec<f32>,
}

fn encoded(
    level: Level,
    input: &Tile<'_>,
    float: Float,
    encoding: &Encoding,
) -> Result<Encoded, NonFinite> {
    let (high, wide) = encoding.grid.scale_shape(input.rows, input.cols);
    let mut result =
        Encoded { q: vec![0; input.rows * input.cols], scales: vec![0.0; high * wide] };
    encode(level, input, float, encoding, &mut result.q, &mut result.scales)?;
    Ok(result)
}

/// Encodes at the best level; the input is finite.
fn encoded_best(weights: &[f32], rows: usize, cols: usize, encoding: &Encoding) -> Encoded {
    let bytes = elements(weights, Float::Bf16);
    encoded(Level::detect(), &Tile::packed(&bytes, rows, cols, 2), Float::Bf16, encoding).unwrap()
}
