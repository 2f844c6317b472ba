"""What the benchmarks share: commands measured in turns, and what the machine can do."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from measure import Cost, cost_of
from ordeal import Words

GIGABYTE = 1e9
PROBES = 64
TRIES = 5
YARDSTICK = 512 << 20


@dataclass
class Racer:
    """A command that is measured; `size` is what its rates count."""

    name: str
    command: Words
    sources: list[Path]
    size: int
    variables: dict[str, str] = field(default_factory=dict, kw_only=True)
    costs: list[Cost] = field(default_factory=list, kw_only=True)
    cached: list[float] = field(default_factory=list, kw_only=True)

    def prepare(self) -> None:
        """Have the sources in the page cache, and nothing left to write back."""
        for path in self.sources:
            warm(path)
        os.sync()

    def run(self) -> Cost:
        """Measure once."""
        self.prepare()
        self.cached.extend(map(cached_share, self.sources))
        cost = cost_of(*self.command, **self.variables)
        if cost.code != 0:
            raise SystemExit(f"{self.name}: exit {cost.code}\n{cost.stderr}")
        self.costs.append(cost)
        return cost

    @property
    def wall(self) -> float:
        """Median of the seconds."""
        return median(cost.seconds for cost in self.costs)

    @property
    def cpu(self) -> float:
        """Median of the CPU seconds of all threads."""
        return median(cost.cpu for cost in self.costs)

    def figures(self) -> dict[str, Any]:
        """Medians, and how far the rounds lie apart."""
        seconds = [cost.seconds for cost in self.costs]
        return {
            "name": self.name,
            "rounds": len(seconds),
            "bytes": self.size,
            "seconds": round(self.wall, 3),
            "seconds_least": round(min(seconds), 3),
            "seconds_most": round(max(seconds), 3),
            "gb_per_second": round(self.size / GIGABYTE / self.wall, 3),
            "cpu_seconds_per_gb": round(self.cpu * GIGABYTE / self.size, 3),
            "peak_mb": round(max(cost.peak for cost in self.costs) / 1e6),
        }


def warm(path: Path) -> None:
    """Have a file in the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(16 << 20)
        while file.readinto(buffer):
            pass


def chill(path: Path) -> None:
    """Have a file out of the page cache, which takes no rights."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        for entry in path.iterdir():
            remove(entry)
        path.rmdir()
    path.unlink(missing_ok=True)


def cached_share(path: Path) -> float:
    """Share of probes of a file that the page cache answers."""
    with path.open("rb", buffering=0) as file:
        hits, size = 0, path.stat().st_size
        for probe in range(PROBES):
            try:
                hits += os.preadv(
                    file.fileno(), [bytearray(1)], size // PROBES * probe, os.RWF_NOWAIT
                )
            except BlockingIOError:
                continue
    return hits / PROBES


def best_rate(work: Callable[[], object], size: int) -> float:
    """GB/s of the fastest of a few tries."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(size / GIGABYTE / min(times), 2)


def options(about: str | None, *, experts: str, free: str, save: str) -> argparse.ArgumentParser:
    """What every benchmark can be asked for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, default=40, help=experts)
    parser.add_argument("--folder", type=Path, help=f"on the disk to measure; {free} free")
    parser.add_argument("--save", type=Path, default=Path("build") / save)
    return parser


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    data, copy = os.urandom(YARDSTICK), bytearray(YARDSTICK)
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memcpy": best_rate(lambda: memoryview(copy).__setitem__(slice(None), data), YARDSTICK),
        "sha256": best_rate(lambda: hashlib.sha256(data), YARDSTICK),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def machine_text(facts: dict[str, Any]) -> str:
    """The machine in a line."""
    cpu = f"{facts['cpu']} · {facts['cores']} cores"
    return f"{cpu} · Linux {facts['kernel']} · load {facts['load']}"


def save(report: dict[str, Any], path: Path) -> None:
    """Write a report for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
