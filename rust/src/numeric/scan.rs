//! A look at stored numbers without decoding them: NaN and infinity, and zeros.

use crate::dtype::Dtype;

/// Bytes that are judged together when runs of zeros are looked for.
pub const SCAN_PAGE: usize = 4096;

/// What a scan of part of a tensor saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Element of the first NaN or infinity, counted from the start of the part.
    pub non_finite: Option<u64>,
    /// Whether any byte is not zero (negative zeros count as numbers).
    pub any_set: bool,
}

/// Scans a whole number of elements, little-endian; dtypes without NaN are only looked at for zeros.
pub fn scan(bytes: &[u8], dtype: Dtype) -> Scan {
    let any_set = bytes.iter().fold(0, |all, byte| all | byte) != 0;
    let non_finite = if any_set { first_non_finite(bytes, dtype) } else { None };
    Scan { non_finite, any_set }
}

/// Generates the search for one width: magnitudes at or above `$least` are NaN or infinity. The
/// largest magnitude of a chunk is found without branches; only a chunk that has one is searched.
macro_rules! search {
    ($bytes:expr, $int:ty, $least:expr) => {{
        const WIDTH: usize = size_of::<$int>();
        const CHUNK: usize = 4096;
        let magnitude = |raw: &[u8; WIDTH]| <$int>::from_le_bytes(*raw) & <$int>::MAX;
        let elements = $bytes.as_chunks::<WIDTH>().0;
        elements.chunks(CHUNK).enumerate().find_map(|(n, chunk)| {
            let largest = chunk.iter().fold(0, |most, raw| magnitude(raw).max(most));
            if largest < $least {
                return None;
            }
            let at = chunk.iter().position(|raw| magnitude(raw) >= $least)?;
            Some((n * CHUNK + at) as u64)
        })
    }};
}

fn first_non_finite(bytes: &[u8], dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::BF16 => search!(bytes, i16, 0x7F80),
        Dtype::F16 => search!(bytes, i16, 0x7C00),
        Dtype::F32 => search!(bytes, i32, 0x7F80_0000),
        Dtype::F64 => search!(bytes, i64, 0x7FF0_0000_0000_0000),
        Dtype::F8E4M3 => search!(bytes, i8, 0x7F),
        Dtype::F8E5M2 => search!(bytes, i8, 0x7C),
        Dtype::F8E8M0 => bytes.iter().position(|b| *b == 0xFF).map(|i| i as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern of a narrow type against its own definition, alone and behind 5,000 others.
    #[test]
    fn every_pattern_is_judged_as_its_float_is() {
        let pad = |raw: &[u8]| [1u8.to_le_bytes().repeat(5000 * raw.len()), raw.to_vec()].concat();
        for bits in 0..=u16::MAX {
            let raw = bits.to_le_bytes();
            for (dtype, finite) in [
                (Dtype::BF16, f32::from_bits(u32::from(bits) << 16).is_finite()),
                (Dtype::F16, half::f16::from_bits(bits).is_finite()),
                (Dtype::U16, true),
            ] {
                assert_eq!(
                    scan(&raw, dtype).non_finite,
                    (!finite).then_some(0),
                    "{dtype} {bits:x}"
                );
            }
        }
        for bits in [0x7F80u16, 0x7FC0, 0xFF80, 0xFFFF] {
            assert_eq!(scan(&pad(&bits.to_le_bytes()), Dtype::BF16).non_finite, Some(5000));
        }
        for bits in 0..=u8::MAX {
            let (e4m3, e5m2) = (bits & 0x7F == 0x7F, bits & 0x7F >= 0x7C);
            assert_eq!(scan(&[bits], Dtype::F8E4M3).non_finite.is_some(), e4m3);
            assert_eq!(scan(&[bits], Dtype::F8E5M2).non_finite.is_some(), e5m2);
            assert_eq!(scan(&[bits], Dtype::F8E8M0).non_finite.is_some(), bits == 0xFF);
        }
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(scan(&pad(&value.to_le_bytes()), Dtype::F32).non_finite, Some(5000));
        }
        assert_eq!(scan(&f64::NAN.to_le_bytes(), Dtype::F64).non_finite, Some(0));
    }

    #[test]
    fn zeros_are_seen() {
        assert!(!scan(&[0; 5000], Dtype::BF16).any_set);
        assert!(scan(&[0, 0x80], Dtype::BF16).any_set);
        assert!(!scan(&[], Dtype::BF16).any_set);
    }
}
