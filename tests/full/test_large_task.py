"""A task of more than 4 GiB goes on from its last point in the journal, not from its start."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lingconv.reference import open_checkpoint
from measure import cost_of_lingconv
from ordeal import Case, killed_after_reading, moments, quantize
from support import answer, succeed

KILLS = 24
# A point every 2 GiB of output; the windows in flight before it are at most a few MB.
POINT = 2 << 30
IN_FLIGHT = 64 << 20
# What a process reads of its own: the interpreter, packages, headers, the journal.
OWN_READS = 64 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    size = ("--experts", "100", "--shard-size", "20G")
    succeed("synth", "ling-1t-layer", *size, "-o", folder / "source")
    yield folder
    shutil.rmtree(folder)


def source_bytes(output: Path, recorded: int) -> int:
    """Bytes of the source that the first `recorded` bytes of the only output file came from."""
    total = 0
    for name, entry in open_checkpoint(output).items():
        written = min(max(recorded - entry.start, 0), entry.size)
        if not name.endswith("_scale_inv"):
            total += written * (2 if entry.dtype == "F8_E4M3" else 1)
    return total


def test_a_large_task_goes_on_from_its_point(folder: Path, figure: Callable[[str], None]) -> None:
    case = Case.of(folder / "source", folder / "calm")
    plan, output = folder / "plan.json", folder / "out"
    words = quantize(case.source, output)
    succeed(*words, "--dry-run", "--save", plan)
    status = ("run", plan, "--source", case.source, "-o", output, "--status")
    whole = source_bytes(folder / "calm", sum(p.stat().st_size for p in folder.glob("calm/*")))
    figure(f"{'killed at':>12} {'recorded':>10} {'to read':>10} {'read':>10} {'rchar':>10}   (GB)")
    points = set()
    for moment in moments(KILLS, whole, seed=4):
        hit = killed_after_reading(words, moment)
        case.check_unfinished(output)
        found = answer(*status)
        recorded = 0 if found["published"] else found["bytes_done"]
        to_read = 0 if found["published"] else whole - source_bytes(folder / "calm", recorded)
        points.add(recorded // POINT)
        cost = cost_of_lingconv(*words, "--json")
        resumed = cost.answer()
        figures = (recorded, to_read, resumed["read"], cost.read)
        figure(
            f"{f'{moment / 1e9:.3f}' if hit else 'ended':>12} "
            + " ".join(f"{value / 1e9:10.3f}" for value in figures)
        )
        assert resumed["read"] <= to_read + IN_FLIGHT
        # What is kept is hashed again, so that the disk is believed and not the journal.
        assert cost.read <= to_read + recorded + IN_FLIGHT + OWN_READS
        case.check_finished(output)
        shutil.rmtree(output)
    assert points >= {0, 1, 2}
    case.check_source()
