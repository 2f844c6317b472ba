//! The fast bodies: row-order sweeps over a stripe of blocks, compiled once per instruction set.
//!
//! A stripe is one block high and as wide as the matrix: memory is fastest where whole rows follow one another. Each
//! stripe is encoded, its maxima known, while the next is read.

use std::marker::PhantomData;
use std::ops::Range;

use super::fp8::{Encoding, Quotient, find_non_finite};
use super::lanes::{self, Divisor, Source};
use super::level::{Kernel, Level, dispatch};
use super::tile::{Grid, NonFinite, Tile};

/// Elements handled as one fixed-size array, so that the compiler knows the trip count.
const RUN: usize = 128;

/// [`super::encode`] for every level but scalar.
pub(super) fn encode<S: Source>(
    level: Level,
    input: &Tile<'_>,
    encoding: &Encoding,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<(), NonFinite> {
    dispatch(level, Encode::<S> { input, encoding, q, scales, source: PhantomData })
}

/// [`super::encode_with_scales`] for every level but scalar.
pub(super) fn encode_with_scales<S: Source>(
    level: Level,
    input: &Tile<'_>,
    grid: Grid,
    quotient: Quotient,
    scales: &[f32],
    q: &mut [u8],
) {
    dispatch(
        level,
        EncodeWithScales::<S> { input, grid, quotient, scales, q, source: PhantomData },
    );
}

/// [`super::raise_maxima`] for every level but scalar.
pub(super) fn raise_maxima<S: Source>(
    level: Level,
    input: &Tile<'_>,
    grid: Grid,
    maxima: &mut [f32],
) -> Result<(), NonFinite> {
    dispatch(level, RaiseMaxima::<S> { input, grid, maxima, source: PhantomData })
}

/// [`super::decode`] for every level but scalar.
pub(super) fn decode(level: Level, q: &Tile<'_>, grid: Grid, scales: &[f32], out: &mut [u8]) {
    dispatch(level, Decode { q, grid, scales, out });
}

struct Encode<'a, S> {
    input: &'a Tile<'a>,
    encoding: &'a Encoding,
    q: &'a mut [u8],
    scales: &'a mut [f32],
    source: PhantomData<S>,
}

impl<S: Source> Kernel for Encode<'_, S> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Self::Output {
        let Self { input, encoding, q, scales, .. } = self;
        let (_, wide) = encoding.grid.block(input.cols);
        let mut stripes = stripes(input, encoding.grid);
        let mut ready = Stripe::default();
        loop {
            let next = stripes.next().unwrap_or_default();
            let (done, rest) = scales.split_at_mut(ready.blocks.end);
            let maxima = &mut rest[..next.blocks.len()];
            maxima.fill(0.0);
            let ready_scales = &done[ready.blocks.clone()];
            let top = sweep::<S, FMA>(
                input,
                wide,
                encoding.quotient,
                (&next, maxima),
                (&ready, ready_scales),
                q,
            );
            if top >= S::INFINITE {
                let stripe = input.slice(next.rows.start, next.rows.len());
                let found = find_non_finite(&stripe, S::FLOAT);
                return found.map_or(Ok(()), |found| {
                    Err(NonFinite { row: found.row + next.rows.start, ..found })
                });
            }
            for scale in maxima {
                *scale = encoding.rule.scale(*scale);
            }
            if next.blocks.is_empty() {
                return Ok(());
            }
            ready = next;
        }
    }
}

struct EncodeWithScales<'a, S> {
    input: &'a Tile<'a>,
    grid: Grid,
    quotient: Quotient,
    scales: &'a [f32],
    q: &'a mut [u8],
    source: PhantomData<S>,
}

impl<S: Source> Kernel for EncodeWithScales<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { input, grid, quotient, scales, q, .. } = self;
        let (_, wide) = grid.block(input.cols);
        for ready in stripes(input, grid) {
            let scales = &scales[ready.blocks.clone()];
            sweep::<S, FMA>(
                input,
                wide,
                quotient,
                (&Stripe::default(), &mut []),
                (&ready, scales),
                q,
            );
        }
    }
}

struct RaiseMaxima<'a, S> {
    input: &'a Tile<'a>,
    grid: Grid,
    maxima: &'a mut [f32],
    source: PhantomData<S>,
}

impl<S: Source> Kernel for RaiseMaxima<'_, S> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run<const FMA: bool>(self) -> Self::Output {
        let Self { input, grid, maxima, .. } = self;
        let (_, wide) = grid.block(input.cols);
        let mut top = 0;
        for row in 0..input.rows {
            let weights = S::split(input.row(row, S::FLOAT.bytes()));
            for (weights, largest) in weights.chunks(wide).zip(&mut *maxima) {
                let bits = largest_bits::<S>(weights);
                top = bits.max(top);
                *largest = S::widen(bits).max(*largest);
            }
        }
        let found = (top >= S::INFINITE).then(|| find_non_finite(input, S::FLOAT)).flatten();
        found.map_or(Ok(()), Err)
    }
}

struct Decode<'a> {
    q: &'a Tile<'a>,
    grid: Grid,
    scales: &'a [f32],
    out: &'a mut [u8],
}

impl Kernel for Decode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { q, grid, scales, out } = self;
        let (high, wide) = grid.block(q.cols);
        let blocks = q.cols.div_ceil(wide);
        let (out, _) = out.as_chunks_mut::<2>();
        for row in 0..q.rows {
            let scales = &scales[row / high * blocks..][..blocks];
            let out = out[row * q.cols..][..q.cols].chunks_mut(wide);
            for ((codes, out), &scale) in q.row(row, 1).chunks(wide).zip(out).zip(scales) {
                map_runs(codes, out, |code| lanes::decode_to_bf16(code, scale).to_le_bytes());
            }
        }
    }
}

/// Rows that share scales.
#[derive(Clone, Default)]
struct Stripe {
    rows: Range<usize>,
    /// Positions of its blocks in the scale tensor.
    blocks: Range<usize>,
}

impl Stripe {
    /// Its `index`-th row; nothing past the last.
    #[inline(always)]
    fn row<'a, S: Source>(&self, input: &Tile<'a>, index: usize) -> &'a [S::Raw] {
        if index < self.rows.len() {
            S::split(input.row(self.rows.start + index, S::FLOAT.bytes()))
        } else {
            &[]
        }
    }
}

/// The stripes of a tile, in the order of their scales.
fn stripes(input: &Tile<'_>, grid: Grid) -> impl Iterator<Item = Stripe> {
    let (rows, cols) = (input.rows, input.cols);
    let (high, wide) = grid.block(cols);
    let blocks = cols.div_ceil(wide);
    (0..rows).step_by(high).enumerate().map(move |(stripe, row)| Stripe {
        rows: row..rows.min(row + high),
        blocks: stripe * blocks..(stripe + 1) * blocks,
    })
}

/// Encodes the stripe that has its scales while it reads the next one for its maxima, block by block in row order:
/// reading waits for memory, encoding for the vector units. Returns the largest magnitude bits read.
#[inline(always)]
fn sweep<S: Source, const FMA: bool>(
    input: &Tile<'_>,
    wide: usize,
    quotient: Quotient,
    (next, maxima): (&Stripe, &mut [f32]),
    (ready, scales): (&Stripe, &[f32]),
    q: &mut [u8],
) -> u32 {
    let mut top = 0;
    let steps = next.blocks.len().max(ready.blocks.len());
    for row in 0..next.rows.len().max(ready.rows.len()) {
        let mut reading = next.row::<S>(input, row).chunks(wide).zip(&mut *maxima);
        let weights = ready.row::<S>(input, row);
        let first = ((ready.rows.start + row) * input.cols).min(q.len());
        let codes = &mut q[first..][..weights.len()];
        let mut encoding = weights.chunks(wide).zip(codes.chunks_mut(wide)).zip(scales);
        for _ in 0..steps {
            if let Some((weights, largest)) = reading.next() {
                let bits = largest_bits::<S>(weights);
                top = bits.max(top);
                *largest = S::widen(bits).max(*largest);
            }
            if let Some(((weights, codes), &scale)) = encoding.next() {
                encode_run::<S, FMA>(weights, codes, scale, quotient);
            }
        }
    }
    top
}

#[inline(always)]
fn largest_bits<S: Source>(weights: &[S::Raw]) -> u32 {
    let (runs, rest) = weights.as_chunks::<RUN>();
    runs.iter().fold(S::largest(rest), |bits, run| S::largest(run).max(bits))
}

#[inline(always)]
fn encode_run<S: Source, const FMA: bool>(
    weights: &[S::Raw],
    codes: &mut [u8],
    scale: f32,
    quotient: Quotient,
) {
    let divisor = Divisor::new::<FMA>(scale);
    let reciprocal = FMA && S::SHORT && divisor.allows_reciprocal();
    match (quotient, reciprocal) {
        (Quotient::F32, true) => {
            map_runs(weights, codes, |raw| code::<S, true, false>(raw, divisor));
        }
        (Quotient::F32, false) => {
            map_runs(weights, codes, |raw| code::<S, false, false>(raw, divisor));
        }
        (Quotient::Bf16, true) => {
            map_runs(weights, codes, |raw| code::<S, true, true>(raw, divisor));
        }
        (Quotient::Bf16, false) => {
            map_runs(weights, codes, |raw| code::<S, false, true>(raw, divisor));
        }
    }
}

#[inline(always)]
fn code<S: Source, const RECIPROCAL: bool, const VIA_BF16: bool>(
    raw: S::Raw,
    divisor: Divisor,
) -> u8 {
    let value = S::widen(S::bits(raw));
    let quotient = divisor.quotient::<RECIPROCAL>(value.abs());
    let rounded =
        if VIA_BF16 { f32::from_bits(lanes::round_to_bf16(quotient) << 16) } else { quotient };
    let sign = (value.to_bits() >> 24) & 0x80;
    (lanes::e4m3(rounded) | sign) as u8
}

/// `output[i] = convert(input[i])`, in fixed-size runs as far as they go.
#[inline(always)]
fn map_runs<A: Copy, B>(input: &[A], output: &mut [B], convert: impl Fn(A) -> B + Copy) {
    let (runs, rest) = input.as_chunks::<RUN>();
    let (out_runs, out_rest) = output.as_chunks_mut::<RUN>();
    for (run, out) in runs.iter().zip(out_runs) {
        map(run, out, convert);
    }
    map(rest, out_rest, convert);
}

#[inline(always)]
fn map<A: Copy, B>(input: &[A], output: &mut [B], convert: impl Fn(A) -> B) {
    for (&element, out) in input.iter().zip(output) {
        *out = convert(element);
    }
}
