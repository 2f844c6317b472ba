"""Memory that does not grow with the checkpoint, and plans of the largest one in a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pytest

from measure import cost_of_lingconv
from ordeal import quantize
from support import succeed

ROUNDS = 5
MEGABYTE = 1_000_000
TWO_JOBS = 250 * MEGABYTE
PLANNING = 300 * MEGABYTE
Figure = Callable[[str], None]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("experts", "shard"), [(77, "4G"), (316, "16G")])
def test_two_jobs_take_the_same_memory_for_any_shard(
    folder: Path, figure: Figure, experts: int, shard: str
) -> None:
    """Two files, read as holes and written in full."""
    size = ("--experts", str(experts), "--shard-size", shard, "--sparse")
    succeed("synth", "ling-1t-layer", *size, "-o", folder / "source")
    sizes = [path.stat().st_size for path in folder.glob("source/*.safetensors")]
    cost = cost_of_lingconv(*quantize(folder / "source", folder / "out", "--jobs", "2", "--json"))
    assert cost.answer()["outcome"] == "complete"
    files = " + ".join(f"{size / 1e9:.1f} GB" for size in sizes)
    figure(f"quantize, 2 jobs, {files}: peak {cost.peak / MEGABYTE:.0f} MB, {cost.seconds:.1f} s")
    assert len(sizes) >= 2
    assert cost.peak <= TWO_JOBS


@pytest.fixture(scope="module")
def ling_1t(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ling-1t")
    succeed("synth", "ling-1t", "--sparse", "-o", folder / "source")
    yield folder / "source"
    shutil.rmtree(folder)


@pytest.mark.parametrize("verb", [("inspect",), ("quantize", "fp8", "--dry-run")])
def test_a_terabyte_is_planned_in_little_memory(
    ling_1t: Path, figure: Figure, verb: tuple[str, ...]
) -> None:
    costs = [cost_of_lingconv(*verb, ling_1t) for _ in range(ROUNDS)]
    assert [cost.code for cost in costs] == [0] * ROUNDS
    files = list(ling_1t.glob("*.safetensors"))
    seconds, peak = median(cost.seconds for cost in costs), max(cost.peak for cost in costs)
    total = sum(path.stat().st_size for path in files)
    figure(
        f"{' '.join(verb)} of {total / 1e12:.2f} TB in {len(files)} files: "
        f"{seconds:.2f} s (median of {ROUNDS}), peak {peak / MEGABYTE:.0f} MB"
    )
    assert peak <= PLANNING
