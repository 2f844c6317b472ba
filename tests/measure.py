"""What a command costs, as the kernel counts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import COMMAND, environment

# A small process stands between: the peak of a child begins with the size of whoever forked it.
_LAUNCHER = """
import json, os, sys, time
start = time.monotonic()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
seconds = time.monotonic() - start
with open(f"/proc/{child}/io") as file:
    io = dict(line.split(": ") for line in file.read().splitlines())
_, status, usage = os.wait4(child, 0)
cost = {
    "code": os.waitstatus_to_exitcode(status),
    "seconds": seconds,
    "user": usage.ru_utime,
    "system": usage.ru_stime,
    "peak": usage.ru_maxrss * 1024,
    "read": int(io["rchar"]),
    "storage_read": int(io["read_bytes"]),
    "storage_written": int(io["write_bytes"]),
}
with open(sys.argv[1], "w") as file:
    json.dump(cost, file)
"""


@dataclass(frozen=True)
class Cost:
    """Figures of a finished command; `read` counts all bytes that it asked the kernel for, the
    `storage_` ones what the disk was asked for."""

    code: int
    seconds: float
    user: float
    system: float
    peak: int
    read: int
    storage_read: int
    storage_written: int
    stdout: str
    stderr: str

    @property
    def cpu(self) -> float:
        """CPU seconds of all threads."""
        return self.user + self.system

    def answer(self) -> Any:
        """The `--json` answer."""
        assert self.code == 0, self.stderr
        return json.loads(self.stdout)


def cost_of(*command: str | Path, **variables: str) -> Cost:
    """Run any command."""
    with tempfile.NamedTemporaryFile("r") as figures:
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, figures.name]
        done = subprocess.run(
            [*launcher, *map(str, command)],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=True,
        )
        return Cost(**json.load(figures), stdout=done.stdout, stderr=done.stderr)


def cost_of_lingconv(*arguments: str | Path, **variables: str) -> Cost:
    """Run lingconv."""
    return cost_of(*COMMAND, *arguments, **variables)
