"""What a file of loads may hold at most. Such files come from anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import Error, ExitCode

MAX_LAYERS = 4096
MAX_EXPERTS = 4096
# Up to here a float64 holds every whole number, so measures lose nothing.
MAX_COUNT = 2**53
# Parsed text takes many times its size.
MAX_TEXT = 64 * 2**20
MAX_WHOLE = 256 * 2**20
WINDOW = 16 * 2**20

Numbers = NDArray[np.generic]


def invalid(message: str, path: str, *, hint: str | None = None) -> Error:
    """A file of loads, or a map, that cannot be used."""
    return Error(message, kind="invalid", exit_code=ExitCode.INVALID, path=path, hint=hint)


def check_shape(shape: tuple[int, ...], path: str) -> tuple[int, int, int]:
    """Steps, layers and experts of counts of a shape [layers, experts] or with steps before."""
    if len(shape) not in (2, 3):
        text = f"counts of shape {list(shape)}, not [layers, experts] or [steps, layers, experts]"
        raise invalid(text, path)
    steps, layers, experts = (1, *shape)[-3:]
    if min(steps, layers, experts) < 1:
        raise invalid(f"counts of shape {list(shape)} are empty", path)
    if layers > MAX_LAYERS or experts > MAX_EXPERTS:
        limit = f"{MAX_LAYERS:,} × {MAX_EXPERTS:,}"
        raise invalid(f"{layers:,} layers × {experts:,} experts, more than {limit}", path)
    return steps, layers, experts


def check_dtype(dtype: np.dtype[np.generic], path: str) -> None:
    """Refuse what is no plain number: objects would have to be unpickled."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise invalid(f"counts of type {dtype}, not whole or floating-point numbers", path)


def check_values(window: Numbers, path: str) -> NDArray[np.bool_]:
    """Refuse negative counts and those that are no number; which steps of `window` hold any."""
    flat = window.reshape(len(window), -1)
    largest = flat.max(axis=1)
    smallest = flat.min()
    if not (np.isfinite(largest).all() and np.isfinite(smallest)):
        raise invalid("a count is NaN or infinite", path)
    if smallest < 0:
        raise invalid(f"a count is negative: {smallest}", path)
    if float(largest.max()) * len(window) > MAX_COUNT:
        raise invalid(f"counts as large as {largest.max()} cannot be summed exactly", path)
    used: NDArray[np.bool_] = largest > 0
    return used
