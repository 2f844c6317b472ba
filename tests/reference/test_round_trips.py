"""What FP8 -> BF16 -> FP8 keeps, for every positive BF16 maximum and every dialect."""

from __future__ import annotations

import numpy as np
import pytest

from lingconv.reference import codec, decode, encode, scale_of

AMAX_BITS = np.arange(1, 0x7F80, dtype=np.uint16)
AMAX = codec.bf16_to_f32(AMAX_BITS)
FINITE_CODES = np.array([c for c in range(256) if c & 0x7F != 0x7F], dtype=np.uint8)

EXACT = {
    "deepseek": {"dialect": "deepseek"},
    "deepseek-cuda": {"dialect": "deepseek", "arith": "cuda"},
    "ling": {"dialect": "ling", "role": "expert_down"},
    "ling-cuda": {"dialect": "ling", "role": "expert_down", "arith": "cuda"},
    "compressed-tensors": {"dialect": "compressed-tensors"},
}
POWERS_OF_TWO = {
    "ue8m0": {"dialect": "deepseek", "scale": "ue8m0"},
    "ling-rounded": {"dialect": "ling", "role": "expert_gate_up"},
}


def read_back(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """BF16(q * s), elementwise, as values."""
    with np.errstate(over="ignore"):
        return codec.bf16_to_f32(codec.f32_to_bf16(codec.E4M3_VALUES[codes] * scales))


def maxima_after_a_trip(options: dict[str, str]) -> np.ndarray:
    """The maximum of a decoded block, for each maximum in AMAX."""
    scales = scale_of(AMAX, **options)
    return read_back(codec.encode_e4m3(AMAX / scales), scales)


@pytest.mark.parametrize("name", EXACT)
def test_second_trip_finds_the_same_scale(name: str) -> None:
    options = EXACT[name]
    again = maxima_after_a_trip(options)
    finite = np.isfinite(again)
    changed = AMAX[finite][scale_of(again, **options)[finite] != scale_of(AMAX, **options)[finite]]
    if name == "compressed-tensors":
        # Subnormal scales have few bits, and the largest maxima decode to infinity.
        assert (changed / 448 < 2.0**-126).all()
        assert (AMAX[~finite] > 3e38).all()
        assert len(changed) + np.count_nonzero(~finite) == 35
    else:
        assert finite.all()
        expected = 7 if name.startswith("ling") else 0
        assert len(changed) == expected
        assert ((changed > 0.9e-4) & (changed < 1e-4)).all()


@pytest.mark.parametrize("name", POWERS_OF_TWO)
def test_second_trip_may_halve_powers_of_two(name: str) -> None:
    options = POWERS_OF_TWO[name]
    again = maxima_after_a_trip(options)
    before, after = scale_of(AMAX, **options), scale_of(again, **options)
    finite = np.isfinite(again)
    halved = finite & (after != before)
    assert halved.any()
    assert (after[halved] == before[halved] / 2).all()
    steps = AMAX[halved] / before[halved]
    assert ((steps > 224) & (steps <= 232)).all()
    # From 248 steps of 2^120 a maximum rounds to 2^128.
    assert AMAX[~finite].tolist() == [steps * 2.0**120 for steps in range(248, 256)]


@pytest.mark.parametrize("options", [*EXACT.values(), *POWERS_OF_TWO.values()])
def test_stored_scale_gives_the_same_codes(options: dict[str, str]) -> None:
    """All maxima, all codes: 8 million pairs a dialect."""
    scales = scale_of(AMAX, **options)
    if options["dialect"] == "compressed-tensors":
        # It has no floor: below this, decoded weights are subnormal BF16 and lose bits.
        scales = scales[AMAX > 2.2e-35]
    values = read_back(FINITE_CODES[None, :], scales[:, None])
    codes = codec.encode_e4m3_fast(values / scales[:, None])
    overflow = np.isinf(values)
    assert np.array_equal(codes[~overflow], np.broadcast_to(FINITE_CODES, codes.shape)[~overflow])


def test_tiny_blocks_of_compressed_tensors_lose_codes() -> None:
    scale = scale_of(np.array([2.0**-120], dtype=np.float32), "compressed-tensors")
    values = read_back(FINITE_CODES, scale)
    assert not np.array_equal(codec.encode_e4m3(values / scale), FINITE_CODES)


def test_power_of_two_block_by_hand() -> None:
    """The maximum 230 takes s = 1, rounds to 224; the second trip takes s = 1/2 and 448."""
    weight = np.array([[230.0, 3.0, -0.0, 2.0**-9]], dtype=np.float32)
    codes, scales = encode(weight, "deepseek", scale="ue8m0")
    assert (scales[0, 0], codec.E4M3_VALUES[codes][0, 0]) == (1.0, 224.0)
    first = decode(codes, scales, "block")
    codes_again, scales_again = encode(codec.bf16_to_f32(first), "deepseek", scale="ue8m0")
    assert (scales_again[0, 0], codec.E4M3_VALUES[codes_again][0, 0]) == (0.5, 448.0)
    assert not np.array_equal(codes, codes_again)
    assert np.array_equal(first, decode(codes_again, scales_again, "block"))


@pytest.mark.parametrize("options", [*EXACT.values(), *POWERS_OF_TWO.values()])
def test_trips_of_a_matrix(options: dict[str, str]) -> None:
    rng = np.random.default_rng(11)
    sizes = np.exp2(rng.uniform(-9, 2, (700, 900)))
    weight = (rng.standard_normal((700, 900)) * sizes).astype(np.float32)
    weight = codec.bf16_to_f32(codec.f32_to_bf16(weight))
    codes, scales = encode(weight, **options)
    first = decode(codes, scales, "block")
    codes_again, scales_again = encode(codec.bf16_to_f32(first), **options)
    assert np.array_equal(first, decode(codes_again, scales_again, "block"))
    if options in EXACT.values():
        assert np.array_equal(codes, codes_again)
        assert np.array_equal(scales, scales_again)


def test_channel_trips_are_exact() -> None:
    rng = np.random.default_rng(12)
    weight = (rng.standard_normal((257, 333)) * 0.02).astype(np.float32)
    codes, scales = encode(
        codec.bf16_to_f32(codec.f32_to_bf16(weight)), "compressed-tensors-channel"
    )
    again = codec.bf16_to_f32(decode(codes, scales, "channel"))
    codes_again, scales_again = encode(again, "compressed-tensors-channel")
    assert np.array_equal(codes, codes_again)
    assert np.array_equal(scales, scales_again)


def test_reciprocal_is_not_division() -> None:
    """All 128 significands of a weight against maxima of one octave, as in the table's count."""
    significands = codec.bf16_to_f32(np.arange(0x3F80, 0x4000, dtype=np.uint16))
    weights = np.concatenate([np.ldexp(significands, -k) for k in range(18)])
    differing = 0
    for amax in significands:
        scale = scale_of(np.array([amax]), "deepseek")
        below = weights[weights <= amax]
        divided = codec.encode_e4m3_fast(below / scale)
        multiplied = codec.encode_e4m3_fast(below * (np.float32(1) / scale))
        differing += np.count_nonzero(divided != multiplied)
    assert 0 < differing < 0.001 * 128 * len(weights)


def test_sound_block_cast_is_near_31_db() -> None:
    rng = np.random.default_rng(13)
    weight = (rng.standard_normal((512, 512)) * 0.02).astype(np.float32)
    signal = np.square(weight, dtype=np.float64).sum()
    for dialect in ("deepseek", "compressed-tensors"):
        codes, scales = encode(weight, dialect)
        error = weight - codec.bf16_to_f32(decode(codes, scales, "block"))
        ratio = 10 * np.log10(signal / np.square(error, dtype=np.float64).sum())
        assert 31.2 < ratio < 31.8
