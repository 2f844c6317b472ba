"""Stopping, going on, and asking how far it is: a run long enough to be asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import COMMAND, MANIFEST, contents, environment, published, succeed

# Slow enough that a signal arrives in the middle, and the same bytes as any other way.
SLOW = ["-j", "1", "--prove", "--report", "--progress", "json"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 500 MB in files of about 100 MB."""
    folder = tmp_path_factory.mktemp("signals") / "layer"
    succeed("synth", "ling-1t-layer", "-o", folder, "--experts", "1", "--shard-size", "100M")
    return folder


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, bytes]:
    """What a run writes that nobody stops."""
    out = source.parent / "undisturbed"
    succeed("quantize", "fp8", source, "-o", out, *SLOW)
    return files_of(out)


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != MANIFEST}


def on_one_core() -> None:
    """A run that is to be met halfway lasts as long where there are many cores."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Running:
    """A run that has begun to write."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(LINGCONV_KERNEL="scalar"),
            preexec_fn=on_one_core,
        )
        assert self.process.stderr
        self._lines = iter(self.process.stderr)
        self.said = [next(line for line in self._lines if "lingconv.progress/1" in line)]

    def send(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            self.process.send_signal(number)

    def line_with(self, text: str) -> str:
        """The next line of stderr that holds `text`."""
        return next(line for line in self._lines if text in line)

    def end(self) -> tuple[int, list[str]]:
        """The exit code and the rest of stderr."""
        rest = [line.rstrip("\n") for line in self._lines]
        return self.process.wait(timeout=60), rest


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Iterator[Running]:
    running = Running("quantize", "fp8", source, "-o", tmp_path / "out", *SLOW)
    yield running
    running.process.kill()
    running.process.communicate()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_stopped_run_says_how_to_go_on_and_does(
    run: Running, source: Path, tmp_path: Path, undisturbed, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    run.send(number)
    assert run.end()[0] == code
    assert not published(out)
    again = Running("quantize", "fp8", source, "-o", out, *SLOW, "--json")
    again.send(number)
    ended, said = again.end()
    assert ended == code
    error = json.loads(said[-1])["error"]
    assert (error["code"], error["kind"], error["path"]) == (code, "cancelled", str(out))
    assert number.name in error["message"]
    assert "kept: " in error["message"]
    assert f"lingconv quantize fp8 {source} -o {out}" in error["hint"]
    succeed("quantize", "fp8", source, "-o", out, *SLOW)
    assert files_of(out) == undisturbed


def test_a_second_signal_ends_at_once(run: Running, tmp_path: Path) -> None:
    run.send(signal.SIGINT, signal.SIGTERM)
    code, said = run.end()
    assert code == 143
    assert not any("kept" in line for line in said)
    assert not published(tmp_path / "out")


def test_usr1_prints_a_line(run: Running) -> None:
    for _ in range(2):
        run.send(signal.SIGUSR1)
        line = run.line_with(" of ")
        assert "%)" in line
        assert "B/s" in line


def test_a_killed_run_goes_on(run: Running, source: Path, tmp_path: Path, undisturbed) -> None:
    run.process.kill()
    run.end()
    assert not published(tmp_path / "out")
    succeed("quantize", "fp8", source, "-o", tmp_path / "out", *SLOW)
    assert files_of(tmp_path / "out") == undisturbed


def test_a_comparison_with_the_source_stops(source: Path, undisturbed) -> None:
    out = source.parent / "undisturbed"
    words = ("verify", out, "--against", source, "-j", "1", "--progress", "json", "--json")
    running = Running(*words)
    running.send(signal.SIGINT)
    code, said = running.end()
    assert code == 130
    error = json.loads(said[-1])["error"]
    assert (error["kind"], error["path"]) == ("cancelled", str(out))
    assert "nothing is kept" in error["message"]
    assert files_of(out) == undisturbed
    succeed(*words)
