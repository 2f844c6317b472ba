//! How far an encoded tensor is from its source.

use serde::{Deserialize, Serialize};

use super::e4m3;
use super::float::Float;
use super::fp8::with_source;
use super::lanes::{self, Source};
use super::level::{Kernel, Level, dispatch};
use super::tile::{Grid, Tile};

/// Sums over pairs of a weight `w` and `d`, its code times its scale in f32.
///
/// One is measured a stripe; merging them in the order of the stripes gives the same figures however many a call had.
/// Sums serialise as their 64 bits in hexadecimal, so that a text format neither rounds nor refuses them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorStats {
    /// Elements.
    pub elements: u64,
    /// Elements whose code is the largest, ±448. Every block has one unless its maximum was floored.
    pub saturated: u64,
    /// Elements that are not 0 and whose code times scale is.
    pub underflowed: u64,
    /// Blocks, or channels, of the scale grid.
    pub blocks: u64,
    /// Those whose weights are all 0.
    pub zero_blocks: u64,
    /// Largest |w - d|.
    #[serde(with = "bits")]
    pub max_abs_error: f64,
    /// Sum of w².
    #[serde(with = "bits")]
    pub signal: f64,
    /// Sum of (w - d)².
    #[serde(with = "bits")]
    pub noise: f64,
    /// Sum of d².
    #[serde(with = "bits")]
    pub decoded: f64,
    /// Sum of w·d.
    #[serde(with = "bits")]
    pub product: f64,
}

impl ErrorStats {
    /// Adds the figures of the next stripe, or of the next tensor.
    pub fn merge(&mut self, next: &Self) {
        self.elements += next.elements;
        self.saturated += next.saturated;
        self.underflowed += next.underflowed;
        self.blocks += next.blocks;
        self.zero_blocks += next.zero_blocks;
        self.max_abs_error = self.max_abs_error.max(next.max_abs_error);
        self.signal += next.signal;
        self.noise += next.noise;
        self.decoded += next.decoded;
        self.product += next.product;
    }

    /// Signal to quantisation noise in dB; infinite without noise. A sound E4M3 block cast is near 31.5.
    pub fn sqnr_db(&self) -> f64 {
        if self.noise == 0.0 { f64::INFINITY } else { 10.0 * (self.signal / self.noise).log10() }
    }

    /// Cosine of the angle between weights and decoded weights; 1 where both are all 0.
    pub fn cosine(&self) -> f64 {
        if self.signal == 0.0 && self.decoded == 0.0 {
            return 1.0;
        }
        self.product / (self.signal.sqrt() * self.decoded.sqrt())
    }

    /// Share of elements at ±448, 0 to 1.
    pub fn saturated_share(&self) -> f64 {
        self.share(self.saturated)
    }

    /// Share of elements that became 0, 0 to 1.
    pub fn underflowed_share(&self) -> f64 {
        self.share(self.underflowed)
    }

    fn share(&self, count: u64) -> f64 {
        count as f64 / self.elements.max(1) as f64
    }
}

mod bits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", value.to_bits()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(f64::from_bits).map_err(D::Error::custom)
    }
}

/// Measures codes `q` [rows, cols] and `scales` against the tile they were encoded from: one result for each stripe of
/// 128 rows (of one block height where blocks are not 128 high). The same at every level.
///
/// # Panics
/// If a slice does not have the size that the tile asks for, or this CPU cannot run `level`.
pub fn measure(
    level: Level,
    input: &Tile<'_>,
    float: Float,
    grid: Grid,
    q: &[u8],
    scales: &[f32],
) -> Vec<ErrorStats> {
    input.check(float.bytes());
    grid.check(input, scales.len());
    assert_eq!(q.len(), input.rows * input.cols, "{}×{} codes", input.rows, input.cols);
    let q = Tile::packed(q, input.rows, input.cols, 1);
    with_source!(float, S => dispatch(level, Measure::<S> { input, grid, q, scales, source: std::marker::PhantomData }))
}

struct Measure<'a, S> {
    input: &'a Tile<'a>,
    grid: Grid,
    q: Tile<'a>,
    scales: &'a [f32],
    source: std::marker::PhantomData<S>,
}

impl<S: Source> Kernel for Measure<'_, S> {
    type Output = Vec<ErrorStats>;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Vec<ErrorStats> {
        let Self { input, grid, q, scales, .. } = self;
        let (high, wide) = grid.block(input.cols);
        let blocks = input.cols.div_ceil(wide);
        let mut stripes = vec![ErrorStats::default(); input.rows.div_ceil(grid.stripe_rows())];
        let mut sums = vec![Sums::default(); blocks];
        for first in (0..input.rows).step_by(high) {
            let rows = first..input.rows.min(first + high);
            let scales = &scales[first / high * blocks..][..blocks];
            sums.fill(Sums::default());
            for row in rows.clone() {
                let weights = S::split(input.row(row, S::FLOAT.bytes())).chunks(wide);
                let codes = q.row(row, 1).chunks(wide);
                for (((weights, codes), &scale), sums) in
                    weights.zip(codes).zip(scales).zip(&mut sums)
                {
                    sums.add_row::<S>(weights, codes, scale);
                }
            }
            for (block, sums) in sums.iter().enumerate() {
                let cols = wide.min(input.cols - block * wide);
                stripes[first / grid.stripe_rows()].merge(&sums.finish(rows.len() * cols));
            }
        }
        stripes
    }
}

/// Independent partial sums: their number, not the width of a register, decides the order of additions.
const LANES: usize = 16;

#[derive(Clone, Copy, Default)]
struct Sums {
    saturated: [u32; LANES],
    underflowed: [u32; LANES],
    max_abs_error: [f64; LANES],
    signal: [f64; LANES],
    noise: [f64; LANES],
    decoded: [f64; LANES],
    product: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn add_row<S: Source>(&mut self, weights: &[S::Raw], codes: &[u8], scale: f32) {
        let (weight_runs, weight_rest) = weights.as_chunks::<LANES>();
        let (code_runs, code_rest) = codes.as_chunks::<LANES>();
        let mut sums = *self;
        for (weights, codes) in weight_runs.iter().zip(code_runs) {
            for lane in 0..LANES {
                sums.add::<S>(lane, weights[lane], codes[lane], scale);
            }
        }
        for (lane, (&weight, &code)) in weight_rest.iter().zip(code_rest).enumerate() {
            sums.add::<S>(lane, weight, code, scale);
        }
        *self = sums;
    }

    #[inline(always)]
    fn add<S: Source>(&mut self, lane: usize, weight: S::Raw, code: u8, scale: f32) {
        let weight = S::widen(S::bits(weight));
        let magnitude = lanes::decode_magnitude(code) * scale;
        let decoded = f32::from_bits(magnitude.to_bits() | u32::from(code & 0x80) << 24);
        self.saturated[lane] += u32::from(code & 0x7F == e4m3::MAX_CODE);
        self.underflowed[lane] += u32::from(weight != 0.0) & u32::from(decoded == 0.0);
        let (weight, decoded) = (f64::from(weight), f64::from(decoded));
        let error = weight - decoded;
        let worst = self.max_abs_error[lane];
        self.max_abs_error[lane] = if error.abs() > worst { error.abs() } else { worst };
        self.signal[lane] += weight * weight;
        self.noise[lane] += error * error;
        self.decoded[lane] += decoded * decoded;
        self.product[lane] += weight * decoded;
    }

    #[inline(always)]
    fn finish(&self, elements: usize) -> ErrorStats {
        let count = |lanes: &[u32; LANES]| lanes.iter().map(|&lane| u64::from(lane)).sum();
        let signal = self.signal.iter().sum();
        ErrorStats {
            elements: elements as u64,
            saturated: count(&self.saturated),
            underflowed: count(&self.underflowed),
            blocks: 1,
            zero_blocks: u64::from(signal == 0.0),
            max_abs_error: self.max_abs_error.iter().copied().fold(0.0, f64::max),
            signal,
            noise: self.noise.iter().sum(),
            decoded: self.decoded.iter().sum(),
            product: self.product.iter().sum(),
        }
    }
}
