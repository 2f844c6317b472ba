//! The closed set of things that happen to bytes between a source and an output.
//!
//! A step of a plan reads a source tensor as a matrix, row by row, applies one operation, and
//! hands rectangles of the result to one or more outputs. This is all the executor knows.

use serde::Serialize;

use crate::dtype::Dtype;
use crate::numeric::{Encoding, Float, Grid, ScaleDtype};

/// What a step does with its source.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Bytes as they are. Columns are `unit` bytes wide; a tensor that is copied whole is one
    /// column of single bytes, so that windows can end anywhere.
    Copy {
        /// Bytes of one column.
        unit: u32,
    },
    /// Narrow floats to F32, exactly.
    Widen {
        /// Element type of the source.
        float: Float,
    },
    /// Wide floats to E4M3 codes and their scales.
    Encode {
        /// Element type of the source.
        float: Float,
        /// Grid, scale rule and quotient.
        encoding: Encoding,
    },
    /// E4M3 codes and their scales to BF16.
    Decode {
        /// Which elements share a scale.
        grid: Grid,
        /// Scale tensor of the catalog, read whole before the step.
        scale: u32,
        /// Element type of the scale tensor.
        scale_dtype: ScaleDtype,
    },
}

impl Op {
    /// Bytes of one column of the source.
    pub fn source_unit(&self) -> u64 {
        match self {
            Self::Copy { unit } => u64::from(*unit),
            Self::Widen { float } | Self::Encode { float, .. } => float.bytes() as u64,
            Self::Decode { .. } => 1,
        }
    }

    /// Bytes of one column of the result.
    pub fn result_unit(&self) -> u64 {
        match self {
            Self::Copy { unit } => u64::from(*unit),
            Self::Widen { .. } => 4,
            Self::Encode { .. } => 1,
            Self::Decode { .. } => 2,
        }
    }

    /// The grid that ties elements together, if any.
    pub fn grid(&self) -> Option<Grid> {
        match self {
            Self::Copy { .. } | Self::Widen { .. } => None,
            Self::Encode { encoding, .. } => Some(encoding.grid),
            Self::Decode { grid, .. } => Some(*grid),
        }
    }

    /// Whether rows that are taken whole are written as they were read.
    pub fn is_copy(&self) -> bool {
        matches!(self, Self::Copy { .. })
    }

    /// Rows that must stay in one window.
    pub fn row_quantum(&self) -> u64 {
        self.grid().map_or(1, |grid| grid_steps(grid).0)
    }

    /// Word for plans and manifests.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Copy { .. } => "copy",
            Self::Widen { .. } => "widen",
            Self::Encode { .. } => "encode",
            Self::Decode { .. } => "decode",
        }
    }
}

/// Row and column steps at which a matrix with this grid may be cut; 0 columns: not at all.
pub fn grid_steps(grid: Grid) -> (u64, u64) {
    match grid {
        Grid::Block { rows, cols } => (rows as u64, cols as u64),
        Grid::Channel => (1, 0),
    }
}

/// How the kernels read a wide float, or `None` for every other dtype.
pub fn float_of(dtype: Dtype) -> Option<Float> {
    match dtype {
        Dtype::BF16 => Some(Float::Bf16),
        Dtype::F16 => Some(Float::F16),
        Dtype::F32 => Some(Float::F32),
        _ => None,
    }
}

/// How a scale tensor is read, or `None` if scales never have this dtype.
pub fn scale_dtype_of(dtype: Dtype) -> Option<ScaleDtype> {
    match dtype {
        Dtype::F32 => Some(ScaleDtype::F32),
        Dtype::BF16 => Some(ScaleDtype::Bf16),
        Dtype::F16 => Some(ScaleDtype::F16),
        Dtype::F8E8M0 | Dtype::U8 => Some(ScaleDtype::E8m0),
        _ => None,
    }
}
