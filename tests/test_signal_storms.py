"""Signals at any moment, and very many of them: the exit code says what was done, or which signal.

What comes before the program handles signals cannot be helped, and is not asked for here.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from downloads import sums
from ordeal import FULL, Words
from support import COMMAND, TIMEOUT, environment, published, succeed

STORMS = 80 if FULL else 3
STOPS = 200 if FULL else 4
LINES = 400 if FULL else 2
# Lines of Python until signals are handled, and those at the end where little is left to go wrong.
FIRST_LINES, LAST_LINES = 100, 400
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
INTERRUPTING = Path(__file__).with_name("interrupting.py")


@dataclass(frozen=True)
class Ended:
    code: int
    stdout: str
    stderr: str

    def check_quiet(self) -> None:
        """Whatever happened, it is said in words."""
        for word in ("Traceback", "Exception ignored", "internal error"):
            assert word not in self.stderr, self


@pytest.fixture(scope="module")
def tiny(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with sums."""
    folder = tmp_path_factory.mktemp("storms") / "tiny"
    shutil.copytree(shared / "tiny", folder)
    sums(folder)
    return folder


def commands(tiny: Path, new: Path) -> list[Words]:
    return [
        ("quantize", "fp8", tiny, "-o", new / "out", "--json"),
        ("verify", tiny, "--json", "--fresh"),
        ("inspect", tiny, "--json"),
        ("reshard", tiny, "--tp", "2", "-o", new / "out", "--json"),
    ]


def handles(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process does something of its own at a signal."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    masks = [line.split()[1] for line in lines if line.startswith(("SigIgn", "SigCgt"))]
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def stormed(words: Words, signals: Iterable[tuple[float, signal.Signals]]) -> Ended:
    """A command that is sent signals, each after a pause, from when it handles them to its end."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with ThreadPoolExecutor(1) as reader:
        streams = reader.submit(process.communicate)
        # The last of those that are handled at first; an ended process handles nothing.
        while not handles(process, signal.SIGTERM) and not streams.done():
            time.sleep(0.0002)
        for pause, number in signals:
            time.sleep(pause)
            if streams.done():
                break
            process.send_signal(number)
        stdout, stderr = streams.result(timeout=TIMEOUT)
    return Ended(process.returncode, stdout, stderr)


@pytest.mark.parametrize("storm", range(STORMS))
def test_being_asked_changes_nothing(tiny: Path, tmp_path: Path, storm: int) -> None:
    words = commands(tiny, tmp_path)[storm % 4]
    pause = (0.0, 0.0002, 0.002)[storm % 3]
    ended = stormed(words, itertools.repeat((pause, signal.SIGUSR1)))
    ended.check_quiet()
    assert ended.code == 0, ended
    assert json.loads(ended.stdout)["schema"].startswith("lingconv.")


@pytest.mark.parametrize("stop", range(STOPS))
def test_being_stopped_is_what_the_code_says(tiny: Path, tmp_path: Path, stop: int) -> None:
    chance = random.Random(stop)
    words = commands(tiny, tmp_path)[stop % 4]
    numbers = chance.choices(list(CODES), k=stop % 3 + 1)
    moments = [chance.uniform(0, 0.4), *(chance.uniform(0, 0.01) for _ in numbers[1:])]
    ended = stormed(words, zip(moments, numbers, strict=True))
    ended.check_quiet()
    if ended.code == 0:
        assert json.loads(ended.stdout)["schema"].startswith("lingconv.")
        return
    assert ended.code in {CODES[number] for number in numbers}, ended
    if words[0] in ("quantize", "reshard"):
        succeed(*words)
        assert published(tmp_path / "out")


def interrupted(number: signal.Signals, line: int, words: Words) -> Ended:
    """A command that gets a signal at a line of Python; at none for 0."""
    done = subprocess.run(
        [sys.executable, INTERRUPTING, number.name, str(line), *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["fails", "writes"])
def test_a_signal_at_any_line(tiny: Path, tmp_path: Path, name: str) -> None:
    commands: dict[str, Words] = {
        "fails": ("inspect", tiny / "missing", "--json"),
        "writes": ("verify", tiny, "--write-sums", tmp_path / "sums", "--log", tmp_path / "log"),
    }
    words = commands[name]
    calm = interrupted(signal.SIGINT, 0, words)
    lines = int(calm.stderr.splitlines()[-1])
    chance = random.Random(name)
    moments = [chance.randrange(FIRST_LINES, lines) for _ in range(LINES)]
    moments += [lines - chance.randrange(LAST_LINES) for _ in range(LINES)]
    for line in moments:
        number = chance.choice([*CODES, signal.SIGUSR1])
        ended = interrupted(number, line, words)
        ended.check_quiet()
        assert ended.code in (CODES.get(number), calm.code), (number, line, ended)
        assert number in CODES or ended.code == calm.code, (line, ended)
        assert {path.name for path in tmp_path.iterdir()} <= {"sums", "log"}, (number, line)
