"""Disks that fail and processes that die at a given system call: nothing is lost or made up."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from injection import Call, calls_of, inject, traced
from ordeal import FULL, Case, quantize
from support import MANIFEST, succeed

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

SAMPLE = 8
EXIT_CODES = {"ENOSPC": 6, "EIO": 8}


@pytest.fixture(scope="module")
def case(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(shared / "tiny", tmp_path_factory.mktemp("faults") / "calm")


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    shutil.rmtree(tmp_path)


def chosen(calls: list[Call], seed: int) -> list[Call]:
    """All calls, or a sample in which every kind of call has its turn."""
    if FULL:
        return calls
    shuffled = random.Random(seed).sample(calls, len(calls))
    kinds = {call.name: call for call in shuffled}
    return [*kinds.values(), *shuffled][:SAMPLE]


def check_resumed(case: Case, output: Path) -> None:
    case.check_unfinished(output)
    succeed(*quantize(case.source, output))
    case.check_finished(output)
    shutil.rmtree(output)


@pytest.mark.parametrize("errno", EXIT_CODES)
def test_a_call_that_fails(case: Case, output: Path, errno: str) -> None:
    words = quantize(case.source, output)
    calls = calls_of(words, output)
    shutil.rmtree(output)
    hits = 0
    for call in chosen(calls, seed=EXIT_CODES[errno]):
        done = inject(f"error={errno}", call, words, output)
        if done.returncode == 0:
            case.check_finished(output)
        else:
            hits += 1
            assert done.returncode == EXIT_CODES[errno], (call, done.stderr)
            assert call.file in done.stderr, (call, done.stderr)
            assert "Traceback" not in done.stderr
        check_resumed(case, output)
    assert hits > 0.8 * len(calls) if FULL else hits > SAMPLE / 2
    case.check_source()


def test_killed_at_a_call(case: Case, output: Path) -> None:
    words = quantize(case.source, output)
    calls = calls_of(words, output)
    shutil.rmtree(output)
    chosen_calls = chosen(calls, seed=9)
    hits = 0
    for call in chosen_calls:
        done = inject("signal=SIGKILL", call, words, output)
        hits += done.returncode == -signal.SIGKILL
        check_resumed(case, output)
    assert hits > 0.9 * len(chosen_calls)
    case.check_source()


def test_a_file_system_that_cannot_sync_folders(shared: Path, output: Path) -> None:
    words = quantize(shared / "tiny", output)
    refused = ["-P", str(output), "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL"]
    done = traced([*refused, "-o", "/dev/null"], words)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot sync folders") == 1
    manifest = json.loads((output / MANIFEST).read_text())
    assert any("cannot sync folders" in warning for warning in manifest["warnings"])
