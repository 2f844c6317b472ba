"""Number formats against `ml_dtypes`, which shares no code with the reference."""

from __future__ import annotations

import numpy as np
import pytest

from lingconv.reference import codec

ml_dtypes = pytest.importorskip("ml_dtypes")

ALL_BF16 = np.arange(65_536, dtype=np.uint16)
FINITE_BF16 = ALL_BF16[(ALL_BF16 & 0x7F80) != 0x7F80]


def outside_encode(values: np.ndarray) -> np.ndarray:
    """E4M3FN codes by ml_dtypes, which turns values beyond the range into NaN: clamp first."""
    return np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def random_f32(count: int, seed: int) -> np.ndarray:
    """Finite float32 of any bit pattern."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    return bits[(bits & 0x7F80_0000) != 0x7F80_0000].view(np.float32)


def around(values: np.ndarray) -> np.ndarray:
    """The given float32, both neighbours of each, and all of those with the sign changed."""
    near = [np.nextafter(values, np.float32(sign * np.inf)) for sign in (1, -1)]
    positive = np.concatenate([values, *near])
    return np.concatenate([positive, -positive])


def test_decodes_all_e4m3_codes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    outside = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(codec.E4M3_VALUES, outside, equal_nan=True)
    assert np.array_equal(np.signbit(codec.E4M3_VALUES), np.signbit(outside))
    assert np.flatnonzero(np.isnan(codec.E4M3_VALUES)).tolist() == [0x7F, 0xFF]
    assert codec.E4M3_VALUES[0x7E] == 448
    assert codec.E4M3_VALUES[0x01] == 2.0**-9


@pytest.mark.parametrize("encode", [codec.encode_e4m3, codec.encode_e4m3_fast])
def test_encodes_every_finite_bf16(encode) -> None:
    values = codec.bf16_to_f32(FINITE_BF16)
    assert np.array_equal(encode(values), outside_encode(values))


@pytest.mark.parametrize("encode", [codec.encode_e4m3, codec.encode_e4m3_fast])
def test_encodes_ties_and_their_neighbours(encode) -> None:
    codes = codec.E4M3_VALUES[:127].astype(np.float64)
    ties = ((codes[1:] + codes[:-1]) / 2).astype(np.float32)
    values = around(np.concatenate([ties, codes.astype(np.float32)]))
    assert np.array_equal(encode(values), outside_encode(values))
    even = np.minimum(encode(ties), 0x7E)
    assert (even % 2 == 0).all()


@pytest.mark.parametrize("encode", [codec.encode_e4m3, codec.encode_e4m3_fast])
def test_encodes_random_f32(encode) -> None:
    rng = np.random.default_rng(1)
    scaled = [rng.standard_normal(400_000) * size for size in (2e-3, 0.02, 1.0, 100.0)]
    values = np.concatenate([random_f32(400_000, 2), *scaled]).astype(np.float32)
    assert np.array_equal(encode(values), outside_encode(values))


def test_encode_saturates_and_keeps_the_sign() -> None:
    values = np.array([464, 465, 1e30, np.inf, -464, -1e30, 0.0, -0.0, 1e-45, -1e-45], np.float32)
    expected = [0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0xFE, 0x00, 0x80, 0x00, 0x80]
    assert codec.encode_e4m3(values).tolist() == expected
    assert codec.encode_e4m3_fast(values).tolist() == expected


def test_no_finite_value_becomes_nan() -> None:
    codes = codec.encode_e4m3_fast(random_f32(1_000_000, 3))
    assert not np.isin(codes, [0x7F, 0xFF]).any()


def test_every_code_encodes_to_itself() -> None:
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]
    assert np.array_equal(codec.encode_e4m3(codec.E4M3_VALUES[codes]), codes)


def test_reads_every_bf16() -> None:
    outside = ALL_BF16.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(codec.bf16_to_f32(ALL_BF16), outside, equal_nan=True)


def test_rounds_to_bf16() -> None:
    finite = codec.bf16_to_f32(FINITE_BF16)
    halves = (finite.view(np.uint32) | 0x8000).view(np.float32)
    values = np.concatenate([random_f32(1_000_000, 4), around(halves), finite, [np.inf, -np.inf]])
    values = values.astype(np.float32)
    with np.errstate(over="ignore"):
        outside = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert np.array_equal(codec.f32_to_bf16(values), outside)


def test_bf16_keeps_nan_a_nan() -> None:
    bits = np.array([0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001, 0xFFFF_FFFF], dtype=np.uint32)
    assert codec.f32_to_bf16(bits.view(np.float32)).tolist() == [0x7FC0, 0x7FC0, 0xFFC0, 0xFFC0]


def test_reads_and_rounds_f16() -> None:
    one_third = np.array([1 / 3, 65_504, 65_520, 2.0**-24, -0.0], dtype=np.float32)
    bits = codec.f32_to_f16(one_third)
    assert bits.tolist() == [0x3555, 0x7BFF, 0x7C00, 0x0001, 0x8000]
    assert codec.f16_to_f32(bits)[1] == 65_504
    finite = ALL_BF16[(ALL_BF16 & 0x7C00) != 0x7C00]
    assert np.array_equal(codec.f32_to_f16(codec.f16_to_f32(finite)), finite)


def test_reads_every_e8m0() -> None:
    codes = np.arange(256, dtype=np.uint8)
    outside = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(codec.e8m0_to_f32(codes), outside, equal_nan=True)
    assert codec.e8m0_to_f32(codes)[[0, 127, 254]].tolist() == [2.0**-127, 1.0, 2.0**127]


def test_mxfp8_exponent() -> None:
    amax = np.array([1.0, 1.7421875, 1.75, 1.99, 448.0, 447.0, 2.0**-20], dtype=np.float32)
    assert codec.mxfp8_exponent(amax).tolist() == [-8, -8, -7, -7, 1, 0, -28]
