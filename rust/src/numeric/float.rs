//! BF16, F16 and F32 elements: the plain conversions that define what the kernels compute.

use serde::{Deserialize, Serialize};

/// Element type of a tensor to be encoded or cast, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// 1 sign, 8 exponent, 7 mantissa bits.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl Float {
    /// Bytes an element takes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The element at the start of `bytes`, exactly, as f32.
    ///
    /// # Panics
    /// If fewer bytes are given than an element takes.
    pub fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Self::Bf16 => bf16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
            Self::F16 => f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
            Self::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }
}

/// The value of a BF16 bit pattern; exact.
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// The BF16 nearest to `value`, ties to even; too large becomes infinite, NaN becomes `0x7FC0` with its sign.
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (kept, dropped) = ((bits >> 16) as u16, bits & 0xFFFF);
    if value.is_nan() {
        return kept & 0x8000 | 0x7FC0;
    }
    let up = dropped > 0x8000 || (dropped == 0x8000 && kept & 1 == 1);
    kept + up as u16
}

/// The value of an F16 bit pattern; exact. NaN becomes `0x7FC00000` with its sign.
pub const fn f16_to_f32(bits: u16) -> f32 {
    let mantissa = (bits & 0x3FF) as f32;
    let magnitude = match (bits >> 10) & 0x1F {
        0 => mantissa * power_of_two(-24),
        31 if mantissa == 0.0 => f32::INFINITY,
        31 => f32::from_bits(0x7FC0_0000),
        exponent => (1024.0 + mantissa) * power_of_two(exponent as i32 - 25),
    };
    let sign = (bits & 0x8000) as u32;
    f32::from_bits(magnitude.to_bits() | sign << 16)
}

/// 2^`exponent`, for the exponents of normal numbers.
pub(super) const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_equals_the_half_crate() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
                "{bits:#06x}: {ours} {theirs}"
            );
        }
    }

    #[test]
    fn bf16_rounding_equals_the_half_crate() {
        let mut bits = 0u32;
        for _ in 0..2_000_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for low in [bits, bits & 0xFFFF_0000 | 0x8000, bits & 0xFFFF_0000 | 0x7FFF] {
                let value = f32::from_bits(low);
                if !value.is_nan() {
                    let expected = half::bf16::from_f32(value).to_bits();
                    assert_eq!(f32_to_bf16(value), expected, "{low:#010x}");
                }
            }
        }
    }

    #[test]
    fn bf16_survives_a_trip_through_f32() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            if value.is_nan() {
                assert_eq!(f32_to_bf16(value), bits & 0x8000 | 0x7FC0);
            } else {
                assert_eq!(f32_to_bf16(value), bits);
            }
        }
    }
}
