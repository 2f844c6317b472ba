//! F16 and F32 to BF16, rounded to nearest even.

use super::float::{Float, f32_to_bf16};
use super::fp8::with_source;
use super::lanes::{self, Source};
use super::level::{Kernel, Level, dispatch};

/// Casts `input`, elements of `float`, to BF16, little-endian. NaN becomes `0x7FC0` with its sign; too large becomes
/// infinite. BF16 input is canonicalised the same way.
///
/// # Panics
/// If `out` does not have two bytes an element, or this CPU cannot run `level`.
pub fn cast_to_bf16(level: Level, input: &[u8], float: Float, out: &mut [u8]) {
    let elements = input.len() / float.bytes();
    assert_eq!(input.len(), elements * float.bytes(), "input of whole elements");
    assert_eq!(out.len(), elements * 2, "output of {elements} BF16 elements");
    if level == Level::Scalar {
        for (element, out) in input.chunks_exact(float.bytes()).zip(out.as_chunks_mut().0) {
            *out = f32_to_bf16(float.read(element)).to_le_bytes();
        }
    } else {
        with_source!(float, S => dispatch(level, Cast::<S> { input: S::split(input), out }));
    }
}

struct Cast<'a, S: Source> {
    input: &'a [S::Raw],
    out: &'a mut [u8],
}

impl<S: Source> Kernel for Cast<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (&raw, out) in self.input.iter().zip(self.out.as_chunks_mut::<2>().0) {
            let value = S::widen(S::bits(raw));
            let sign = (value.to_bits() >> 16) & 0x8000;
            let rounded = lanes::round_to_bf16(value.abs());
            let magnitude = if value.is_nan() { 0x7FC0 } else { rounded };
            *out = ((magnitude | sign) as u16).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_casts_alike() {
        let shorts: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let longs: Vec<u8> = (0..400_000u32)
            .map(|i| i.wrapping_mul(2_654_435_761))
            .flat_map(|bits| [bits, bits & 0xFFFF_0000 | 0x8000, bits | 0x7F80_0000])
            .flat_map(u32::to_le_bytes)
            .collect();
        for (float, input) in [(Float::Bf16, &shorts), (Float::F16, &shorts), (Float::F32, &longs)]
        {
            let cast = |level| {
                let mut out = vec![0; input.len() / float.bytes() * 2];
                cast_to_bf16(level, input, float, &mut out);
                out
            };
            let expected = cast(Level::Scalar);
            for level in Level::available() {
                assert!(cast(level) == expected, "{float:?} {level}");
            }
        }
    }
}
