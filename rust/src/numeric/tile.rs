//! Where the elements are: tiles of a matrix, and the grid of blocks that share a scale.

use serde::{Deserialize, Serialize};

/// Rows whose figures are summed and proved together; the block height of every published block format.
pub(super) const STRIPE_ROWS: usize = 128;

/// A run of rows of a row-major matrix, or a column slice of one. Alignment never matters.
///
/// The first row and the first column lie on a block boundary. Edge blocks hold existing elements only, so a tile that
/// is not the last of its matrix has a whole number of blocks.
#[derive(Clone, Copy, Debug)]
pub struct Tile<'a> {
    /// Starts at the first element; may end right after the last one.
    pub bytes: &'a [u8],
    /// Rows in the tile.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Bytes between the starts of two rows.
    pub stride: usize,
}

impl<'a> Tile<'a> {
    /// A tile without gaps between rows, of elements of `size` bytes.
    pub const fn packed(bytes: &'a [u8], rows: usize, cols: usize, size: usize) -> Self {
        Self { bytes, rows, cols, stride: cols * size }
    }

    /// Bytes of a row of elements of `size` bytes.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, size: usize) -> &'a [u8] {
        &self.bytes[row * self.stride..][..self.cols * size]
    }

    /// `count` rows from row `first` on.
    #[inline(always)]
    pub(super) fn slice(&self, first: usize, count: usize) -> Self {
        let start = (first * self.stride).min(self.bytes.len());
        Self { bytes: &self.bytes[start..], rows: count, ..*self }
    }

    /// Every kernel's precondition, checked once so that the message names it.
    pub(super) fn check(&self, size: usize) {
        let span = self.cols * size;
        if self.rows > 0 && span > 0 {
            assert!(self.stride >= span, "rows of {span} bytes overlap at stride {}", self.stride);
            let needed = (self.rows - 1) * self.stride + span;
            assert!(
                self.bytes.len() >= needed,
                "tile needs {needed} bytes, has {}",
                self.bytes.len()
            );
        }
    }
}

/// Which elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grid {
    /// Blocks of `rows` × `cols`, counted from (0, 0).
    Block {
        /// Block height.
        rows: usize,
        /// Block width.
        cols: usize,
    },
    /// Whole rows, that is output channels. A tile then holds whole rows, any number of them.
    Channel,
}

impl Grid {
    /// Shape of the scale tensor of a `rows` × `cols` matrix.
    pub const fn scale_shape(self, rows: usize, cols: usize) -> (usize, usize) {
        let (block_rows, block_cols) = self.block(cols);
        (rows.div_ceil(block_rows), cols.div_ceil(block_cols))
    }

    /// Height and width of a block in a matrix of `cols` columns; a channel is a block one row high.
    pub(super) const fn block(self, cols: usize) -> (usize, usize) {
        match self {
            Self::Block { rows, cols } => (rows, cols),
            Self::Channel if cols == 0 => (1, 1),
            Self::Channel => (1, cols),
        }
    }

    /// Rows that are summed and proved together: always whole blocks.
    pub(super) const fn stripe_rows(self) -> usize {
        match self {
            Self::Block { rows, .. } => rows,
            Self::Channel => STRIPE_ROWS,
        }
    }

    /// # Panics
    /// If there is not one scale a block.
    pub(super) fn check(self, tile: &Tile<'_>, scales: usize) {
        let (high, wide) = self.scale_shape(tile.rows, tile.cols);
        assert_eq!(
            scales,
            high * wide,
            "{}×{} elements need {high}×{wide} scales",
            tile.rows,
            tile.cols
        );
    }
}

/// The first NaN or infinity of a tile in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("non-finite value {value} at [{row}, {col}]")]
pub struct NonFinite {
    /// Row within the tile.
    pub row: usize,
    /// Column within the tile.
    pub col: usize,
    /// The value found.
    pub value: f32,
}
