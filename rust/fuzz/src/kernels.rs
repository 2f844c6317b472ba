//! Number formats: the input is a shape, a way of encoding and the bytes of a matrix.
//!
//! Every level of instructions does what the scalar one does, bit for bit, and that does what
//! [`nearest`] says, which looks for the code instead of computing it.

use std::cmp::Ordering;

use arbitrary::{Result, Unstructured};
use lingconv_core::dialect::{Dialect, ScaleKind};
use lingconv_core::dtype::Dtype;
use lingconv_core::numeric::{
    Arith, Encoding, Float, Grid, Level, Quotient, Scratch, Tile, bf16_to_f32, cast_to_bf16,
    decode, e4m3, encode, f32_to_bf16, measure, moments, moments_of_codes, prove, scan,
};

/// Most rows and columns: one block and the edge of another.
const MAX_SIDE: usize = 140;

/// Checks one input.
///
/// # Panics
/// If a law does not hold.
pub fn check(data: &[u8]) {
    // An input that is too short says nothing.
    let _ = attempt(&mut Unstructured::new(data));
}

struct Matrix {
    rows: usize,
    cols: usize,
    float: Float,
    bytes: Vec<u8>,
}

impl Matrix {
    fn tile(&self) -> Tile<'_> {
        Tile::packed(&self.bytes, self.rows, self.cols, self.float.bytes())
    }

    fn value(&self, at: usize) -> f32 {
        self.float.read(&self.bytes[at * self.float.bytes()..][..self.float.bytes()])
    }
}

#[derive(PartialEq)]
struct Encoded {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

fn attempt(choices: &mut Unstructured) -> Result<()> {
    let encoding = encoding(choices)?;
    let matrix = matrix(choices)?;
    check_values(&matrix);
    let expected = encoded(Level::Scalar, &matrix, &encoding);
    for level in Level::available() {
        let found = encoded(level, &matrix, &encoding);
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => assert!(expected == found, "{level} {encoding:?}"),
            (Err(expected), Err(found)) => assert_eq!(expected, found, "{level}"),
            _ => panic!("{level} alone refuses, or does not"),
        }
    }
    let Ok(expected) = expected else { return Ok(()) };
    check_codes(&matrix, &encoding, &expected);
    check_levels(&matrix, &encoding, &expected);
    Ok(())
}

fn encoding(choices: &mut Unstructured) -> Result<Encoding> {
    let names: Vec<&str> = Dialect::names().collect();
    let dialect = Dialect::builtin(choices.choose(&names)?);
    let role = *choices.choose(&[None, Some("expert.up")])?;
    let kind = *choices.choose(&[ScaleKind::F32, ScaleKind::Ue8m0])?;
    let arith = *choices.choose(&[Arith::Ieee, Arith::Cuda])?;
    let found = dialect.and_then(|dialect| dialect.encoding(role, kind, arith).ok());
    found.ok_or(arbitrary::Error::IncorrectFormat)
}

/// A matrix whose bytes are those of the input over and over, so that a short one fills it.
fn matrix(choices: &mut Unstructured) -> Result<Matrix> {
    let float = *choices.choose(&[Float::Bf16, Float::F16, Float::F32])?;
    let rows = choices.int_in_range(1..=MAX_SIDE)?;
    let cols = choices.int_in_range(1..=MAX_SIDE)?;
    let pattern = choices.bytes(choices.len().min(rows * cols * float.bytes()))?;
    let all = pattern.iter().copied().cycle().take(rows * cols * float.bytes());
    let bytes: Vec<u8> = all.collect();
    if bytes.is_empty() {
        return Err(arbitrary::Error::NotEnoughData);
    }
    Ok(Matrix { rows, cols, float, bytes })
}

fn encoded(
    level: Level,
    matrix: &Matrix,
    encoding: &Encoding,
) -> std::result::Result<Encoded, (usize, usize)> {
    let (high, wide) = encoding.grid.scale_shape(matrix.rows, matrix.cols);
    let mut result =
        Encoded { codes: vec![0; matrix.rows * matrix.cols], scales: vec![0.0; high * wide] };
    let Encoded { codes, scales } = &mut result;
    encode(level, &matrix.tile(), matrix.float, encoding, codes, scales)
        .map_err(|bad| (bad.row, bad.col))?;
    Ok(result)
}

/// What does not depend on an encoding: casts, sums and the search for NaN.
fn check_values(matrix: &Matrix) {
    let count = matrix.rows * matrix.cols;
    let first = (0..count).find(|at| !matrix.value(*at).is_finite());
    let dtype = match matrix.float {
        Float::Bf16 => Dtype::BF16,
        Float::F16 => Dtype::F16,
        Float::F32 => Dtype::F32,
    };
    assert_eq!(scan(&matrix.bytes, dtype).non_finite, first.map(|at| at as u64));
    let expected = moments(Level::Scalar, &matrix.bytes, matrix.float);
    let mut plain = vec![0; count * 2];
    for level in Level::available() {
        let found = moments(level, &matrix.bytes, matrix.float);
        assert!(found == expected || first.is_some(), "{level}");
        cast_to_bf16(level, &matrix.bytes, matrix.float, &mut plain);
        for (at, pair) in plain.as_chunks::<2>().0.iter().enumerate() {
            let (wide, narrow) = (matrix.value(at), u16::from_le_bytes(*pair));
            let nan = wide.is_nan() && bf16_to_f32(narrow).is_nan();
            assert!(nan || narrow == f32_to_bf16(wide), "{level} {wide:e} {narrow:#06x}");
        }
    }
}

/// The codes are the nearest ones, one by one.
fn check_codes(matrix: &Matrix, encoding: &Encoding, found: &Encoded) {
    let (high, wide) = match encoding.grid {
        Grid::Block { rows, cols } => (rows, cols),
        Grid::Channel => (1, matrix.cols),
    };
    for (at, code) in found.codes.iter().enumerate() {
        let (row, col) = (at / matrix.cols, at % matrix.cols);
        let scale = found.scales[row / high * matrix.cols.div_ceil(wide) + col / wide];
        assert!(scale > 0.0 && scale.is_finite(), "a scale of {scale}");
        let exact = matrix.value(at) / scale;
        let quotient = match encoding.quotient {
            Quotient::F32 => exact,
            Quotient::Bf16 => bf16_to_f32(f32_to_bf16(exact)),
        };
        assert_eq!(*code, nearest(quotient), "{} / {scale:e} at {row}, {col}", matrix.value(at));
    }
}

/// The code of the number nearest to `value`; of two, the even one.
fn nearest(value: f32) -> u8 {
    let (mut below, mut above) = (0, e4m3::MAX_CODE);
    while above - below > 1 {
        let middle = below.midpoint(above);
        let half = if e4m3::decode(middle) <= value.abs() { &mut below } else { &mut above };
        *half = middle;
    }
    // In f64 both distances are exact, or one is so much the larger that rounding cannot matter.
    let distance = |code| (f64::from(value.abs()) - f64::from(e4m3::decode(code))).abs();
    let magnitude = match distance(below).total_cmp(&distance(above)) {
        Ordering::Less => below,
        Ordering::Equal if below % 2 == 0 => below,
        Ordering::Equal | Ordering::Greater => above,
    };
    magnitude | (u8::from(value.is_sign_negative()) << 7)
}

/// Decoding, figures and proof are the same at every level.
fn check_levels(matrix: &Matrix, encoding: &Encoding, found: &Encoded) {
    let codes = Tile::packed(&found.codes, matrix.rows, matrix.cols, 1);
    let decoded = |level| {
        let mut out = vec![0; found.codes.len() * 2];
        decode(level, &codes, encoding.grid, &found.scales, &mut out);
        out
    };
    let measured = |level| {
        let (tile, grid) = (matrix.tile(), encoding.grid);
        measure(level, &tile, matrix.float, grid, &found.codes, &found.scales)
    };
    let summed = |level| moments_of_codes(level, &codes, encoding.grid, &found.scales);
    let proved = |level| {
        let mut scratch = Scratch::default();
        let proved = prove(level, &codes, matrix.float, encoding, &found.scales, &mut scratch);
        proved.map_err(|unproven| (unproven.row, unproven.col)).is_ok()
    };
    let first = Level::Scalar;
    let expected = (decoded(first), measured(first), summed(first), proved(first));
    for level in Level::available() {
        assert!(decoded(level) == expected.0, "{level} decodes otherwise");
        assert!(measured(level) == expected.1, "{level} measures otherwise");
        assert!(summed(level) == expected.2, "{level} sums up otherwise");
        assert_eq!(proved(level), expected.3, "{level} proves otherwise");
    }
}
