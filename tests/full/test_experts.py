"""Loads of a long recording are read in windows, however long it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from measure import cost_of_lingconv

MEGABYTE = 1_000_000
MOST = 500 * MEGABYTE


@pytest.mark.parametrize("steps", [1000, 10_000])
def test_memory_of_stats(tmp_path: Path, figure: Callable[[str], None], steps: int) -> None:
    path = tmp_path / "loads.npy"
    counts = np.lib.format.open_memmap(path, "w+", np.int32, (steps, 80, 256))
    counts[:, 4:] = np.arange(256, dtype=np.int32)
    counts.flush()
    cost = cost_of_lingconv("experts", "stats", path, "--ep", "32", "--json")
    path.unlink()
    found = cost.answer()
    assert found["steps"] == steps
    assert found["moe_layers"][0]["hottest"][0] == {"expert": 255, "count": 255 * steps}
    assert cost.peak < MOST
    figure(f"stats of {steps:,} steps: {cost.peak / MEGABYTE:.0f} MB, {cost.seconds:.2f} s")
