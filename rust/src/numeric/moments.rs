//! Size and shape of a tensor's values: sums of powers, and the largest magnitude.

use super::e4m3;
use super::float::Float;
use super::fp8::with_source;
use super::lanes::{self, Source};
use super::level::{Kernel, Level, dispatch};
use super::tile::{Grid, Tile};

/// Sums over the values of part of a tensor, in f64; the same at every level. Merging parts in their
/// order gives figures that depend on where the parts end alone.
///
/// The sums mean nothing once a value was not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Values.
    pub elements: u64,
    /// Sum of x².
    pub squares: f64,
    /// Sum of x⁴.
    pub fourths: f64,
    /// Largest |x|; infinite or NaN if a value is.
    pub largest: f32,
}

impl Moments {
    /// Adds the figures of the next part.
    pub fn merge(&mut self, next: &Self) {
        self.elements += next.elements;
        self.squares += next.squares;
        self.fourths += next.fourths;
        // Order of magnitude bits is order of magnitude, NaN last.
        self.largest = f32::from_bits(self.largest.to_bits().max(next.largest.to_bits()));
    }

    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        self.largest.is_finite()
    }

    /// Root of the mean of x².
    pub fn rms(&self) -> f64 {
        (self.squares / self.elements.max(1) as f64).sqrt()
    }

    /// Mean of x⁴ over the squared mean of x²: 3 for a normal distribution around 0, more for heavy
    /// tails. `None` where all values are 0.
    pub fn kurtosis(&self) -> Option<f64> {
        let count = self.elements as f64;
        let square = self.squares / count;
        (square > 0.0).then(|| self.fourths / count / (square * square))
    }
}

/// Moments of a whole number of wide elements, little-endian.
///
/// # Panics
/// If this CPU cannot run `level`.
pub fn moments(level: Level, bytes: &[u8], float: Float) -> Moments {
    with_source!(float, S => dispatch(level, Wide::<S> { bytes, source: std::marker::PhantomData }))
}

/// Moments of codes times `scales`, rounded to f32 as a decoder does before it rounds to BF16. The
/// tile starts on a block boundary, `scales` are those of its rows.
///
/// # Panics
/// If a slice does not have the size that the tile asks for, or this CPU cannot run `level`.
pub fn moments_of_codes(level: Level, codes: &Tile<'_>, grid: Grid, scales: &[f32]) -> Moments {
    codes.check(1);
    grid.check(codes, scales.len());
    dispatch(level, Codes { tile: codes, grid, scales })
}

/// Independent partial sums: their number, not the width of a register, decides the order of additions.
const LANES: usize = 16;

/// Codes that are decoded before they are summed up: a loop of its own, which becomes vector code.
const RUN: usize = 128;

#[derive(Clone, Copy, Default)]
struct Sums {
    squares: [f64; LANES],
    fourths: [f64; LANES],
    largest: [u32; LANES],
}

impl Sums {
    #[inline(always)]
    fn add(&mut self, lane: usize, value: f32) {
        let magnitude = value.to_bits() & 0x7FFF_FFFF;
        self.largest[lane] = self.largest[lane].max(magnitude);
        let value = f64::from(value);
        let square = value * value;
        self.squares[lane] += square;
        self.fourths[lane] += square * square;
    }

    #[inline(always)]
    fn add_all(&mut self, values: &[f32]) {
        let (runs, rest) = values.as_chunks::<LANES>();
        let mut sums = *self;
        for run in runs {
            for (lane, &value) in run.iter().enumerate() {
                sums.add(lane, value);
            }
        }
        for (lane, &value) in rest.iter().enumerate() {
            sums.add(lane, value);
        }
        *self = sums;
    }

    #[inline(always)]
    fn finish(&self, elements: usize) -> Moments {
        Moments {
            elements: elements as u64,
            squares: self.squares.iter().sum(),
            fourths: self.fourths.iter().sum(),
            largest: f32::from_bits(self.largest.iter().copied().fold(0, u32::max)),
        }
    }
}

struct Wide<'a, S> {
    bytes: &'a [u8],
    source: std::marker::PhantomData<S>,
}

impl<S: Source> Kernel for Wide<'_, S> {
    type Output = Moments;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Moments {
        let elements = S::split(self.bytes);
        let (runs, rest) = elements.as_chunks::<LANES>();
        let mut sums = Sums::default();
        for run in runs {
            for (lane, &raw) in run.iter().enumerate() {
                sums.add(lane, S::widen(S::bits(raw)));
            }
        }
        for (lane, &raw) in rest.iter().enumerate() {
            sums.add(lane, S::widen(S::bits(raw)));
        }
        sums.finish(elements.len())
    }
}

struct Codes<'a> {
    tile: &'a Tile<'a>,
    grid: Grid,
    scales: &'a [f32],
}

impl Kernel for Codes<'_> {
    type Output = Moments;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Moments {
        let Self { tile, grid, scales } = self;
        let (high, wide) = grid.block(tile.cols);
        let blocks = tile.cols.div_ceil(wide);
        let mut sums = Sums::default();
        let mut values = [0f32; RUN];
        for row in 0..tile.rows {
            let scales = &scales[row / high * blocks..][..blocks];
            for (block, &scale) in tile.row(row, 1).chunks(wide).zip(scales) {
                for codes in block.chunks(RUN) {
                    for (value, &code) in values.iter_mut().zip(codes) {
                        *value = magnitude(code) * scale;
                    }
                    sums.add_all(&values[..codes.len()]);
                }
            }
        }
        sums.finish(tile.rows * tile.cols)
    }
}

/// The magnitude of a code, NaN included; signs do not matter here.
#[inline(always)]
fn magnitude(code: u8) -> f32 {
    let finite = lanes::decode_magnitude(code).to_bits();
    let nan = if code & 0x7F == e4m3::NAN_CODE { 0x7FC0_0000 } else { 0 };
    f32::from_bits(finite | nan)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, without lanes.
    fn plain(values: impl Iterator<Item = f32>) -> (u64, f64, f64, f32) {
        values.fold((0, 0.0, 0.0, 0f32), |(n, two, four, most), x| {
            let wide = f64::from(x);
            let most = if x.abs() > most || x.is_nan() { x.abs() } else { most };
            (n + 1, two + wide.powi(2), four + wide.powi(4), most)
        })
    }

    fn close(found: &Moments, (n, two, four, most): (u64, f64, f64, f32)) {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs();
        assert_eq!((found.elements, found.largest.to_bits()), (n, most.to_bits()));
        assert!(near(found.squares, two) && near(found.fourths, four), "{found:?} {two} {four}");
    }

    fn bytes(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn wide_floats_at_every_level() {
        for float in [Float::Bf16, Float::F16, Float::F32] {
            for count in [0, 1, 15, 16, 17, 4099] {
                let mut raw = bytes(count * float.bytes(), count as u32);
                // Exponents that are neither infinite nor so large that sums overflow.
                for element in raw.chunks_exact_mut(float.bytes()) {
                    element[float.bytes() - 1] &= 0xBB;
                }
                let values = raw.chunks_exact(float.bytes()).map(|e| float.read(e));
                let first = moments(Level::Scalar, &raw, float);
                close(&first, plain(values));
                for level in Level::available() {
                    assert_eq!(moments(level, &raw, float), first, "{level} {float:?} {count}");
                }
            }
        }
    }

    #[test]
    fn codes_at_every_level_and_grid() {
        let blocks = Grid::Block { rows: 128, cols: 128 };
        for (grid, rows, cols) in
            [(blocks, 128, 128), (blocks, 300, 517), (Grid::Channel, 7, 33), (blocks, 1, 1)]
        {
            let mut raw = bytes(rows * cols, 3);
            for code in &mut raw {
                *code &= 0xFB;
            }
            let (high, wide) = grid.block(cols);
            let count = rows.div_ceil(high) * cols.div_ceil(wide);
            let scales: Vec<f32> = (0..count).map(|i| 0.01 + i as f32 * 0.37).collect();
            let value = |at: usize| {
                let (row, col) = (at / cols, at % cols);
                e4m3::decode(raw[at]) * scales[row / high * cols.div_ceil(wide) + col / wide]
            };
            let tile = Tile::packed(&raw, rows, cols, 1);
            let first = moments_of_codes(Level::Scalar, &tile, grid, &scales);
            close(&first, plain((0..raw.len()).map(value)));
            for level in Level::available() {
                assert_eq!(moments_of_codes(level, &tile, grid, &scales), first, "{level}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_seen() {
        for bad in [0x7F80u16, 0xFF80, 0x7FC0, 0xFFFF] {
            let mut raw = vec![0u8; 200];
            raw[100..102].copy_from_slice(&bad.to_le_bytes());
            let mut sum = moments(Level::detect(), &[0, 0], Float::Bf16);
            sum.merge(&moments(Level::detect(), &raw, Float::Bf16));
            sum.merge(&moments(Level::detect(), &[0x80, 0x3F], Float::Bf16));
            assert!(!sum.is_finite(), "{bad:#x}");
        }
        for code in 0..=255u8 {
            let tile = Tile::packed(std::slice::from_ref(&code), 1, 1, 1);
            let found = moments_of_codes(Level::detect(), &tile, Grid::Channel, &[2.0]);
            assert_eq!(found.is_finite(), !e4m3::decode(code).is_nan(), "{code:#x}");
        }
    }

    #[test]
    fn figures_of_known_values() {
        let raw: Vec<u8> = [1f32, -1.0, 3.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let found = moments(Level::detect(), &raw, Float::F32);
        assert_eq!((found.rms(), found.largest), ((11f64 / 4.0).sqrt(), 3.0));
        assert_eq!(found.kurtosis(), Some((83.0 / 4.0) / (11.0f64 / 4.0).powi(2)));
        assert_eq!(moments(Level::detect(), &[0; 8], Float::F32).kurtosis(), None);
    }
}
