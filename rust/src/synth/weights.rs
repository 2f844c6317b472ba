//! Made-up weights with the statistics that number formats care about: a heavy tail, a scale for
//! each tensor and column, and a few outlier columns.
//!
//! Random access: an element is a function of the tensor's seed, its row and its column. Only
//! IEEE basic operations and `libm` are used, so that every machine gives the same bits.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::layout::{Form, Stored, Weight};
use crate::error::{Error, Result};
use crate::model::Role;
use crate::numeric::{Encoding, Float, Level, Tile, cast_to_bf16, encode};

/// Quantiles, one for each value of 16 random bits.
const QUANTILES: usize = 1 << 16;
/// Weight of the tail in z·exp(TAIL·z²/2): kurtosis 5.5 against 3 of the normal distribution.
const TAIL: f64 = 0.1;
/// One outlier column, ×8 to ×30, for so many columns.
const COLUMNS_PER_OUTLIER: u64 = 512;
/// Step by which bias-updating training moves an expert's bias.
const BIAS_STEP: f32 = 0.001;
/// Rows of a block, so of the smallest chunk.
const BLOCK_ROWS: u64 = 128;
/// About how many BF16 bytes are generated at a time.
const CHUNK: u64 = 2 << 20;

/// The distribution and the seed that all tensors share.
pub(super) struct Generator {
    seed: u64,
    quantiles: Vec<f32>,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, quantiles: quantiles() }
    }

    fn values(&self, weight: &Weight) -> Values<'_> {
        let seed = xxh3_64_with_seed(weight.name.as_bytes(), self.seed);
        let cols = weight.cols;
        let (offset, columns) = if weight.role == Role::RouterBias {
            (0.0, vec![10.0 + 30.0 * unit(seed, 0); cols as usize])
        } else if weight.rows == 1 {
            (1.0, vec![0.02 + 0.1 * unit(seed, 0); cols as usize])
        } else {
            (0.0, column_scales(weight, seed))
        };
        Values { quantiles: &self.quantiles, seed, offset, columns }
    }
}

/// Quantiles of unit variance, built from the middle outwards: a start below the root of a
/// convex falling function, from where Newton's method never overshoots.
fn quantiles() -> Vec<f32> {
    let mut table = vec![0f32; QUANTILES];
    let (mut z, mut sum) = (0f64, 0f64);
    let mut tail = vec![0f64; QUANTILES / 2];
    for (i, value) in tail.iter_mut().enumerate().rev() {
        let p = (i as f64 + 0.5) / QUANTILES as f64;
        loop {
            let density = libm::exp(-0.5 * z * z) * 0.398_942_280_401_432_7;
            let step = (0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2) - p) / density;
            z += step;
            if step < 1e-9 {
                break;
            }
        }
        *value = z * libm::exp(0.5 * TAIL * z * z);
        sum += *value * *value;
    }
    let scale = 1.0 / libm::sqrt(2.0 * sum / QUANTILES as f64);
    for (i, value) in tail.iter().enumerate() {
        let value = (value * scale) as f32;
        (table[i], table[QUANTILES - 1 - i]) = (-value, value);
    }
    table
}

/// Standard deviation of each column: that of the tensor, by role and fan-in with some variation,
/// times that of the column.
fn column_scales(weight: &Weight, seed: u64) -> Vec<f32> {
    let fan_in = libm::sqrtf(weight.cols as f32);
    let base = match weight.role {
        Role::Embedding | Role::MtpEmbedding => 0.02,
        Role::AttentionDense | Role::MlpDown | Role::ExpertDown | Role::SharedDown => 0.6 / fan_in,
        _ => 1.0 / fan_in,
    };
    let base = base * (0.7 + 0.7 * unit(seed, 0));
    let column = seed ^ 0x636f_6c75_6d6e;
    let mut scales: Vec<f32> =
        (0..weight.cols).map(|c| base * (0.75 + 0.5 * unit(column, c))).collect();
    let outlier = seed ^ 0x6f75_746c_6965;
    for i in 0..weight.cols.div_ceil(COLUMNS_PER_OUTLIER) {
        let place = word(outlier, 2 * i) % weight.cols;
        scales[place as usize] = base * (8.0 + 22.0 * unit(outlier, 2 * i + 1));
    }
    scales
}

/// Number `index` of the random sequence of `seed` (`SplitMix64`).
#[inline]
fn word(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The same as a number in [0, 1).
fn unit(seed: u64, index: u64) -> f32 {
    (word(seed, index) >> 40) as f32 / 16_777_216.0
}

/// The elements of one tensor: `offset + quantile · columns[c]`.
struct Values<'g> {
    quantiles: &'g [f32],
    seed: u64,
    offset: f32,
    columns: Vec<f32>,
}

impl Values<'_> {
    /// The elements of `row` as F32, little-endian, four from one random number.
    fn row(&self, row: u64, out: &mut [u8]) {
        let first = row * (self.columns.len() as u64).div_ceil(4);
        let element = |bits: u64, lane: usize, column: f32| {
            let quantile = self.quantiles[usize::from((bits >> (16 * lane)) as u16)];
            (self.offset + quantile * column).to_le_bytes()
        };
        let (fours, rest) = out.as_chunks_mut::<4>().0.as_chunks_mut::<4>();
        let (columns, last_columns) = self.columns.as_chunks::<4>();
        for (i, (out, columns)) in (first..).zip(fours.iter_mut().zip(columns)) {
            let bits = word(self.seed, i);
            for lane in 0..4 {
                out[lane] = element(bits, lane, columns[lane]);
            }
        }
        let bits = word(self.seed, first + columns.len() as u64);
        for (lane, (out, column)) in rest.iter_mut().zip(last_columns).enumerate() {
            *out = element(bits, lane, *column);
        }
    }

    /// Rows from `first` on as BF16, as many as `out` holds, each by way of `row` as F32.
    fn bf16(&self, level: Level, first: u64, row: &mut Vec<u8>, out: &mut [u8]) {
        row.resize(4 * self.columns.len(), 0);
        for (i, out) in (first..).zip(out.chunks_exact_mut(2 * self.columns.len())) {
            self.row(i, row);
            cast_to_bf16(level, row, Float::F32, out);
        }
    }

    /// Router bias, F32: whole steps whose sum is zero.
    fn bias(&self, out: &mut Vec<u8>) {
        out.resize(4 * self.columns.len(), 0);
        self.row(0, out);
        let steps =
            |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as i64;
        let (sum, count) = out.chunks_exact(4).fold((0, 0), |(s, n), v| (s + steps(v), n + 1));
        let (each, rest) = (i64::div_euclid(sum, count), i64::rem_euclid(sum, count));
        for (i, bytes) in (0..).zip(out.chunks_exact_mut(4)) {
            let balanced = steps(bytes) - each - i64::from(i < rest);
            bytes.copy_from_slice(&(balanced as f32 * BIAS_STEP).to_le_bytes());
        }
    }
}

/// Makes the bytes of stored tensors, chunk by chunk; one for each thread.
pub(super) struct Producer<'g> {
    generator: &'g Generator,
    level: Level,
    row: Vec<u8>,
    values: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl<'g> Producer<'g> {
    pub(super) fn new(generator: &'g Generator) -> Self {
        Self {
            generator,
            level: Level::detect(),
            row: Vec::new(),
            values: Vec::new(),
            codes: Vec::new(),
            scales: Vec::new(),
        }
    }

    /// Passes the bytes of `tensor` to `sink`, front to back.
    pub(super) fn produce(
        &mut self,
        tensor: &Stored,
        sink: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let weight = &tensor.weight;
        let values = self.generator.values(weight);
        let encoding = match tensor.form {
            Form::F32 => {
                values.bias(&mut self.values);
                return sink(&self.values);
            }
            Form::Bf16 => None,
            Form::Codes(encoding) | Form::Scales(encoding) => Some(encoding),
        };
        let blocks = (CHUNK / (2 * weight.cols * BLOCK_ROWS)).max(1);
        for first in (0..weight.rows).step_by((blocks * BLOCK_ROWS) as usize) {
            let rows = (blocks * BLOCK_ROWS).min(weight.rows - first);
            self.values.resize((2 * rows * weight.cols) as usize, 0);
            values.bf16(self.level, first, &mut self.row, &mut self.values);
            if let Some(encoding) = &encoding {
                self.encode(rows as usize, weight, encoding)?;
            }
            match tensor.form {
                Form::Codes(_) => sink(&self.codes)?,
                Form::Scales(_) | Form::Bf16 | Form::F32 => sink(&self.values)?,
            }
        }
        Ok(())
    }

    /// Encodes the chunk in `values`: codes to `codes`, scales as bytes back to `values`.
    fn encode(&mut self, rows: usize, weight: &Weight, encoding: &Encoding) -> Result<()> {
        let cols = weight.cols as usize;
        let (high, wide) = encoding.grid.scale_shape(rows, cols);
        self.codes.resize(rows * cols, 0);
        self.scales.resize(high * wide, 0.0);
        let tile = Tile::packed(&self.values, rows, cols, 2);
        encode(self.level, &tile, Float::Bf16, encoding, &mut self.codes, &mut self.scales)
            .map_err(|e| Error::internal(e.to_string()).tensor(&*weight.name))?;
        self.values.clear();
        self.values.extend(self.scales.iter().flat_map(|s| s.to_le_bytes()));
        Ok(())
    }
}
