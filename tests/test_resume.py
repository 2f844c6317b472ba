"""Runs that are killed go on and end with the same bytes, whatever moved them there."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lingconv.reference import open_checkpoint
from ordeal import (
    FULL,
    PATIENCE,
    Case,
    Words,
    killed,
    killed_together,
    moments,
    quantize,
    reshard,
    start,
    undo,
)
from support import answer, lingconv, overwrite, published, succeed

SOURCES: dict[str, Words] = {
    "small": ("tiny", "--layers", "8", "--experts", "64", "--shard-size", "20M"),
}
if FULL:
    # Several layers, for several stages.
    size = ("--layers", "3", "--experts", "64", "--shard-size", "300M")
    SOURCES["large"] = ("ling-mini-2.0", *size)
KILLS = 24 if FULL else 7
ROUNDS_OF_WORKERS = 12 if FULL else 2
WORKERS = 3
KERNELS = answer("env")["kernels"]["available"]
WAYS: dict[str, Words] = {
    "jobs-1": ("--jobs", "1"),
    "jobs-2": ("--jobs", "2"),
    "jobs-8": ("--jobs", "8"),
    "direct": ("--io", "direct"),
    "buffered": ("--io", "buffered"),
    "memory": ("--memory", "64M"),
    "paranoid": ("--paranoid",),
}


@pytest.fixture(scope="module", params=SOURCES)
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resume")
    succeed("synth", *SOURCES[request.param], "-o", folder / "source")
    yield folder / "source"
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[quantize, reshard, undo], ids=lambda verb: verb.__name__)
def case(request: pytest.FixtureRequest, source: Path) -> Case:
    """What is done to a checkpoint; `undo` starts from what `reshard` wrote."""
    command, folder = request.param, source.parent
    if command is undo:
        source = folder / "reshard"
        succeed(*reshard(folder / "source", source, "--force"))
    return Case.of(source, folder / f"calm-{command.__name__}", command)


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    shutil.rmtree(tmp_path)


def test_killed_at_random_moments(case: Case, output: Path) -> None:
    words, hits = case.words(output), 0
    for moment in moments(KILLS, case.seconds, seed=1):
        hits += killed(words, output, moment)
        case.check_unfinished(output)
        succeed(*words)
        case.check_finished(output)
        shutil.rmtree(output)
    assert hits > 0
    case.check_source()


def test_killed_over_and_over(case: Case, output: Path) -> None:
    words, chance = case.words(output), random.Random(2)
    kills, seconds = 0, case.seconds
    for _ in range(KILLS):
        if killed(words, output, seconds * chance.uniform(0.05, 0.5)):
            kills += 1
            case.check_unfinished(output)
        else:
            # The undisturbed run was slower than this one: begin anew, and aim earlier.
            shutil.rmtree(output)
            seconds /= 2
    succeed(*words)
    case.check_finished(output)
    assert kills > 0
    case.check_source()


def test_three_workers_killed_at_random_moments(case: Case, output: Path) -> None:
    saved = output.with_name("plan.json")
    succeed(*case.words(output, "--dry-run", "--save", saved))
    run: Words = ("run", saved, "--source", case.source, "-o", output)
    shares = [(*run, "--worker", f"{index}/{WORKERS}") for index in range(1, WORKERS + 1)]
    chance, hits = random.Random(3), 0
    for _ in range(ROUNDS_OF_WORKERS):
        at = [case.seconds * chance.uniform(0.1, 1.0) for _ in shares]
        hits += killed_together(shares, output, at)
        case.check_unfinished(output)
        with ThreadPoolExecutor() as pool:
            ended = list(pool.map(lambda words: lingconv(*words), shares))
        assert [done.returncode for done in ended] == [0] * WORKERS, [d.stderr for d in ended]
        if not published(output):
            # The worker that had claimed publication was among the killed.
            succeed(*run, "--finish")
        case.check_finished(output)
        shutil.rmtree(output)
    assert hits > 0
    case.check_source()


def test_a_shard_replaced_meanwhile_is_done_again(source: Path, output: Path) -> None:
    source = Path(shutil.copytree(source, output.with_name("source")))
    words = quantize(source, output, "--jobs", "1")
    done = next(path.name for path in source.glob("model-00001-*"))
    child, deadline = start(words), time.monotonic() + PATIENCE
    while not (output / done).exists():
        assert time.monotonic() < deadline
    # Its line in the journal follows within a moment: the next file is begun after it.
    while not list(output.glob("model-00002-*")):
        assert time.monotonic() < deadline
    child.kill()
    child.wait()
    assert not published(output)
    before = (output / done).read_bytes()
    tensor = next(
        name for name, entry in open_checkpoint(source).items() if entry.path.name == done
    )
    overwrite(source, tensor, b"\x12\x3e", at=6)
    again = succeed(*words)
    assert "changed" in again.stderr
    assert done in again.stderr
    assert (output / done).read_bytes() != before
    calm = output.with_name("calm")
    Case.of(source, calm).check_finished(output)


@pytest.mark.parametrize("way", WAYS)
def test_no_option_of_a_run_changes_a_byte(case: Case, output: Path, way: str) -> None:
    succeed(*case.words(output, *WAYS[way]))
    case.check_finished(output)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_kernel_changes_a_byte(case: Case, output: Path, kernel: str) -> None:
    succeed(*case.words(output), LINGCONV_KERNEL=kernel)
    case.check_finished(output)
