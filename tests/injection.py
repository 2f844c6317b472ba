"""Every system call by which a run changes the disk, and runs in which one of them fails."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ordeal import Words
from support import COMMAND, TIMEOUT, environment

NAMES = (
    "openat,write,pwrite64,fsync,fdatasync,ftruncate,fallocate,mkdir,rename,renameat,renameat2,"
    "unlink,unlinkat,rmdir"
)
_LINE = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)")


@dataclass(frozen=True)
class Call:
    """The `nth` call of this name that one thread makes on `path`, relative to the output."""

    name: str
    path: Path
    nth: int

    @property
    def file(self) -> str:
        """The name under which people know the file."""
        return self.path.name.removesuffix(".part")


def calls_of(words: Words, output: Path) -> list[Call]:
    """All calls of an undisturbed run on the output, in order."""
    with tempfile.NamedTemporaryFile("r") as log:
        done = traced(
            ["--seccomp-bpf", "-y", "-s", "0", "-e", f"trace={NAMES}", "-o", log.name], words
        )
        assert done.returncode == 0, done.stderr
        lines = log.read().splitlines()
    inside = re.compile(rf'[<"]{re.escape(str(output))}(/[^">]*)?[">]')
    counts: Counter[tuple[str, str, Path]] = Counter()
    calls: dict[Call, None] = {}
    for line in lines:
        call = _LINE.match(line)
        place = call and inside.search(call["arguments"])
        if call and place:
            path = Path((place[1] or "/").lstrip("/"))
            key = (call["thread"], call["name"], path)
            counts[key] += 1
            calls[Call(call["name"], path, counts[key])] = None
    return list(calls)


def inject(effect: str, call: Call, words: Words, output: Path) -> subprocess.CompletedProcess[str]:
    """Run with `error=ERRNO` or `signal=NAME` at a call."""
    options = ["-P", str(output / call.path), "-e", f"trace={call.name}", "-o", "/dev/null"]
    if effect.startswith("error="):
        # Where the filter stops a thread, no signal can be delivered.
        options.append("--seccomp-bpf")
    return traced([*options, "-e", f"inject={call.name}:{effect}:when={call.nth}"], words)


def traced(options: Sequence[str], words: Words) -> subprocess.CompletedProcess[str]:
    """A finished command under strace."""
    return subprocess.run(
        ["strace", "-f", "-q", *options, *COMMAND, *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
