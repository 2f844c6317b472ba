//! E4M3FN, one code at a time: the definition every kernel is tested against.
//!
//! A code is a sign bit, four exponent bits (bias 7) and three mantissa bits. There is no infinity; `0x7F` and `0xFF`
//! are NaN, so the largest finite magnitude is 448 (`0x7E`) and the smallest 2^-9 (`0x01`).

use super::float::power_of_two;

/// Largest finite magnitude.
pub const MAX: f32 = 448.0;
/// Code of [`MAX`].
pub const MAX_CODE: u8 = 0x7E;
/// Both NaN codes, without their sign.
pub const NAN_CODE: u8 = 0x7F;

/// The code nearest to `value`, ties to even, magnitudes above 448 saturated, the sign of zero kept.
///
/// Only NaN gives a NaN code. The rounding is done on the integer significand: the value is `significand × 2^exponent`,
/// a code's step is `2^step`, and the number of steps is the significand shifted by the difference.
pub const fn encode(value: f32) -> u8 {
    let bits = value.to_bits();
    let sign = ((bits >> 24) & 0x80) as u8;
    if value.is_nan() {
        return sign | NAN_CODE;
    }
    let field = ((bits >> 23) & 0xFF).cast_signed();
    let (significand, exponent) = match field {
        0 => (bits & 0x7F_FFFF, -149),
        _ => (bits & 0x7F_FFFF | 0x80_0000, field - 150),
    };
    let binade = exponent + 23;
    let binade = if binade < -6 { -6 } else { binade };
    if binade > 8 {
        return sign | MAX_CODE;
    }
    let shift = binade - 3 - exponent;
    let steps = if shift > 31 { 0 } else { shift_to_nearest_even(significand, shift as u32) };
    let code = (binade + 6) as u32 * 8 + steps;
    let code = if code > MAX_CODE as u32 { MAX_CODE } else { code as u8 };
    sign | code
}

const fn shift_to_nearest_even(significand: u32, shift: u32) -> u32 {
    let kept = significand >> shift;
    let dropped = significand - (kept << shift);
    let half = 1 << (shift - 1);
    let up = dropped > half || (dropped == half && kept & 1 == 1);
    kept + up as u32
}

/// The value of a code; exact. The NaN codes give the quiet NaN `0x7FC00000` with their sign.
pub const fn decode(code: u8) -> f32 {
    let mantissa = (code & 7) as f32;
    let magnitude = match (code >> 3) & 15 {
        15 if mantissa == 7.0 => f32::from_bits(0x7FC0_0000),
        0 => mantissa * power_of_two(-9),
        exponent => (8.0 + mantissa) * power_of_two(exponent as i32 - 10),
    };
    f32::from_bits(magnitude.to_bits() | ((code & 0x80) as u32) << 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All finite magnitudes in code order, written down from the format's table rather than from its formula.
    fn magnitudes() -> Vec<f64> {
        let mut values: Vec<f64> = (0..8).map(|m| f64::from(m) / 512.0).collect();
        let mut unit = 1.0 / 64.0;
        for _ in 1..=15 {
            values.extend((0..8).map(|m| unit * (1.0 + f64::from(m) / 8.0)));
            unit *= 2.0;
        }
        values.pop();
        values
    }

    #[test]
    fn all_256_codes_decode_to_their_value() {
        let table = magnitudes();
        assert_eq!(table.len(), 127);
        assert_eq!(table[126].to_bits(), 448f64.to_bits());
        for code in 0..=255u8 {
            let value = decode(code);
            assert_eq!(value.is_sign_negative(), code & 0x80 != 0);
            match table.get(usize::from(code & 0x7F)) {
                Some(expected) => assert_eq!(f64::from(value.abs()).to_bits(), expected.to_bits()),
                None => assert!(value.is_nan()),
            }
            assert_eq!(encode(value), code);
        }
    }

    #[test]
    fn encode_picks_the_nearest_and_the_even_of_two() {
        let table = magnitudes();
        let mut bits = 7u32;
        for _ in 0..300_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let spread = f32::from_bits(bits % (0x4400_0000 - 0x3A00_0000) + 0x3A00_0000);
            check_nearest(spread, &table);
        }
        for pair in table.windows(2) {
            let middle = f64::midpoint(pair[0], pair[1]) as f32;
            for value in [middle.next_down(), middle, middle.next_up()] {
                check_nearest(value, &table);
            }
        }
    }

    fn check_nearest(value: f32, table: &[f64]) {
        let code = usize::from(encode(value));
        let distance = |index: usize| (table[index] - f64::from(value)).abs();
        for other in [code.saturating_sub(1), (code + 1).min(126)] {
            assert!(distance(code) <= distance(other), "{value}");
            let tie = other != code && distance(code).to_bits() == distance(other).to_bits();
            assert!(!tie || code.is_multiple_of(2), "{value}");
        }
        assert_eq!(usize::from(encode(-value)), code | 0x80);
    }

    #[test]
    fn extremes() {
        assert_eq!(encode(-0.0), 0x80);
        assert_eq!(encode(f32::from_bits(1)), 0);
        assert_eq!(encode(2f32.powi(-10)), 0);
        assert_eq!(encode(2f32.powi(-10).next_up()), 1);
        for large in [448.0, 464.0, 464.1, 480.0, 512.0, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(large), encode(-large)), (0x7E, 0xFE));
        }
        assert_eq!(encode(f32::NAN) & 0x7F, NAN_CODE);
    }
}
