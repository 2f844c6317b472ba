"""What a converted folder must survive: digests before and after, processes killed midway."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from invariants import JOURNALS, violations
from support import COMMAND, environment

# Sizes and counts of the full series instead of the sample that every `make test` runs.
FULL = os.environ.get("LINGCONV_FULL") == "1"
PATIENCE = 60
_CHUNK = 8 << 20
Words = Sequence[str | Path]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    running, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            running.update(buffer[:count])
    return running.hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in files}


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, modification and change time of every file: none of them moves unless it is written."""
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")))
    return {
        str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for path, stat in found
    }


@dataclass(frozen=True)
class Case:
    """A source, and what an undisturbed run makes of it."""

    source: Path
    # Words of the command that is disturbed, and run again to go on.
    command: Callable[..., Words]
    expected: dict[str, str]
    # From the first trace of the output to the end of the undisturbed run.
    seconds: float
    _digests: dict[str, str]
    _stamps: dict[str, tuple[int, int, int]]

    @classmethod
    def of(cls, source: Path, output: Path, command: Callable[..., Words] | None = None) -> Case:
        """Run undisturbed, `quantize` by default; `output` is left for comparisons."""
        command, before = command or quantize, (digests(source), stamps(source))
        child = start(command(source, output))
        _await_trace(child, output)
        began = time.monotonic()
        assert child.wait() == 0
        seconds = time.monotonic() - began
        case = cls(source, command, digests(output), seconds, *before)
        case.check_finished(output)
        check_sums(output)
        return case

    def words(self, output: Path, *options: str | Path) -> Words:
        """The command for an output of its own."""
        return self.command(self.source, output, *options)

    def check_source(self) -> None:
        """Nothing of the source was written to, in content or in times."""
        assert stamps(self.source) == self._stamps
        assert digests(self.source) == self._digests

    def check_unfinished(self, output: Path) -> None:
        """What has its final name already is what an undisturbed run writes."""
        found = {
            name: value
            for name, value in digests(output).items()
            if not name.endswith(".part") and not name.startswith(f"{JOURNALS}/")
        }
        assert found.items() <= self.expected.items()
        assert violations(output, self.expected) == []

    def check_finished(self, output: Path) -> None:
        """Byte for byte the undisturbed output, with its sums, and no leftovers."""
        assert digests(output) == self.expected
        assert violations(output, self.expected) == []
        assert not (output / JOURNALS).exists()


def check_sums(output: Path) -> None:
    """`sha256sum` agrees with what lingconv says of its output."""
    sums = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    done = subprocess.run(sums, cwd=output, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def quantize(source: Path, output: Path, *options: str | Path) -> Words:
    """Every shard becomes one shard."""
    return ("quantize", "fp8", source, "-o", output, *options)


def reshard(source: Path, output: Path, *options: str | Path) -> Words:
    """Every layer is scattered to four ranks, each of which shares its KV head with another."""
    layout = ("--tp", "4", "--pp", "2", "--ep", "4", "--shard-size", "20M")
    return ("reshard", source, "-o", output, *layout, *options)


def undo(source: Path, output: Path, *options: str | Path) -> Words:
    """Every tensor is put together from the files of four ranks."""
    return ("reshard", source, "-o", output, "--target", "hf", *options)


def start(words: Words) -> subprocess.Popen[bytes]:
    """A command in the background, unheard."""
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _await_trace(child: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (output / JOURNALS).exists() and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def killed(words: Words, output: Path, moment: float) -> bool:
    """SIGKILL, `moment` seconds after the output's first trace; whether it was still running."""
    return killed_together([words], output, [moment]) == 1


def killed_together(commands: Sequence[Words], output: Path, moments: Sequence[float]) -> int:
    """SIGKILL of several commands, each at its moment; how many were still running."""
    children = [start(words) for words in commands]
    _await_trace(children[0], output)
    began = time.monotonic()
    for moment, child in sorted(zip(moments, children, strict=True), key=lambda pair: pair[0]):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        child.kill()
    return [child.wait() for child in children].count(-signal.SIGKILL)


def killed_after_reading(words: Words, amount: float) -> bool:
    """SIGKILL once that many bytes have been read; whether it was still running."""
    child = start(words)
    counters = Path(f"/proc/{child.pid}/io")
    while child.poll() is None:
        read = int(counters.read_text().split()[1])
        if read >= amount:
            child.kill()
            break
        time.sleep(0.001)
    return child.wait() == -signal.SIGKILL


def moments(count: int, whole: float, seed: int) -> list[float]:
    """Random moments of a run of `whole` seconds or bytes, one in each of `count` equal spans."""
    chance = random.Random(seed)
    return [whole * (span + chance.random()) / count for span in range(count)]
