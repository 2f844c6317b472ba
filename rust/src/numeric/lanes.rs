//! The conversions without branches, one element at a time, in the form that compilers turn into vector code.
//!
//! Everything here is `#[inline(always)]`, so that a [`Kernel`](super::level::Kernel) compiles it with its own
//! instructions, and is tested against the definitions in `float` and `e4m3`.

use super::float::Float;

/// An input element type, known at compile time.
pub(super) trait Source {
    /// The bytes of one element.
    type Raw: Copy;
    const FLOAT: Float;
    /// Magnitude bits of infinity; larger ones are NaN.
    const INFINITE: u32;
    /// Whether a significand has 11 bits or fewer, see [`Divisor`].
    const SHORT: bool;

    fn split(bytes: &[u8]) -> &[Self::Raw];
    fn bits(raw: Self::Raw) -> u32;
    /// The largest magnitude bits of `run`. Order of magnitude bits is order of magnitude, NaN last.
    fn largest(run: &[Self::Raw]) -> u32;
    /// The f32 of element bits; exact, NaN stays NaN.
    fn widen(bits: u32) -> f32;
}

pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct F32;

/// The largest magnitude in the lanes of the element itself: twice as many to a register as in u32.
#[inline(always)]
fn largest_16(run: &[[u8; 2]]) -> u32 {
    u32::from(run.iter().fold(0, |largest, &raw| (u16::from_le_bytes(raw) & 0x7FFF).max(largest)))
}

impl Source for Bf16 {
    type Raw = [u8; 2];
    const FLOAT: Float = Float::Bf16;
    const INFINITE: u32 = 0x7F80;
    const SHORT: bool = true;

    #[inline(always)]
    fn split(bytes: &[u8]) -> &[[u8; 2]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn bits(raw: [u8; 2]) -> u32 {
        u32::from(u16::from_le_bytes(raw))
    }

    #[inline(always)]
    fn largest(run: &[[u8; 2]]) -> u32 {
        largest_16(run)
    }

    #[inline(always)]
    fn widen(bits: u32) -> f32 {
        f32::from_bits(bits << 16)
    }
}

impl Source for F16 {
    type Raw = [u8; 2];
    const FLOAT: Float = Float::F16;
    const INFINITE: u32 = 0x7C00;
    const SHORT: bool = true;

    #[inline(always)]
    fn split(bytes: &[u8]) -> &[[u8; 2]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn bits(raw: [u8; 2]) -> u32 {
        u32::from(u16::from_le_bytes(raw))
    }

    #[inline(always)]
    fn largest(run: &[[u8; 2]]) -> u32 {
        largest_16(run)
    }

    #[inline(always)]
    fn widen(bits: u32) -> f32 {
        let magnitude = (bits & 0x7FFF) << 13;
        let finite = rebias(magnitude, 127 - 15).to_bits();
        let infinite = magnitude | 0x7F80_0000;
        let value = if magnitude >= 31 << 23 { infinite } else { finite };
        f32::from_bits(value | (bits & 0x8000) << 16)
    }
}

impl Source for F32 {
    type Raw = [u8; 4];
    const FLOAT: Float = Float::F32;
    const INFINITE: u32 = 0x7F80_0000;
    const SHORT: bool = false;

    #[inline(always)]
    fn split(bytes: &[u8]) -> &[[u8; 4]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn bits(raw: [u8; 4]) -> u32 {
        u32::from_le_bytes(raw)
    }

    #[inline(always)]
    fn largest(run: &[[u8; 4]]) -> u32 {
        run.iter().fold(0, |largest, &raw| (u32::from_le_bytes(raw) & 0x7FFF_FFFF).max(largest))
    }

    #[inline(always)]
    fn widen(bits: u32) -> f32 {
        f32::from_bits(bits)
    }
}

/// Widens a smaller format whose mantissa and exponent already sit at f32's mantissa, its bias being `shift` less.
///
/// A subnormal has no implicit one: the smallest normal's exponent supplies it and a subtraction, which is exact, takes
/// it away. (Multiplying f32 subnormals by 2^`shift` would do too, but costs an assist each on many CPUs.)
#[inline(always)]
fn rebias(magnitude: u32, shift: u32) -> f32 {
    let normal = f32::from_bits(magnitude + (shift << 23));
    let one = (shift + 1) << 23;
    let subnormal = f32::from_bits(magnitude + one) - f32::from_bits(one);
    if magnitude < 1 << 23 { subnormal } else { normal }
}

/// [`f32_to_bf16`](super::f32_to_bf16) for anything but NaN.
#[inline(always)]
pub(super) fn round_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
}

/// A scale that weights are divided by.
///
/// Where a fused multiply-add is an instruction, a 16-bit weight is multiplied by the reciprocal instead, taken to twice
/// the precision of f32. That gives the code that true division gives. The two can differ in the last place of f32, but
/// what is rounded next, to BF16 or to E4M3, changes only at values of nine significant bits or fewer; a quotient within
/// two units of one leaves a handful of scales for each weight's significand, and
/// `every_short_quotient_near_a_boundary` tries them all. Outside `RECIPROCAL` an intermediate may underflow.
#[derive(Clone, Copy)]
pub(super) struct Divisor {
    scale: f32,
    high: f32,
    low: f32,
}

impl Divisor {
    /// 2^-90 to 2^60.
    const RECIPROCAL: std::ops::RangeInclusive<f32> =
        f32::from_bits((127 - 90) << 23)..=f32::from_bits((127 + 60) << 23);

    /// Computes the reciprocal only if `FMA` says that it will serve.
    #[inline(always)]
    pub(super) fn new<const FMA: bool>(scale: f32) -> Self {
        let (mut high, mut low) = (0.0, 0.0);
        if FMA {
            high = 1.0 / scale;
            low = high.mul_add(-scale, 1.0) / scale;
        }
        Self { scale, high, low }
    }

    #[inline(always)]
    pub(super) fn allows_reciprocal(self) -> bool {
        Self::RECIPROCAL.contains(&self.scale)
    }

    /// `magnitude` / scale. NaN or any negative number stands for a quotient too large for f32; [`e4m3`] saturates it.
    #[inline(always)]
    pub(super) fn quotient<const RECIPROCAL: bool>(self, magnitude: f32) -> f32 {
        if RECIPROCAL {
            magnitude.mul_add(self.high, magnitude * self.low)
        } else {
            magnitude / self.scale
        }
    }
}

/// The E4M3 code nearest to a magnitude, in the low byte; above 448, NaN and negative numbers all give `0x7E`.
///
/// Adding a power of two whose last place is one E4M3 step rounds to that step, ties to even, and leaves the number of
/// steps in the low bits of the sum. The code is that number plus eight for each binade above the lowest; `BIAS`, even
/// so that ties stay ties, is what the binade's own exponent has too much, modulo 256.
#[inline(always)]
pub(super) fn e4m3(magnitude: f32) -> u32 {
    const LARGEST: u32 = 448f32.to_bits();
    const LOWEST: u32 = (127 - 6) << 23;
    const BIAS: u32 = 0u32.wrapping_sub(LOWEST >> 20) & 0xFF;
    let magnitude = magnitude.to_bits().min(LARGEST);
    let binade = (magnitude & 0x7F80_0000).max(LOWEST);
    let sum = f32::from_bits(magnitude) + f32::from_bits(binade + (20 << 23) + BIAS);
    sum.to_bits() + (binade >> 20)
}

/// The BF16 bits of an E4M3 code times its scale, as [`f32_to_bf16`](super::f32_to_bf16) of the f32 product.
#[inline(always)]
pub(super) fn decode_to_bf16(code: u8, scale: f32) -> u16 {
    let product = round_to_bf16(decode_magnitude(code) * scale);
    let magnitude = if code & 0x7F == 0x7F { 0x7FC0 } else { product as u16 };
    magnitude | u16::from(code & 0x80) << 8
}

/// The magnitude of a code that is not NaN.
#[inline(always)]
pub(super) fn decode_magnitude(code: u8) -> f32 {
    rebias(u32::from(code & 0x7F) << 20, 127 - 7)
}

#[cfg(test)]
mod tests {
    use super::super::{e4m3, f16_to_f32, f32_to_bf16};
    use super::*;

    #[test]
    fn f16_widens_like_its_definition() {
        for bits in 0..=u16::MAX {
            let (fast, slow) = (F16::widen(u32::from(bits)), f16_to_f32(bits));
            assert!(
                fast.to_bits() == slow.to_bits() || (fast.is_nan() && slow.is_nan()),
                "{bits:#06x}"
            );
        }
    }

    #[test]
    fn codes_decode_like_their_definition() {
        for code in 0..=255u8 {
            for scale in [1.0, 0.037, 1e-38, 1e-40, 7e35, 1e36] {
                let expected = f32_to_bf16(e4m3::decode(code) * scale);
                assert_eq!(decode_to_bf16(code, scale), expected, "{code:#04x} {scale}");
            }
        }
    }

    #[test]
    fn magnitudes_encode_like_their_definition() {
        let mut bits = 1u32;
        for _ in 0..3_000_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for value in [f32::from_bits(bits), f32::from_bits(bits & 0xFFF0_0000 | 0x0008_0000)]
                .map(f32::abs)
            {
                if !value.is_nan() {
                    assert_eq!(e4m3(value) as u8, e4m3::encode(value), "{value:e}");
                }
            }
        }
        for overflow in [f32::NAN, -f32::NAN, f32::NEG_INFINITY, -1.0] {
            assert_eq!(e4m3(overflow) as u8, 0x7E);
        }
    }

    /// Exhausts the argument of [`Divisor`]: every significand of 11 bits or fewer, every boundary of nine bits or
    /// fewer, every scale whose quotient is near that boundary.
    #[test]
    fn every_short_quotient_near_a_boundary() {
        for weight in (1024..2048u16).map(f32::from) {
            for boundary in (256..512u16).map(f32::from) {
                let middle = (weight / boundary).to_bits();
                for bits in middle - 8..=middle + 8 {
                    let divisor = Divisor::new::<true>(f32::from_bits(bits));
                    let (fast, slow) =
                        (divisor.quotient::<true>(weight), divisor.quotient::<false>(weight));
                    assert_eq!(
                        fast.partial_cmp(&boundary),
                        slow.partial_cmp(&boundary),
                        "{weight} {bits:#x}"
                    );
                }
            }
        }
    }
}
