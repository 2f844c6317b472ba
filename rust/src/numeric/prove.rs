//! What has to hold of encoded bytes, whoever encoded them.
//!
//! Two laws, for every dialect. Encoding the decoded BF16 weights with the stored scales gives the same codes. Encoding
//! them afresh and decoding again gives the same BF16 weights. (Fresh *codes* may differ: a power-of-two scale halves
//! when a block's maximum has been rounded down to 224 steps.) The second law presupposes a BF16 source: where a
//! maximum had more significant bits than BF16, a fresh scale differs in them.
//!
//! The laws look at codes and scales alone. They hold of most finite codes, so they do not show that a code is the right
//! one for its weight: that takes the source.

use super::float::Float;
use super::fp8::{Encoding, decode, encode, encode_with_scales};
use super::level::Level;
use super::tile::Tile;

/// The law that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Law {
    /// Code times scale is a BF16 number.
    #[error("it does not decode to a finite BF16 value")]
    Finite,
    /// Decoded weights encode to the same code with the stored scale.
    #[error("its decoded value encodes to another code with the same scale")]
    SameCode,
    /// A second trip through both formats decodes to the same BF16 value.
    #[error("a second encoding decodes to another value")]
    SameValue,
}

/// The first code, row-major within its stripe, for which a law does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("code {code:#04x} at [{row}, {col}]: {law}")]
pub struct Unproven {
    /// Row within the tile.
    pub row: usize,
    /// Column within the tile.
    pub col: usize,
    /// The code there.
    pub code: u8,
    /// What does not hold.
    pub law: Law,
}

/// Buffers of [`prove`] for one stripe, to be reused: at most 6 bytes for each of its elements.
#[derive(Debug, Default)]
pub struct Scratch {
    first: Vec<u8>,
    second: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

/// Checks both laws on a tile of codes encoded from `float` elements, stripe by stripe.
///
/// # Errors
/// The first code found for which a law does not hold.
///
/// # Panics
/// As [`encode`].
pub fn prove(
    level: Level,
    q: &Tile<'_>,
    float: Float,
    encoding: &Encoding,
    scales: &[f32],
    scratch: &mut Scratch,
) -> Result<(), Unproven> {
    q.check(1);
    encoding.grid.check(q, scales.len());
    let (high, wide) = encoding.grid.block(q.cols);
    let blocks = q.cols.div_ceil(wide);
    for first in (0..q.rows).step_by(encoding.grid.stripe_rows()) {
        let stripe = q.slice(first, encoding.grid.stripe_rows().min(q.rows - first));
        let scales = &scales[first / high * blocks..][..stripe.rows.div_ceil(high) * blocks];
        scratch
            .prove_stripe(level, &stripe, float, encoding, scales)
            .map_err(|unproven| Unproven { row: unproven.row + first, ..unproven })?;
    }
    Ok(())
}

impl Scratch {
    fn prove_stripe(
        &mut self,
        level: Level,
        q: &Tile<'_>,
        float: Float,
        encoding: &Encoding,
        scales: &[f32],
    ) -> Result<(), Unproven> {
        let grid = encoding.grid;
        let elements = q.rows * q.cols;
        self.first.resize(elements * 2, 0);
        self.second.resize(elements * 2, 0);
        self.codes.resize(elements, 0);
        self.scales.resize(scales.len(), 0.0);
        let unproven = |row, col, law| Unproven { row, col, code: q.row(row, 1)[col], law };

        decode(level, q, grid, scales, &mut self.first);
        let decoded = Tile::packed(&self.first, q.rows, q.cols, 2);
        encode(level, &decoded, Float::Bf16, encoding, &mut self.codes, &mut self.scales)
            .map_err(|found| unproven(found.row, found.col, Law::Finite))?;

        if float == Float::Bf16 {
            let again = Tile::packed(&self.codes, q.rows, q.cols, 1);
            decode(level, &again, grid, &self.scales, &mut self.second);
            if let Some((row, col)) = first_difference(&decoded, &self.second, 2) {
                return Err(unproven(row, col, Law::SameValue));
            }
        }

        encode_with_scales(
            level,
            &decoded,
            Float::Bf16,
            grid,
            encoding.quotient,
            scales,
            &mut self.codes,
        );
        match first_difference(q, &self.codes, 1) {
            Some((row, col)) => Err(unproven(row, col, Law::SameCode)),
            None => Ok(()),
        }
    }
}

/// Row and column of the first element, `size` bytes each, in which a tile differs from `packed` rows.
fn first_difference(tile: &Tile<'_>, packed: &[u8], size: usize) -> Option<(usize, usize)> {
    let width = tile.cols * size;
    (0..tile.rows).find_map(|row| {
        let (ours, theirs) = (tile.row(row, size), &packed[row * width..][..width]);
        if ours == theirs {
            return None;
        }
        let byte = ours.iter().zip(theirs).position(|(ours, theirs)| ours != theirs)?;
        Some((row, byte / size))
    })
}
