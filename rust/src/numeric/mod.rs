//! Number formats: pure functions from bytes to bytes, knowing nothing of files, tensors' names or models.
//!
//! An FP8 tensor is a matrix of E4M3 codes and a small matrix of scales; a weight is its code's value times the scale
//! of its block (128 × 128, or a whole row). Encoding a block takes three steps, all in f32 with IEEE rounding:
//!
//! 1. the largest magnitude of the block, which is exact, so no order of work can change a byte;
//! 2. its scale, by the [`ScaleRule`] of the dialect: a floor, a division by 448, perhaps a power of two;
//! 3. each weight divided by the scale and rounded to the nearest code, ties to even.
//!
//! Each operation exists twice. [`Level::Scalar`] is the definition: one element at a time, rounding on integer
//! significands, written to be read beside the specification of the format. The other levels share one body without
//! branches, which the compiler turns into vector code once for each instruction set; it rounds by adding a power of
//! two and shares nothing with the definition but the scale rule. The tests compare the two, over whole ranges of
//! patterns where that is possible, and [`prove`] lets a user check the laws that hold of any encoded tensor.
//!
//! Tiles ([`Tile`]) start on a block boundary. How a caller cuts a matrix into tiles changes no byte and no figure.
//!
//! - `float`, `e4m3`, `scale`: the formats themselves, defined element by element
//! - `fp8`: encode and decode; `kernel` and `lanes`: the fast bodies; `level`: which of them runs
//! - `moments`: size and shape of values; `stats`, `prove`: the error report and the laws; `cast`: plain casts to BF16;
//!   `dot`: products of rows

#![allow(
    clippy::inline_always,
    reason = "what is not inlined into a kernel is compiled for the baseline"
)]
#![allow(clippy::float_cmp, reason = "every comparison here is meant to the last bit")]

mod cast;
mod dot;
pub mod e4m3;
mod float;
mod fp8;
mod kernel;
mod lanes;
mod level;
mod moments;
mod prove;
mod scale;
mod scan;
mod stats;
#[cfg(test)]
mod tests;
mod tile;

pub use cast::cast_to_bf16;
pub use dot::dots;
pub use float::{Float, bf16_to_f32, f16_to_f32, f32_to_bf16};
pub use fp8::{Encoding, Quotient, decode, encode, encode_with_scales, raise_maxima};
pub use level::{Level, UnknownLevel};
pub use moments::{Moments, moments, moments_of_codes};
pub use prove::{Law, Scratch, Unproven, prove};
pub use scale::{
    Arith, BadScale, PowerOfTwo, ScaleDtype, ScaleRule, StoredScale, load_scales, store_scales,
};
pub use scan::{SCAN_PAGE, Scan, scan};
pub use stats::{ErrorStats, measure};
pub use tile::{Grid, NonFinite, Tile};
