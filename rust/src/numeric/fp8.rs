//! E4M3 with one scale a block or a channel: the entry points, and the definition that [`Level::Scalar`] runs.

use serde::{Deserialize, Serialize};

use super::float::{Float, bf16_to_f32, f32_to_bf16};
use super::kernel;
use super::level::Level;
use super::scale::ScaleRule;
use super::tile::{Grid, NonFinite, Tile};
use super::{e4m3, lanes};

/// What is rounded to E4M3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quotient {
    /// The f32 quotient of weight and scale.
    F32,
    /// The same rounded to BF16 first, as where both are BF16 tensors on a CPU.
    Bf16,
}

/// All that decides the bytes of an encoded tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoding {
    /// Which elements share a scale.
    pub grid: Grid,
    /// How a scale is computed.
    pub rule: ScaleRule,
    /// What is rounded to E4M3.
    pub quotient: Quotient,
}

/// Runs `$call` with `$source` standing for the element type of a [`Float`].
macro_rules! with_source {
    ($float:expr, $source:ident => $call:expr) => {
        match $float {
            Float::Bf16 => {
                type $source = lanes::Bf16;
                $call
            }
            Float::F16 => {
                type $source = lanes::F16;
                $call
            }
            Float::F32 => {
                type $source = lanes::F32;
                $call
            }
        }
    };
}
pub(super) use with_source;

/// Encodes a tile of `float` elements into E4M3 codes `q` [rows, cols] and `scales` [`Grid::scale_shape`], row-major.
///
/// # Errors
/// The first NaN or infinity of the tile; `q` and `scales` are then unspecified.
///
/// # Panics
/// If a slice does not have the size that the tile asks for, or this CPU cannot run `level`.
pub fn encode(
    level: Level,
    input: &Tile<'_>,
    float: Float,
    encoding: &Encoding,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<(), NonFinite> {
    check_encode(input, float, encoding.grid, scales.len(), q.len());
    if level == Level::Scalar {
        define_scales(input, float, encoding, scales)?;
        define_codes(input, float, encoding.grid, encoding.quotient, scales, q);
        return Ok(());
    }
    with_source!(float, S => kernel::encode::<S>(level, input, encoding, q, scales))
}

/// Encodes a tile with given scales, all of them positive and finite. Infinities saturate; NaN has no defined code.
///
/// # Panics
/// As [`encode`].
pub fn encode_with_scales(
    level: Level,
    input: &Tile<'_>,
    float: Float,
    grid: Grid,
    quotient: Quotient,
    scales: &[f32],
    q: &mut [u8],
) {
    check_encode(input, float, grid, scales.len(), q.len());
    if level == Level::Scalar {
        define_codes(input, float, grid, quotient, scales, q);
    } else {
        with_source!(float, S => kernel::encode_with_scales::<S>(level, input, grid, quotient, scales, q));
    }
}

/// Raises `maxima`, one a block of each column of blocks, to the largest magnitudes of a tile that lies in one row of
/// blocks. From the maxima of a whole block [`ScaleRule::scale`] makes the scale that [`encode`] would give it.
///
/// # Errors
/// The first NaN or infinity of the tile; `maxima` are then unspecified.
///
/// # Panics
/// As [`encode`].
pub fn raise_maxima(
    level: Level,
    input: &Tile<'_>,
    float: Float,
    grid: Grid,
    maxima: &mut [f32],
) -> Result<(), NonFinite> {
    input.check(float.bytes());
    grid.check(input, maxima.len());
    assert!(input.rows <= grid.block(input.cols).0, "{} rows in one row of blocks", input.rows);
    if level == Level::Scalar {
        return define_maxima(input, float, grid, maxima);
    }
    with_source!(float, S => kernel::raise_maxima::<S>(level, input, grid, maxima))
}

/// Decodes a tile of E4M3 codes into BF16, little-endian, row-major [rows, cols]: the f32 product of code and scale,
/// rounded to BF16. A NaN code gives `0x7FC0` with its sign.
///
/// # Panics
/// As [`encode`].
pub fn decode(level: Level, q: &Tile<'_>, grid: Grid, scales: &[f32], out: &mut [u8]) {
    q.check(1);
    grid.check(q, scales.len());
    assert_eq!(out.len(), q.rows * q.cols * 2, "output of {}×{} BF16 elements", q.rows, q.cols);
    if level == Level::Scalar {
        for (element, out) in elements(q, 1, grid).zip(out.as_chunks_mut().0) {
            let value = e4m3::decode(element.bytes[0]) * scales[element.block];
            *out = f32_to_bf16(value).to_le_bytes();
        }
    } else {
        kernel::decode(level, q, grid, scales, out);
    }
}

fn check_encode(input: &Tile<'_>, float: Float, grid: Grid, scales: usize, q: usize) {
    input.check(float.bytes());
    grid.check(input, scales);
    assert_eq!(q, input.rows * input.cols, "output of {}×{} codes", input.rows, input.cols);
}

/// An element, and where it is.
struct Element<'a> {
    row: usize,
    col: usize,
    block: usize,
    bytes: &'a [u8],
}

/// Every element of a tile, `size` bytes each, row-major.
fn elements<'a>(tile: &Tile<'a>, size: usize, grid: Grid) -> impl Iterator<Item = Element<'a>> {
    let (high, wide) = grid.block(tile.cols);
    let blocks = tile.cols.div_ceil(wide);
    let tile = *tile;
    (0..tile.rows).flat_map(move |row| {
        let first = row / high * blocks;
        let columns = tile.row(row, size).chunks_exact(size).enumerate();
        columns.map(move |(col, bytes)| Element { row, col, block: first + col / wide, bytes })
    })
}

fn define_scales(
    input: &Tile<'_>,
    float: Float,
    encoding: &Encoding,
    scales: &mut [f32],
) -> Result<(), NonFinite> {
    scales.fill(0.0);
    define_maxima(input, float, encoding.grid, scales)?;
    for scale in scales {
        *scale = encoding.rule.scale(*scale);
    }
    Ok(())
}

fn define_maxima(
    input: &Tile<'_>,
    float: Float,
    grid: Grid,
    maxima: &mut [f32],
) -> Result<(), NonFinite> {
    for Element { row, col, block, bytes } in elements(input, float.bytes(), grid) {
        let value = float.read(bytes);
        if !value.is_finite() {
            return Err(NonFinite { row, col, value });
        }
        maxima[block] = maxima[block].max(value.abs());
    }
    Ok(())
}

fn define_codes(
    input: &Tile<'_>,
    float: Float,
    grid: Grid,
    quotient: Quotient,
    scales: &[f32],
    q: &mut [u8],
) {
    for (element, code) in elements(input, float.bytes(), grid).zip(q) {
        let divided = float.read(element.bytes) / scales[element.block];
        *code = match quotient {
            Quotient::F32 => e4m3::encode(divided),
            Quotient::Bf16 => e4m3::encode(bf16_to_f32(f32_to_bf16(divided))),
        };
    }
}

/// The first element of a tile that is NaN or infinite.
pub(super) fn find_non_finite(tile: &Tile<'_>, float: Float) -> Option<NonFinite> {
    elements(tile, float.bytes(), Grid::Channel)
        .map(|Element { row, col, bytes, .. }| NonFinite { row, col, value: float.read(bytes) })
        .find(|element| !element.value.is_finite())
}
