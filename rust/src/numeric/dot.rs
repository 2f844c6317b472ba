//! Products of one row with many.

use super::level::{Kernel, Level, dispatch};

/// Independent partial sums: their number, not the width of a register, decides the order of additions.
const LANES: usize = 16;

/// The scalar product of `row` with each row of `others`, which have its length; the same at every level.
///
/// # Panics
/// If this CPU cannot run `level`.
pub fn dots(level: Level, row: &[f32], others: &[f32]) -> Vec<f32> {
    dispatch(level, Dots { row, others })
}

struct Dots<'a> {
    row: &'a [f32],
    others: &'a [f32],
}

impl Kernel for Dots<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Vec<f32> {
        let Self { row, others } = self;
        others.chunks_exact(row.len().max(1)).map(|other| dot(row, other)).collect()
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_runs, a_rest) = a.as_chunks::<LANES>();
    let (b_runs, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0f32; LANES];
    for (a, b) in a_runs.iter().zip(b_runs) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_gives_the_same_products() {
        for cols in [1, 15, 16, 37, 320] {
            let value = |i: usize| ((i * 7919 % 1000) as f32 - 500.0) / 256.0;
            let rows: Vec<f32> = (0..5 * cols).map(value).collect();
            let first = dots(Level::Scalar, &rows[..cols], &rows);
            for (other, found) in rows.chunks(cols).zip(&first) {
                let exact: f64 = rows[..cols]
                    .iter()
                    .zip(other)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum();
                assert!((exact - f64::from(*found)).abs() < 1e-3, "{exact} {found}");
            }
            for level in Level::available() {
                assert_eq!(dots(level, &rows[..cols], &rows), first, "{level}");
            }
        }
        assert!(dots(Level::Baseline, &[], &[]).is_empty());
    }
}
