"""What a file of loads may hold at most. Such files come from anywhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import invalid_error

MAX_LAYERS = 4096
MAX_EXPERTS = 4096
# Layers × experts.
MAX_CELLS = 2**20
# Up to here a float64 holds every whole number, so measures lose nothing.
MAX_COUNT = 2**53
# Parsed text takes many times its size.
MAX_TEXT = 16 * 2**20
MAX_LINE = 2**16
MAX_WHOLE = 128 * 2**20
WINDOW = 16 * 2**20

Numbers = NDArray[np.generic]


def check_shape(shape: tuple[int, ...], path: str) -> tuple[int, int, int]:
    """Steps, layers and experts of counts of a shape [layers, experts] or with steps before."""
    if len(shape) not in (2, 3):
        text = f"counts of shape {list(shape)}, not [layers, experts] or [steps, layers, experts]"
        raise invalid_error(text, path)
    steps, layers, experts = (1, *shape)[-3:]
    if any(type(size) is not int or not 0 <= size < 2**63 for size in shape):
        raise invalid_error(f"counts of the impossible shape {str(list(shape))[:200]}", path)
    if min(steps, layers, experts) < 1:
        raise invalid_error(f"counts of shape {list(shape)} are empty", path)
    if layers > MAX_LAYERS or experts > MAX_EXPERTS:
        limit = f"{MAX_LAYERS:,} × {MAX_EXPERTS:,}"
        raise invalid_error(f"{layers:,} layers × {experts:,} experts, more than {limit}", path)
    if layers * experts > MAX_CELLS:
        text = f"{layers:,} layers × {experts:,} experts, more than {MAX_CELLS:,} counts a step"
        raise invalid_error(text, path)
    return steps, layers, experts


def check_dtype(dtype: np.dtype[np.generic], path: str) -> None:
    """Refuse what is no plain number: objects would have to be unpickled."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise invalid_error(f"counts of type {dtype}, not whole or floating-point numbers", path)


def check_values(window: Numbers, path: str) -> NDArray[np.bool_]:
    """Refuse negative counts and those that are no number; which steps of `window` hold any."""
    flat = window.reshape(len(window), -1)
    largest = flat.max(axis=1)
    smallest = flat.min()
    if not (np.isfinite(largest).all() and np.isfinite(smallest)):
        place = _first(~np.isfinite(window))
        raise invalid_error(f"a count is NaN or infinite: {place}", path)
    if smallest < 0:
        place = _first(window == smallest)
        raise invalid_error(f"a count is negative: {smallest} at {place}", path)
    if float(largest.max()) * len(window) > MAX_COUNT:
        place = _first(window == largest.max())
        text = f"counts as large as {largest.max()} at {place} cannot be summed exactly"
        raise invalid_error(text, path)
    used: NDArray[np.bool_] = largest > 0
    return used


def _first(found: NDArray[np.bool_]) -> str:
    """The first place of a window where something was found."""
    _, layer, expert = np.unravel_index(int(found.argmax()), found.shape)
    return f"layer {layer}, expert {expert}"
