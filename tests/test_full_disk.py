"""A file system that really is full, before a run and in the middle of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ordeal import Case, Words, quantize
from requirements import needs
from support import COMMAND, TIMEOUT, environment, succeed

_MOUNT = 'mount -t tmpfs -o "size=$2" tmpfs "$1" && echo mounted && exec cat'
PAGE = 4096
# The slowest kernel takes a tenth of a second for each file.
SLOW = {"LINGCONV_KERNEL": "scalar"}
STEP, ATTEMPTS = 0.002, 20
pytestmark = needs("mount")


@dataclass(frozen=True)
class Disk:
    """A tmpfs that only `holder` and whoever enters its namespace see at `place`."""

    holder: int
    place: Path

    def seen(self, name: str) -> Path:
        """A file of the disk as it is seen from outside."""
        return Path(f"/proc/{self.holder}/root") / self.place.relative_to("/") / name

    def start(self, words: Words) -> subprocess.Popen[str]:
        """A lingconv command that sees the disk."""
        return subprocess.Popen(
            ["nsenter", f"--target={self.holder}", "--mount", *COMMAND, *map(str, words)],
            env=environment(**SLOW),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, words: Words) -> tuple[int, str]:
        """Exit code and stderr."""
        child = self.start(words)
        _, text = child.communicate(timeout=TIMEOUT)
        return child.returncode, text

    def fill(self) -> Path:
        """Take every byte that is left; the file to remove for having them back."""
        balloon = self.seen("balloon")
        with balloon.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(PAGE))
        return balloon


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Disk]:
    """A disk of `size` bytes, gone when its holder ends."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", str(place), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "mounted\n"
        yield Disk(holder.pid, place)


def stopped_at(disk: Disk, words: Words, output: Path, awaited: str) -> subprocess.Popen[str]:
    """A run that stands still while a file of that name is there.

    It runs in steps and is only looked at between them, so what is seen stays so. A file that came
    and went within one step, on a machine too busy to end it in time, costs another attempt.
    """
    for _ in range(ATTEMPTS):
        child = disk.start(words)
        while True:
            child.send_signal(signal.SIGSTOP)
            state = os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if not state or state.si_code != os.CLD_STOPPED:
                break
            if list(output.glob(awaited)):
                return child
            child.send_signal(signal.SIGCONT)
            time.sleep(STEP)
        child.communicate()
        shutil.rmtree(output)
    pytest.fail(f"{awaited} was missed {ATTEMPTS} times")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("disk")
    size: Words = ("--layers", "5", "--experts", "48", "--shard-size", "10M")
    succeed("synth", "tiny", *size, "-o", folder / "source")
    yield Case.of(folder / "source", folder / "calm")
    shutil.rmtree(folder)


def test_too_small_a_disk_is_said_before_the_first_byte(case: Case, tmp_path: Path) -> None:
    with small_disk(tmp_path, 20 << 20) as disk:
        code, text = disk.run(quantize(case.source, tmp_path / "out"))
        assert code == 6
        assert "bytes are needed" in text
        assert not disk.seen("out").exists()


@pytest.mark.parametrize("done", [0, 1, 4])
def test_full_in_the_middle_of_a_run(case: Case, tmp_path: Path, done: int) -> None:
    words = quantize(case.source, tmp_path / "out", "--jobs", "1")
    with small_disk(tmp_path, 100 << 20) as disk:
        output = disk.seen("out")
        child = stopped_at(disk, words, output, f"model-{done + 1:05}-of-*.part")
        balloon = disk.fill()
        child.send_signal(signal.SIGCONT)
        _, text = child.communicate(timeout=TIMEOUT)
        assert child.returncode == 6, text
        assert "No space left on device" in text
        assert str(tmp_path / "out") in text
        case.check_unfinished(output)
        assert disk.run(words)[0] == 6
        case.check_unfinished(output)
        balloon.unlink()
        code, text = disk.run(words)
        assert code == 0, text
        case.check_finished(output)
    case.check_source()
