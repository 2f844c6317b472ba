"""Loads as a picture of layers × experts: height and colour say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

COLUMNS = 64
# Octaves around the mean of a layer, in halves near it: hot experts are often several times it.
STEPS = (1 / 4, 1 / 2, math.sqrt(1 / 2), 1, math.sqrt(2), 2, 4)
BLOCKS = "▁▂▃▄▅▆▇█"
UNUSED = "·"
STYLES = ("blue", "blue", "cyan", "green", "green", "yellow", "red", "bold red")
LEGEND = f"{UNUSED} none  ▁ < ¼ of the layer's mean  ▄ < 1  ▅ ≥ 1  ▇ ≥ 2  █ ≥ 4 times"

Span = tuple[str, str]


def columns_of(experts: int) -> int:
    """How many neighbouring experts share a column."""
    return -(-experts // COLUMNS)


def spans(loads: Sequence[float]) -> Iterator[Span]:
    """A row: the hottest expert of each column against the mean of all."""
    mean = sum(loads) / len(loads)
    width = columns_of(len(loads))
    for start in range(0, len(loads), width):
        hottest = max(loads[start : start + width])
        if hottest == 0:
            yield UNUSED, "dim"
            continue
        level = sum(hottest >= step * mean for step in STEPS)
        yield BLOCKS[level], STYLES[level]
