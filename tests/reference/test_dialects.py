"""Scales and whole matrices of every dialect; the constants were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lingconv.reference import DIALECTS, codec, decode, encode, scale_of

ABOVE_448 = np.nextafter(np.float32(448), np.float32(np.inf))


def scale_bits(amax: float, *args, **kwargs) -> int:
    """Bits of the stored scale of one maximum."""
    values = scale_of(np.array([amax], dtype=np.float32), *args, **kwargs)
    return int(values.view(np.uint32)[0])


def bits(value: float) -> int:
    """Bits of a float32."""
    return int(np.float32(value).view(np.uint32))


@pytest.mark.parametrize(
    ("amax", "expected"),
    [
        (448.0, 0x3F80_0000),
        (1.0, 0x3B12_4925),
        (3.0, 0x3BDB_6DB7),
        (7.0, 0x3C80_0000),
        (0.0, 0x2721_2492),  # floor 141 * 2^-47 over 448
        (1e-13, 0x2721_2492),
        (2.0**-39, 0x2792_4925),
    ],
)
def test_deepseek_scale(amax: float, expected: int) -> None:
    assert scale_bits(amax, "deepseek") == expected


def test_deepseek_floor_is_that_of_bf16() -> None:
    assert codec.DEEPSEEK_FLOOR == 141 * 2.0**-47
    assert codec.DEEPSEEK_FLOOR > 1e-12


@pytest.mark.parametrize("role", ["attention_output", "expert_gate_up"])
@pytest.mark.parametrize(
    ("amax", "expected"),
    [(448.0, 1.0), (ABOVE_448, 2.0), (447.0, 1.0), (224.0, 0.5), (0.0, 2.0**-22), (2e-4, 2.0**-21)],
)
def test_ling_rounds_scales_of_some_roles_up(role, amax: float, expected: float) -> None:
    assert scale_bits(amax, "ling", role) == bits(expected)


@pytest.mark.parametrize("role", ["attention", "mlp", "expert_down", "shared_expert"])
def test_ling_leaves_scales_of_other_roles(role) -> None:
    assert scale_bits(3.0, "ling", role) == scale_bits(3.0, "deepseek")
    assert scale_bits(0.0, "ling", role) == bits(np.float32(1e-4) / np.float32(448))
    assert scale_bits(1e-5, "ling", role) == scale_bits(1e-4, "ling", role)


@pytest.mark.parametrize(
    ("amax", "expected"),
    [(448.0, 1.0), (ABOVE_448, 2.0), (1.0, 2.0**-8), (0.0, 2.0**-22), (3e38, 2.0**120)],
)
def test_ue8m0_scale(amax: float, expected: float) -> None:
    assert scale_bits(amax, "deepseek", scale="ue8m0") == bits(expected)


def test_ue8m0_is_the_least_power_of_two_that_does_not_saturate() -> None:
    amax = codec.bf16_to_f32(np.arange(0x38D2, 0x7F80, dtype=np.uint16))
    scales = scale_of(amax, "deepseek", scale="ue8m0").astype(np.float64)
    assert (np.frexp(scales)[0] == 0.5).all()
    assert (amax <= 448 * scales).all()
    assert (amax > 224 * scales).all()


@pytest.mark.parametrize(
    "dialect", ["compressed-tensors", "compressed-tensors-channel", "compressed-tensors-cpu"]
)
@pytest.mark.parametrize(
    ("amax", "expected"),
    [
        (448.0, 0x3F80_0000),
        (1.0, 0x3B12_0000),
        (3.0, 0x3BDB_0000),
        (0.0, 0x3C00_0000),
        (2.0**-126, 0x3C00_0000),  # 2^-134.8 is below half of the least BF16
        (2.0**-125, 0x0001_0000),
    ],
)
def test_compressed_tensors_scale(dialect, amax: float, expected: int) -> None:
    assert scale_bits(amax, dialect) == expected


@pytest.mark.parametrize("dialect", ["deepseek", "ling"])
def test_cuda_arithmetic_is_often_one_unit_away(dialect) -> None:
    amax = codec.bf16_to_f32(np.arange(0x38D2, 0x7F80, dtype=np.uint16))
    ieee = scale_of(amax, dialect).view(np.uint32).astype(np.int64)
    cuda = scale_of(amax, dialect, arith="cuda").view(np.uint32).astype(np.int64)
    assert set(np.unique(cuda - ieee)) == {0, 1}
    assert scale_bits(3.0, dialect, arith="cuda") == 0x3BDB_6DB8
    assert scale_bits(1.0, dialect, arith="cuda") == 0x3B12_4925


def test_powers_of_two_are_the_same_on_every_device() -> None:
    rng = np.random.default_rng(5)
    amax = rng.integers(0x38D1_B717, 0x7F80_0000, 400_000, dtype=np.uint32).view(np.float32)
    edges = np.ldexp(np.float32(448), np.arange(-20, 100)).astype(np.float32)
    amax = np.concatenate([amax, edges, np.nextafter(edges, np.float32(0)), edges * 1.0000001])
    amax = amax.astype(np.float32)
    for options in ({"dialect": "deepseek", "scale": "ue8m0"}, {"dialect": "ling"}):
        ieee = scale_of(amax, role="expert_gate_up", **options)
        assert np.array_equal(ieee, scale_of(amax, role="expert_gate_up", arith="cuda", **options))


@pytest.mark.parametrize(
    "options",
    [
        {"dialect": "ling", "scale": "ue8m0"},
        {"dialect": "compressed-tensors", "scale": "ue8m0"},
        {"dialect": "compressed-tensors", "arith": "cuda"},
        {"dialect": "unknown"},
    ],
)
def test_undefined_options_are_refused(options) -> None:
    with pytest.raises(ValueError, match=options["dialect"]):
        scale_of(np.ones(1, np.float32), **options)


def heavy_tailed(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A matrix with outliers, zeros of both signs and subnormals, as BF16 values."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(2, shape) * 0.01).astype(np.float32)
    weight.flat[rng.integers(0, weight.size, 5)] = -0.0
    weight.flat[rng.integers(0, weight.size, 5)] = 1e-40
    return codec.bf16_to_f32(codec.f32_to_bf16(weight))


def block_by_block(weight, dialect, role, scale, arith) -> tuple[np.ndarray, np.ndarray]:
    """The definition of block dialects as two loops, with the searched encoding."""
    rows, columns = weight.shape
    scales = np.zeros((math.ceil(rows / 128), math.ceil(columns / 128)), np.float32)
    codes = np.zeros(weight.shape, np.uint8)
    for i, j in np.ndindex(scales.shape):
        area = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
        amax = np.array([np.abs(weight[area]).max()])
        scales[i, j] = scale_of(amax, dialect, role, scale, arith)[0]
        quotient = weight[area] / scales[i, j]
        if dialect == "compressed-tensors-cpu":
            quotient = codec.bf16_to_f32(codec.f32_to_bf16(quotient))
        codes[area] = codec.encode_e4m3(np.clip(quotient, -448, 448))
    return codes, scales


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 127), (300, 517), (1, 400), (400, 1)])
@pytest.mark.parametrize(
    ("dialect", "role", "scale", "arith"),
    [
        ("deepseek", "mlp", "f32", "ieee"),
        ("deepseek", "mlp", "f32", "cuda"),
        ("deepseek", "mlp", "ue8m0", "ieee"),
        ("ling", "mlp", "f32", "ieee"),
        ("ling", "expert_gate_up", "f32", "ieee"),
        ("compressed-tensors", "mlp", "f32", "ieee"),
        ("compressed-tensors-cpu", "mlp", "f32", "ieee"),
    ],
)
def test_matrix_is_its_blocks(shape, dialect, role, scale, arith) -> None:
    weight = heavy_tailed(shape, seed=shape[0])
    codes, scales = encode(weight, dialect, role, scale, arith)
    expected_codes, expected_scales = block_by_block(weight, dialect, role, scale, arith)
    assert np.array_equal(scales, expected_scales)
    assert np.array_equal(codes, expected_codes)


@pytest.mark.parametrize("shape", [(1, 1), (129, 127), (300, 517)])
def test_channel_scales_are_those_of_rows(shape) -> None:
    weight = heavy_tailed(shape, seed=9)
    codes, scales = encode(weight, "compressed-tensors-channel")
    assert scales.shape == (shape[0], 1)
    for row in range(shape[0]):
        amax = np.abs(weight[row : row + 1]).max(axis=1)
        assert scales[row, 0] == scale_of(amax, "compressed-tensors-channel")[0]
        assert np.array_equal(codes[row], codec.encode_e4m3(weight[row] / scales[row, 0]))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_zero_blocks_stay_zero(dialect) -> None:
    weight = np.zeros((130, 130), dtype=np.float32)
    weight[3, 4] = -0.0
    codes, scales = encode(weight, dialect)
    assert codes[3, 4] == 0x80
    assert np.count_nonzero(codes) == 1
    assert (scales > 0).all()
    assert not (decode(codes, scales, codec.grid_of(dialect)) & 0x7FFF).any()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty_matrices(dialect, shape) -> None:
    codes, scales = encode(np.zeros(shape, np.float32), dialect)
    assert codes.shape == shape
    assert decode(codes, scales, codec.grid_of(dialect)).shape == shape


def test_cpu_path_rounds_the_quotient_twice() -> None:
    weight = np.array([[448.0, 17.001]], dtype=np.float32)
    once, _ = encode(weight, "compressed-tensors")
    twice, _ = encode(weight, "compressed-tensors-cpu")
    assert codec.E4M3_VALUES[once].tolist() == [[448, 18]]
    assert codec.E4M3_VALUES[twice].tolist() == [[448, 16]]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused(dialect, value) -> None:
    weight = np.ones((140, 3), dtype=np.float32)
    weight[133, 1] = value
    with pytest.raises(ValueError, match=r"\[133, 1\]"):
        encode(weight, dialect)


def test_decode_rounds_twice() -> None:
    codes = np.array([[0x39]], dtype=np.uint8)  # 1.125
    scale = np.array([[1.5]], dtype=np.float32)
    assert codec.bf16_to_f32(decode(codes, scale, "block")) == 1.6875
    # 1.125 * s lies just below a tie of BF16; float32 makes it that tie, which goes to even.
    scale = np.array([[0x3F66_38E3]], dtype=np.uint32).view(np.float32)
    exact = float(scale[0, 0]) * 1.125
    assert exact < 1.01171875 == np.float32(exact)
    assert codec.bf16_to_f32(decode(codes, scale, "block")) == 1.015625


def test_decode_refuses_a_scale_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        decode(np.zeros((129, 4), np.uint8), np.ones((1, 1), np.float32), "block")
