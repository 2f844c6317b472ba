//! GB/s of every kernel at every level, on one core, from memory: `cargo bench --bench kernels`.
//!
//! Encode, measure, moments, digests and scans count bytes of input, decode and cast bytes of BF16. The matrix is larger than the last-level
//! cache of most machines; `LINGCONV_BENCH_MB` sets its size in MB of BF16 (default 512).

use std::sync::LazyLock;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use lingconv_core::dialect::{Dialect, ScaleKind};
use lingconv_core::dtype::Dtype;
use lingconv_core::exec::hash::Xxh3;
use lingconv_core::exec::sha256::Stream;
use lingconv_core::numeric::{
    Arith, Encoding, Float, Level, SCAN_PAGE, Scratch, Tile, cast_to_bf16, decode, encode,
    f32_to_bf16, measure, moments, moments_of_codes, prove, scan,
};
use sha2::{Digest, Sha256};

const COLS: usize = 8192;
const LEVELS: [&str; 4] = ["scalar", "baseline", "avx2", "avx512"];

fn main() {
    divan::main();
}

struct Matrix {
    rows: usize,
    bf16: Vec<u8>,
    f32: Vec<u8>,
    q: Vec<u8>,
    scales: Vec<f32>,
}

/// Rows in a call, as a caller that streams would have it: 4 MB of BF16.
const CALL_ROWS: usize = 256;

static MATRIX: LazyLock<Matrix> = LazyLock::new(|| {
    let megabytes: usize =
        std::env::var("LINGCONV_BENCH_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(512);
    let rows = (megabytes * 1_000_000 / (COLS * 2)).next_multiple_of(2 * CALL_ROWS);
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let weights: Vec<f32> =
        (0..rows * COLS).map(|_| (uniform() + uniform() + uniform()) * 0.04).collect();
    let bf16: Vec<u8> =
        weights.iter().flat_map(|&weight| f32_to_bf16(weight).to_le_bytes()).collect();
    let f32 = weights[..rows * COLS / 2].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let encoding = encoding("deepseek");
    let (high, wide) = encoding.grid.scale_shape(rows, COLS);
    let mut matrix =
        Matrix { rows, bf16, f32, q: vec![0; rows * COLS], scales: vec![0.0; high * wide] };
    let tile = Tile::packed(&matrix.bf16, rows, COLS, 2);
    let finite =
        encode(Level::detect(), &tile, Float::Bf16, &encoding, &mut matrix.q, &mut matrix.scales);
    assert!(finite.is_ok());
    matrix
});

fn encoding(dialect: &str) -> Encoding {
    Dialect::builtin(dialect)
        .and_then(|dialect| dialect.encoding(None, ScaleKind::F32, Arith::Ieee).ok())
        .unwrap_or_else(|| panic!("no dialect {dialect}"))
}

/// Runs `call(first row, rows)` over the whole matrix at a level, unless this CPU lacks it.
fn sweep(
    bencher: Bencher,
    level: &str,
    bytes: usize,
    rows: usize,
    mut call: impl FnMut(Level, usize),
) {
    let level: Level = level.parse().unwrap_or(Level::Scalar);
    if level.is_available() {
        bencher.counter(BytesCount::new(bytes)).bench_local(|| {
            for first in (0..rows).step_by(CALL_ROWS) {
                call(level, first);
            }
        });
    }
}

fn bench_encode(bencher: Bencher, level: &str, dialect: &str, float: Float, bytes: &[u8]) {
    let encoding = encoding(dialect);
    let rows = bytes.len() / COLS / float.bytes();
    let (high, wide) = encoding.grid.scale_shape(CALL_ROWS, COLS);
    let mut q = vec![0; CALL_ROWS * COLS];
    let mut scales = vec![0.0; high * wide];
    sweep(bencher, level, bytes.len(), rows, |level, first| {
        let stride = COLS * float.bytes();
        let tile = Tile { bytes: &bytes[first * stride..], rows: CALL_ROWS, cols: COLS, stride };
        let result = encode(level, black_box(&tile), float, &encoding, &mut q, &mut scales);
        assert!(black_box(result).is_ok());
    });
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn encode_bf16(bencher: Bencher, level: &str) {
    bench_encode(bencher, level, "deepseek", Float::Bf16, &MATRIX.bf16);
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn encode_bf16_channel(bencher: Bencher, level: &str) {
    bench_encode(bencher, level, "compressed-tensors-channel", Float::Bf16, &MATRIX.bf16);
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn encode_bf16_quotient_bf16(bencher: Bencher, level: &str) {
    bench_encode(bencher, level, "compressed-tensors-cpu", Float::Bf16, &MATRIX.bf16);
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn encode_f32(bencher: Bencher, level: &str) {
    bench_encode(bencher, level, "deepseek", Float::F32, &MATRIX.f32);
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn encode_f16(bencher: Bencher, level: &str) {
    static F16: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let clear_top_exponent_bit =
            |(index, &byte): (usize, &u8)| if index % 2 == 1 { byte & 0xBF } else { byte };
        MATRIX.bf16.iter().enumerate().map(clear_top_exponent_bit).collect()
    });
    bench_encode(bencher, level, "deepseek", Float::F16, &F16);
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn decode_bf16(bencher: Bencher, level: &str) {
    let Matrix { rows, q, scales, .. } = &*MATRIX;
    let grid = encoding("deepseek").grid;
    let in_call = CALL_ROWS / 128 * COLS / 128;
    let mut out = vec![0; CALL_ROWS * COLS * 2];
    sweep(bencher, level, rows * COLS * 2, *rows, |level, first| {
        let tile = Tile::packed(&q[first * COLS..], CALL_ROWS, COLS, 1);
        let scales = &scales[first / CALL_ROWS * in_call..][..in_call];
        decode(level, black_box(&tile), grid, scales, &mut out);
    });
}

#[divan::bench(args = LEVELS, sample_count = 5)]
fn moments_bf16(bencher: Bencher, level: &str) {
    let Matrix { rows, bf16, .. } = &*MATRIX;
    let call = CALL_ROWS * COLS * 2;
    sweep(bencher, level, bf16.len(), *rows, |level, first| {
        let bytes = black_box(&bf16[first * COLS * 2..][..call]);
        black_box(moments(level, bytes, Float::Bf16));
    });
}

#[divan::bench(args = LEVELS, sample_count = 5)]
fn moments_fp8(bencher: Bencher, level: &str) {
    let Matrix { rows, q, scales, .. } = &*MATRIX;
    let grid = encoding("deepseek").grid;
    let in_call = CALL_ROWS / 128 * COLS / 128;
    sweep(bencher, level, q.len(), *rows, |level, first| {
        let tile = Tile::packed(&q[first * COLS..], CALL_ROWS, COLS, 1);
        let scales = &scales[first / CALL_ROWS * in_call..][..in_call];
        black_box(moments_of_codes(level, black_box(&tile), grid, scales));
    });
}

#[divan::bench(args = LEVELS, sample_count = 5)]
fn measure_bf16(bencher: Bencher, level: &str) {
    let Matrix { rows, bf16, q, scales, .. } = &*MATRIX;
    let grid = encoding("deepseek").grid;
    let in_call = CALL_ROWS / 128 * COLS / 128;
    sweep(bencher, level, bf16.len(), *rows, |level, first| {
        let tile = Tile::packed(&bf16[first * COLS * 2..], CALL_ROWS, COLS, 2);
        let q = &q[first * COLS..][..CALL_ROWS * COLS];
        let scales = &scales[first / CALL_ROWS * in_call..][..in_call];
        black_box(measure(level, &tile, Float::Bf16, grid, q, scales));
    });
}

#[divan::bench(args = LEVELS, sample_count = 5)]
fn prove_bf16(bencher: Bencher, level: &str) {
    let Matrix { rows, q, scales, .. } = &*MATRIX;
    let encoding = encoding("deepseek");
    let in_call = CALL_ROWS / 128 * COLS / 128;
    let mut scratch = Scratch::default();
    sweep(bencher, level, rows * COLS * 2, *rows, |level, first| {
        let tile = Tile::packed(&q[first * COLS..], CALL_ROWS, COLS, 1);
        let scales = &scales[first / CALL_ROWS * in_call..][..in_call];
        assert!(prove(level, &tile, Float::Bf16, &encoding, scales, &mut scratch).is_ok());
    });
}

#[divan::bench(args = LEVELS, sample_count = 15)]
fn cast_f32(bencher: Bencher, level: &str) {
    let input = &MATRIX.f32;
    let call = CALL_ROWS * COLS * 4;
    let mut out = vec![0; CALL_ROWS * COLS * 2];
    sweep(bencher, level, input.len(), input.len() / COLS / 4, |level, first| {
        let start = first * COLS * 4;
        cast_to_bf16(level, black_box(&input[start..][..call]), Float::F32, &mut out);
    });
}

/// One stream, or the halves of it as two, in the pieces that a verification reads.
#[divan::bench(args = ["sha256", "sha256_two", "xxh3"], sample_count = 5)]
fn digest(bencher: Bencher, algorithm: &str) {
    let pieces = || MATRIX.bf16.chunks(1 << 20);
    let bencher = bencher.counter(BytesCount::new(MATRIX.bf16.len()));
    match algorithm {
        "sha256" => bencher.bench_local(|| {
            let hash =
                pieces().fold(Sha256::new(), |hash, piece| hash.chain_update(black_box(piece)));
            black_box(hash.finalize());
        }),
        "sha256_two" => bencher.bench_local(|| {
            let (mut one, mut other) = (Stream::default(), Stream::default());
            let (first, second) = MATRIX.bf16.split_at(MATRIX.bf16.len() / 2);
            for (a, b) in first.chunks(1 << 20).zip(second.chunks(1 << 20)) {
                Stream::update_two((&mut one, black_box(a)), (&mut other, black_box(b)));
            }
            black_box((one.finish(), other.finish()));
        }),
        _ => bencher.bench_local(|| {
            let mut hash = Xxh3::default();
            pieces().for_each(|piece| hash.update(black_box(piece)));
            black_box(hash.digest());
        }),
    }
}

#[divan::bench(args = ["BF16", "F8_E4M3", "F32"], sample_count = 5)]
fn scan_values(bencher: Bencher, dtype: &str) {
    let (bytes, dtype) = match dtype {
        "BF16" => (&MATRIX.bf16, Dtype::BF16),
        "F32" => (&MATRIX.f32, Dtype::F32),
        _ => (&MATRIX.q, Dtype::F8E4M3),
    };
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        for page in bytes.chunks(SCAN_PAGE) {
            assert!(black_box(scan(black_box(page), dtype)).non_finite.is_none());
        }
    });
}
