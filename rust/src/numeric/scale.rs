//! From a block's largest magnitude to its scale, and scales to and from bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::e4m3;
use super::float::{Float, bf16_to_f32, f32_to_bf16};

/// How the division of the maximum by 448 is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arith {
    /// True division, as on a CPU.
    Ieee,
    /// Multiplication by f32(1/448) = `0x3B124925`, which is how CUDA divides a tensor by that constant.
    Cuda,
}

impl fmt::Display for Arith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ieee => "ieee",
            Self::Cuda => "cuda",
        })
    }
}

impl FromStr for Arith {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        [Self::Ieee, Self::Cuda]
            .into_iter()
            .find(|arith| arith.to_string() == word)
            .ok_or_else(|| format!("unknown scale arithmetic '{word}': expected ieee or cuda"))
    }
}

/// How a scale becomes a power of two; both round up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PowerOfTwo {
    /// By the exponent bits alone; 0 stays 0.
    ExponentBits,
    /// As an E8M0 exponent: biased, one more if the mantissa is not zero, clamped to 1..=254.
    Ue8m0,
}

impl PowerOfTwo {
    fn round_up(self, scale: f32) -> f32 {
        let bits = scale.to_bits();
        let exponent = (bits >> 23) + u32::from(bits & 0x7F_FFFF != 0);
        match self {
            Self::ExponentBits => f32::from_bits(exponent << 23),
            Self::Ue8m0 => f32::from_bits(exponent.clamp(1, 254) << 23),
        }
    }
}

/// Element type of the scales that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StoredScale {
    /// IEEE binary32.
    F32,
    /// BF16; the scale is rounded to it, ties to even, before anything is divided by it.
    #[serde(rename = "BF16")]
    Bf16,
}

/// The arithmetic of a dialect's scales, all of it in f32, rounded to nearest even.
///
/// Source: the reference scripts that each dialect reproduces bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleRule {
    /// Smallest maximum: smaller ones count as this.
    pub floor: Option<f32>,
    /// Stored instead of a scale that came out as 0.
    pub zero: Option<f32>,
    /// How the maximum is divided by 448.
    pub arith: Arith,
    /// Whether and how the scale is rounded up to a power of two.
    pub power_of_two: Option<PowerOfTwo>,
    /// What the scale is rounded to last.
    pub stored: StoredScale,
}

impl ScaleRule {
    /// The scale of a block whose largest magnitude is `amax`: floor, divide, round, replace 0.
    pub fn scale(&self, amax: f32) -> f32 {
        let amax = self.floor.map_or(amax, |floor| amax.max(floor));
        let quotient = match self.arith {
            Arith::Ieee => amax / e4m3::MAX,
            Arith::Cuda => amax * f32::from_bits(0x3B12_4925),
        };
        let rounded = self.power_of_two.map_or(quotient, |rule| rule.round_up(quotient));
        let scale = match self.stored {
            StoredScale::F32 => rounded,
            StoredScale::Bf16 => bf16_to_f32(f32_to_bf16(rounded)),
        };
        match self.zero {
            Some(zero) if scale == 0.0 => zero,
            _ => scale,
        }
    }
}

/// Element types of scale tensors that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ScaleDtype {
    /// IEEE binary32.
    F32,
    /// BF16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// A biased exponent a byte, 2^(e - 127); also what a U8 scale tensor holds.
    E8m0,
}

impl ScaleDtype {
    /// Bytes a scale takes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::E8m0 => 1,
        }
    }

    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::F32 => Float::F32.read(bytes),
            Self::Bf16 => Float::Bf16.read(bytes),
            Self::F16 => Float::F16.read(bytes),
            Self::E8m0 => match bytes[0] {
                0 => f32::from_bits(0x0040_0000),
                255 => f32::NAN,
                exponent => f32::from_bits(u32::from(exponent) << 23),
            },
        }
    }
}

impl From<StoredScale> for ScaleDtype {
    fn from(stored: StoredScale) -> Self {
        match stored {
            StoredScale::F32 => Self::F32,
            StoredScale::Bf16 => Self::Bf16,
        }
    }
}

/// A scale that is NaN, infinite, zero or negative.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("scale {index} is {value}: a scale must be positive and finite")]
pub struct BadScale {
    /// Position in the scale tensor, row-major.
    pub index: usize,
    /// The value found.
    pub value: f32,
}

/// Reads a scale tensor, little-endian, as f32; exact for every dtype.
///
/// # Errors
/// The first scale that is not a positive finite number.
///
/// # Panics
/// If `bytes` is not a whole number of scales.
pub fn load_scales(bytes: &[u8], dtype: ScaleDtype) -> Result<Vec<f32>, BadScale> {
    assert!(bytes.len().is_multiple_of(dtype.bytes()), "{} bytes are no whole scales", bytes.len());
    let read = |(index, bytes)| match dtype.read(bytes) {
        value if value > 0.0 && value.is_finite() => Ok(value),
        value => Err(BadScale { index, value }),
    };
    bytes.chunks_exact(dtype.bytes()).enumerate().map(read).collect()
}

/// Appends `scales` to `out`, little-endian. They are representable already: a [`ScaleRule`] made them so.
pub fn store_scales(scales: &[f32], stored: StoredScale, out: &mut Vec<u8>) {
    match stored {
        StoredScale::F32 => out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes())),
        StoredScale::Bf16 => {
            out.extend(scales.iter().flat_map(|&scale| f32_to_bf16(scale).to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: ScaleRule = ScaleRule {
        floor: None,
        zero: None,
        arith: Arith::Ieee,
        power_of_two: None,
        stored: StoredScale::F32,
    };

    #[test]
    fn floor_and_zero() {
        let floored = ScaleRule { floor: Some(1e-4), ..PLAIN };
        assert_eq!(floored.scale(0.0).to_bits(), (1e-4f32 / 448.0).to_bits());
        assert_eq!(floored.scale(2e-4).to_bits(), (2e-4f32 / 448.0).to_bits());
        let zeroed = ScaleRule { zero: Some(0.007_812_5), stored: StoredScale::Bf16, ..PLAIN };
        assert_eq!(zeroed.scale(0.0).to_bits(), 0.007_812_5f32.to_bits());
        let tiny = bf16_to_f32(1) * 224.0;
        assert_eq!(
            zeroed.scale(tiny).to_bits(),
            0.007_812_5f32.to_bits(),
            "a tie with 0 goes to 0"
        );
        assert_eq!(zeroed.scale(bf16_to_f32(1) * 225.0).to_bits(), bf16_to_f32(1).to_bits());
    }

    #[test]
    fn cuda_differs_by_at_most_one_step() {
        let cuda = ScaleRule { arith: Arith::Cuda, ..PLAIN };
        let mut differing = 0;
        for bits in 0x2B8D..0x7F80 {
            let amax = bf16_to_f32(bits);
            let distance = cuda.scale(amax).to_bits().abs_diff(PLAIN.scale(amax).to_bits());
            assert!(distance <= 1);
            differing += distance;
        }
        assert!(differing > 1000);
    }

    #[test]
    fn powers_of_two_round_up_from_one_step_above() {
        for rule in [PowerOfTwo::ExponentBits, PowerOfTwo::Ue8m0] {
            for exponent in -126..127 {
                let power = 2f32.powi(exponent);
                assert_eq!(rule.round_up(power).to_bits(), power.to_bits());
                assert_eq!(rule.round_up(power.next_up()).to_bits(), (2.0 * power).to_bits());
            }
        }
        assert_eq!(PowerOfTwo::Ue8m0.round_up(0.0).to_bits(), f32::MIN_POSITIVE.to_bits());
        assert_eq!(PowerOfTwo::ExponentBits.round_up(0.0).to_bits(), 0);
    }

    #[test]
    fn scales_load_from_every_dtype() {
        assert_eq!(
            load_scales(&[127, 128, 0], ScaleDtype::E8m0),
            Ok(vec![1.0, 2.0, 2f32.powi(-127)])
        );
        assert_eq!(load_scales(&0x3C00u16.to_le_bytes(), ScaleDtype::F16), Ok(vec![1.0]));
        assert_eq!(load_scales(&[127, 255], ScaleDtype::E8m0).map_err(|bad| bad.index), Err(1));
        for bad in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY] {
            let bytes = [1f32.to_le_bytes(), bad.to_le_bytes()].concat();
            assert_eq!(load_scales(&bytes, ScaleDtype::F32).map_err(|bad| bad.index), Err(1));
        }
    }

    #[test]
    fn stored_scales_load_unchanged() {
        for stored in [StoredScale::F32, StoredScale::Bf16] {
            let rule = ScaleRule { stored, floor: Some(1e-12), ..PLAIN };
            let scales: Vec<f32> = (0..500u16).map(|i| rule.scale(f32::from(i) * 0.37)).collect();
            let mut bytes = Vec::new();
            store_scales(&scales, stored, &mut bytes);
            assert_eq!(load_scales(&bytes, stored.into()), Ok(scales));
        }
    }
}
