//! The rows and the bias that choose experts.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_128;

use super::Context;
use crate::catalog::{Catalog, Tensor};
use crate::error::{Error, Result};
use crate::numeric::{Float, dots};
use crate::transform::float_of;

/// Largest router in bytes; that of Ling-1T has 4 MiB a layer.
const MAX_ROUTER: u64 = 64 << 20;

/// A row and the cosine to it.
pub(super) type Closest = (u32, f64);

/// Rows of a router, one an expert.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Length of each row.
    pub norms: Vec<f64>,
    /// Mean cosine of each row to all others.
    pub mean_cosine: Vec<f64>,
    /// The same with every column at the same size over experts, so that no few large columns decide.
    pub likeness: Vec<f64>,
    /// The row that each is closest to, and the cosine to it.
    pub closest: Vec<Closest>,
    /// Elements of a row.
    pub cols: u64,
    /// First row with the same bytes, where there is one before.
    pub twins: Vec<Option<u32>>,
    /// Rows that hold NaN or infinity; nothing else is known then.
    pub broken: Vec<u32>,
}

/// A router's rows, or the bias of its experts, all bytes of which are looked at together.
pub(super) struct Whole<'a> {
    info: &'a Tensor,
    float: Float,
}

impl<'a> Whole<'a> {
    pub(super) fn new(catalog: &'a Catalog, tensor: u32) -> Result<Self> {
        let info = catalog.tensor(tensor);
        let float = float_of(info.dtype)
            .ok_or_else(|| Error::impossible(format!("a router of {} is not known", info.dtype)))?;
        if info.bytes > MAX_ROUTER {
            return Err(Error::impossible(format!("a router of more than {MAX_ROUTER} bytes")));
        }
        Ok(Self { info, float })
    }

    /// How many bytes it has.
    pub(super) fn bytes(&self) -> u64 {
        self.info.bytes
    }

    /// The bias of each expert.
    pub(super) fn bias(&self, bytes: &[u8]) -> Vec<f32> {
        values(bytes, self.float).collect()
    }

    /// Lengths and angles of the router's rows.
    pub(super) fn rows(&self, context: &Context, bytes: &[u8]) -> Result<Rows> {
        let [_, cols] = *self.info.shape else {
            return Err(Error::impossible(format!(
                "a router of shape {:?}, a row an expert is needed",
                self.info.shape
            )));
        };
        rows(context, bytes, self.float, cols)
    }
}

fn rows(context: &Context, bytes: &[u8], float: Float, cols: u64) -> Result<Rows> {
    let width = cols.max(1) as usize;
    let twins = twins(bytes.chunks(width * float.bytes()));
    let mut values: Vec<f32> = values(bytes, float).collect();
    let finite = |row: &[f32]| row.iter().all(|v| v.is_finite());
    let broken: Vec<u32> =
        values.chunks(width).zip(0..).filter(|(row, _)| !finite(row)).map(|(_, e)| e).collect();
    if !broken.is_empty() {
        return Ok(Rows { cols, broken, ..Rows::default() });
    }
    let likeness = likeness(&values, width);
    let norms = values.chunks_mut(width).map(normalise).collect();
    let (mean_cosine, closest) = angles(context, &values, width)?;
    Ok(Rows { norms, mean_cosine, likeness, closest, cols, twins, broken })
}

/// Brings a row to length 1, and returns the length it had; a row of zeros stays.
fn normalise(row: &mut [f32]) -> f64 {
    let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let inverse = if norm > 0.0 { 1.0 / norm } else { 0.0 };
    for value in row {
        *value = (f64::from(*value) * inverse) as f32;
    }
    norm
}

/// Of rows of length 1 the mean cosine to all others, and the closest with its cosine.
fn angles(context: &Context, rows: &[f32], width: usize) -> Result<(Vec<f64>, Vec<Closest>)> {
    let count = rows.len() / width;
    let mut sums = vec![0f64; count];
    let mut closest = vec![(0u32, f64::NEG_INFINITY); count];
    for (i, row) in rows.chunks(width).enumerate() {
        if context.progress.stopped() {
            return Err(Error::cancelled());
        }
        let behind = dots(context.level, row, &rows[(i + 1) * width..]);
        for (j, cosine) in (i + 1..).zip(behind) {
            let cosine = f64::from(cosine);
            for (own, other) in [(i, j), (j, i)] {
                sums[own] += cosine;
                if cosine > closest[own].1 {
                    closest[own] = (other as u32, cosine);
                }
            }
        }
    }
    let others = count.saturating_sub(1).max(1) as f64;
    Ok((sums.into_iter().map(|sum| sum / others).collect(), closest))
}

/// Mean cosine of each row to all others, columns being scaled to the same root of mean squares.
fn likeness(values: &[f32], width: usize) -> Vec<f64> {
    let rows = || values.chunks(width);
    let mut squares = vec![0f64; width];
    for row in rows() {
        for (square, value) in squares.iter_mut().zip(row) {
            *square += f64::from(*value).powi(2);
        }
    }
    let inverse = |square: &f64| if *square > 0.0 { square.sqrt().recip() } else { 0.0 };
    let factors: Vec<f64> = squares.iter().map(inverse).collect();
    let unit = |row: &[f32]| -> Vec<f64> {
        let scaled = row.iter().zip(&factors).map(|(v, factor)| f64::from(*v) * factor);
        let scaled: Vec<f64> = scaled.collect();
        let norm = scaled.iter().map(|v| v * v).sum::<f64>().sqrt();
        scaled.into_iter().map(|v| if norm > 0.0 { v / norm } else { 0.0 }).collect()
    };
    let mut sum = vec![0f64; width];
    for row in rows() {
        for (sum, value) in sum.iter_mut().zip(unit(row)) {
            *sum += value;
        }
    }
    let others = rows().len().saturating_sub(1).max(1) as f64;
    // The row's product with itself is taken out.
    let product = |row| unit(row).iter().zip(&sum).map(|(v, sum)| v * (sum - v)).sum::<f64>();
    rows().map(|row| product(row) / others).collect()
}

fn twins<'a>(rows: impl Iterator<Item = &'a [u8]>) -> Vec<Option<u32>> {
    let mut seen = HashMap::new();
    let twin = |(row, expert): (&[u8], u32)| {
        let first = *seen.entry(xxh3_128(row)).or_insert(expert);
        (first != expert).then_some(first)
    };
    rows.zip(0..).map(twin).collect()
}

fn values(bytes: &[u8], float: Float) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(float.bytes()).map(move |element| float.read(element))
}
