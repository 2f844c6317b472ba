"""Number formats and dialects, written out as definitions in numpy.

Everything is elementwise or blockwise arithmetic on arrays that hold plain values (float32) or
stored bits (uint8, uint16). Rounding to E4M3 is a search among its 127 non-negative finite values;
the table used for whole tensors is filled by that search. The formulas are those of the project's
table of dialects: `a` is the largest magnitude of a block, `s` its stored scale, a weight is
stored as E4M3(w / s) and read back as BF16(q * s).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
U8: TypeAlias = NDArray[np.uint8]
U16: TypeAlias = NDArray[np.uint16]
U32: TypeAlias = NDArray[np.uint32]

Dialect: TypeAlias = Literal[
    "deepseek", "ling", "compressed-tensors", "compressed-tensors-channel", "compressed-tensors-cpu"
]
ScaleKind: TypeAlias = Literal["f32", "ue8m0"]
Arith: TypeAlias = Literal["ieee", "cuda"]
Grid: TypeAlias = Literal["block", "channel"]
Role: TypeAlias = Literal[
    "attention", "attention_output", "mlp", "expert_gate_up", "expert_down", "shared_expert"
]

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)
BLOCK = 128
E4M3_MAX = np.float32(448.0)

DEEPSEEK_FLOOR = np.uint32(0x2B8D_0000).view(np.float32)  # bf16(1e-12)
POWER_OF_TWO_FLOOR = np.float32(1e-4)
CUDA_RECIPROCAL = np.uint32(0x3B12_4925).view(np.float32)  # f32(1 / 448)
COMPRESSED_TENSORS_EMPTY = np.float32(2.0**-7)  # the machine epsilon of BF16
LING_POWER_OF_TWO_ROLES: tuple[Role, ...] = ("attention_output", "expert_gate_up")


def bf16_to_f32(bits: U16) -> F32:
    """BF16 bits to values; exact, BF16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: F32) -> U16:
    """Values to BF16 bits, nearest even; overflow gives infinity, NaN a quiet NaN of its sign."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    kept_bit = (bits >> 16) & 1
    # Just under half a unit, plus the kept bit: only a tie with an even kept part stays below.
    rounded = ((bits + (0x7FFF + kept_bit)) >> 16).astype(np.uint16)
    quiet_nan = ((bits >> 16) & 0x8000).astype(np.uint16) | np.uint16(0x7FC0)
    return np.where(np.isnan(values), quiet_nan, rounded)


def f16_to_f32(bits: U16) -> F32:
    """IEEE half-precision bits to values; exact."""
    return bits.view(np.float16).astype(np.float32)


def f32_to_f16(values: F32) -> U16:
    """Values to IEEE half-precision bits, nearest even; overflow gives infinity."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


def e8m0_to_f32(codes: U8) -> F32:
    """E8M0 codes to powers of two: 2^(code - 127); code 255 is NaN (OCP MX specification)."""
    powers = np.ldexp(np.float64(1.0), np.minimum(codes, 254).astype(np.int32) - 127)
    values: F32 = powers.astype(np.float32)
    values[codes == 255] = np.nan
    return values


def _e4m3_value(code: int) -> float:
    """One code of E4M3FN: sign, 4 exponent bits (bias 7), 3 fraction bits; no infinities."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, fraction = (code >> 3) & 0xF, code & 0x7
    if exponent == 15 and fraction == 7:
        return math.copysign(math.nan, sign)
    if exponent == 0:
        return sign * fraction / 8 * 2.0**-6
    return float(sign * (1 + fraction / 8) * 2.0 ** (exponent - 7))


E4M3_VALUES: F32 = np.array([_e4m3_value(code) for code in range(256)], dtype=np.float32)
_MAGNITUDES = E4M3_VALUES[:127].astype(np.float64)


def encode_e4m3(values: F32) -> U8:
    """Values to E4M3FN codes: nearest, ties to the even code, saturating at +-448.

    The definition: the two finite neighbours are found by search and the distances to them, exact
    in float64, are compared. The sign of zero is kept. NaN gives 0x7F or 0xFF.
    """
    magnitude = np.abs(values.astype(np.float64))
    upper = np.minimum(np.searchsorted(_MAGNITUDES, magnitude), 126)
    lower = np.maximum(upper - 1, 0)
    to_upper = _MAGNITUDES[upper] - magnitude
    to_lower = magnitude - _MAGNITUDES[lower]
    choose_upper = (to_upper < to_lower) | ((to_upper == to_lower) & (upper % 2 == 0))
    code = np.where(choose_upper, upper, lower)
    code = np.where(np.isnan(values), 0x7F, code)
    return np.where(np.signbit(values), code | 0x80, code).astype(np.uint8)


def _codes_of_upper_halves() -> U8:
    """E4M3 codes [131072] by 2 * (upper 16 bits of a float32) + (any lower bit set).

    Values halfway between two E4M3 values have at most 5 significant bits, so each is itself a
    float32 with a zero lower half: all values strictly between two of those round alike.
    """
    upper = np.arange(65_536, dtype=np.uint32) << 16
    with np.errstate(invalid="ignore"):
        exact = encode_e4m3(upper.view(np.float32))
        between = encode_e4m3((upper | 0x8000).view(np.float32))
    return np.stack([exact, between], axis=1).reshape(-1)


_CODES = _codes_of_upper_halves()


def encode_e4m3_fast(values: F32) -> U8:
    """`encode_e4m3` by table, for whole tensors."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    index = (bits >> 15) & np.uint32(0x1FFFE)
    index |= (bits & np.uint32(0xFFFF)) != 0
    codes: U8 = _CODES.take(index, mode="clip")
    return codes


def _power_of_two_at_least(values: F32) -> F32:
    """The smallest powers of two >= positive normal values, by their exponent bits."""
    bits = values.view(np.uint32)
    exponent = (bits >> 23) + ((bits & 0x7F_FFFF) != 0)
    rounded: U32 = np.clip(exponent, 1, 254).astype(np.uint32) << 23
    return rounded.view(np.float32)


def scale_of(
    amax: F32,
    dialect: Dialect,
    role: Role = "mlp",
    scale: ScaleKind = "f32",
    arith: Arith = "ieee",
) -> F32:
    """Stored scales (same shape as `amax`) of blocks or channels with the given maxima.

    `arith="cuda"` multiplies by f32(1 / 448), as PyTorch on a GPU does for division by a constant.
    """
    check_options(dialect, scale, arith)
    amax = np.asarray(amax, dtype=np.float32)
    if dialect.startswith("compressed-tensors"):
        stored = bf16_to_f32(f32_to_bf16(amax / E4M3_MAX))
        return np.where(stored == 0, COMPRESSED_TENSORS_EMPTY, stored)
    power_of_two = scale == "ue8m0" or (dialect == "ling" and role in LING_POWER_OF_TWO_ROLES)
    floor = DEEPSEEK_FLOOR if dialect == "deepseek" and scale == "f32" else POWER_OF_TWO_FLOOR
    floored: F32 = np.maximum(amax, floor)
    exact: F32 = floored * CUDA_RECIPROCAL if arith == "cuda" else floored / E4M3_MAX
    return _power_of_two_at_least(exact) if power_of_two else exact


def check_options(dialect: Dialect, scale: ScaleKind = "f32", arith: Arith = "ieee") -> None:
    """Raise ValueError for a combination that no dialect defines."""
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect}")
    if scale == "ue8m0" and dialect != "deepseek":
        raise ValueError(f"dialect {dialect} has no ue8m0 scales")
    if arith == "cuda" and dialect not in ("deepseek", "ling"):
        raise ValueError(f"dialect {dialect} has one scale arithmetic")


def grid_of(dialect: Dialect) -> Grid:
    """Whether a dialect scales 128 x 128 blocks or output channels (rows)."""
    return "channel" if dialect == "compressed-tensors-channel" else "block"


def scale_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, int]:
    """Shape of the scale tensor of a matrix [rows, columns]."""
    rows, columns = shape
    return (rows, 1) if grid == "channel" else (-(-rows // BLOCK), -(-columns // BLOCK))


def _stripe_scales(scales: F32, top: int, columns: int, grid: Grid) -> F32:
    """The scales of rows [top, top + 128), in a shape that broadcasts over those rows."""
    if grid == "channel":
        return scales[top : top + BLOCK]
    return np.repeat(scales[top // BLOCK], BLOCK)[:columns]


def _stripe_maxima(stripe: F32, grid: Grid) -> F32:
    """Largest magnitudes of up to 128 rows: one a row [rows, 1], or one a block [1, blocks]."""
    if grid == "channel":
        of_rows: F32 = np.abs(stripe).max(axis=1, initial=0, keepdims=True)
        return of_rows
    of_columns: F32 = np.abs(stripe).max(axis=0, keepdims=True)
    starts = np.arange(0, stripe.shape[1], BLOCK)
    return np.maximum.reduceat(of_columns, starts, axis=1) if len(starts) else of_columns


def encode(
    weight: F32,
    dialect: Dialect,
    role: Role = "mlp",
    scale: ScaleKind = "f32",
    arith: Arith = "ieee",
) -> tuple[U8, F32]:
    """A matrix [rows, columns] to E4M3 codes of that shape and its scales (see `scale_shape`).

    Blocks start at (0, 0); those at the right and bottom edges use the elements they have. NaN or
    infinity raises ValueError: one would destroy its whole block.
    """
    rows, columns = weight.shape
    grid = grid_of(dialect)
    codes = np.empty((rows, columns), dtype=np.uint8)
    scales = np.empty(scale_shape((rows, columns), grid), dtype=np.float32)
    height = BLOCK if grid == "channel" else 1
    for band, top in enumerate(range(0, rows, BLOCK)):
        stripe = weight[top : top + BLOCK]
        amax = _stripe_maxima(stripe, grid)
        if not np.isfinite(amax).all():
            row, column = (int(i) for i in np.argwhere(~np.isfinite(stripe))[0])
            raise ValueError(f"{stripe[row, column]} at index [{top + row}, {column}]")
        scales[band * height : (band + 1) * height] = scale_of(amax, dialect, role, scale, arith)
        divisor = _stripe_scales(scales, top, columns, grid)
        codes[top : top + BLOCK] = _quotient_codes(stripe, divisor, dialect)
    return codes, scales


def _quotient_codes(weight: F32, divisor: F32, dialect: Dialect) -> U8:
    """E4M3(w / s); the quotient is BF16 first where the CPU path of compressed-tensors has it so.

    Saturation of the codec is the same as clamping the quotient to +-448.
    """
    quotient = weight / divisor
    if dialect == "compressed-tensors-cpu":
        quotient = bf16_to_f32(f32_to_bf16(quotient))
    return encode_e4m3_fast(quotient)


def decode(codes: U8, scales: F32, grid: Grid) -> U16:
    """Codes [rows, columns] and scales to BF16 bits: f32(q) * s rounded to f32, then to BF16."""
    rows, columns = codes.shape
    if scales.shape != scale_shape((rows, columns), grid):
        raise ValueError(f"scale {scales.shape} does not fit weight {codes.shape} by {grid}")
    result = np.empty((rows, columns), dtype=np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        for top in range(0, rows, BLOCK):
            product = E4M3_VALUES[codes[top : top + BLOCK]] * _stripe_scales(
                scales, top, columns, grid
            )
            result[top : top + BLOCK] = f32_to_bf16(product)
    return result


def mxfp8_exponent(amax: F32) -> NDArray[np.int32]:
    """Shared exponents of the 1 x 32 groups with positive maxima `amax`.

    They are floor(log2 a) - 8, one more when the significand of a is at least 1.75, so that
    a scaled maximum stays below 448.
    """
    half_significand, exponent = np.frexp(amax)
    return (exponent - 1 - 8 + (half_significand >= 1.75 / 2)).astype(np.int32)
