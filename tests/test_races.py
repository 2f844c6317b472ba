"""Several processes at one output at once, with shares that overlap, and some of them killed."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from invariants import MANIFEST, Kept, violations
from ordeal import FULL, Case, Words, start
from requirements import needs
from support import COMMAND, TIMEOUT, environment, lingconv, succeed

SPLITS = ("1/3", "1/4", "2/2", "1/1")
ROUNDS = range(50 if FULL else 2)
# 7: another process is at work here; 8: what was recorded changed meanwhile.
ENDINGS = {0, 7, 8}
NO_LOCKS = {"EOPNOTSUPP", "ENOLCK"}


@pytest.fixture(scope="module")
def case(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(shared / "tiny", tmp_path_factory.mktemp("races") / "calm")


@pytest.fixture
def run(case: Case, tmp_path: Path) -> Iterator[Words]:
    saved, output = tmp_path / "plan.json", tmp_path / "out"
    succeed(*case.words(output, "--dry-run", "--save", saved))
    yield ("run", saved, "--source", case.source, "-o", output)
    shutil.rmtree(tmp_path)


def check(case: Case, run: Words, kept: Kept) -> None:
    """Nothing is wrong now, and a last run makes it complete."""
    output = Path(run[-1])
    assert violations(output, case.expected) == []
    last = lingconv(*run)
    assert last.returncode == 0, last.stderr
    assert (output / MANIFEST).exists()
    assert violations(output, case.expected) == []
    case.check_finished(output)
    assert kept.violations() == []


@pytest.mark.parametrize("seed", ROUNDS)
def test_mixed_splits_at_once(case: Case, run: Words, seed: int) -> None:
    kept, chance = Kept.of(case.source), random.Random(seed)
    splits = chance.sample(SPLITS, len(SPLITS))
    children = [start((*run, "--worker", split)) for split in splits]
    assert {child.wait(TIMEOUT) for child in children} <= ENDINGS
    check(case, run, kept)


@pytest.mark.parametrize("seed", ROUNDS)
def test_mixed_splits_killed_between(case: Case, run: Words, seed: int) -> None:
    kept, chance = Kept.of(case.source), random.Random(seed)
    for _ in range(3):
        children = [start((*run, "--worker", split)) for split in SPLITS]
        time.sleep(case.seconds * chance.uniform(0.2, 2))
        for child in children:
            child.kill()
            child.wait()
        assert violations(Path(run[-1]), case.expected) == []
    check(case, run, kept)


@needs("strace")
@pytest.mark.parametrize("errno", sorted(NO_LOCKS))
def test_a_file_system_without_locks(case: Case, run: Words, errno: str) -> None:
    """The core calls flock past the C library, so that no preloaded one could stand in."""
    kept = Kept.of(case.source)
    unlocked = ["strace", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null"]
    unlocked += ["-e", "trace=flock", "-e", f"inject=flock:error={errno}"]
    children = [
        subprocess.Popen(
            [*unlocked, *COMMAND, *map(str, run), "--worker", split],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for split in SPLITS
    ]
    assert {child.wait(TIMEOUT) for child in children} <= ENDINGS
    check(case, run, kept)
