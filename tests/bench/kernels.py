"""GB/s of each kernel at each level, from `cargo bench`."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Larger than any last-level cache that is not that of a server; the scalar level is slow.
MEGABYTES = "192"
CONVERSION = ("encode_bf16(::|$)", "encode_bf16_channel", "decode_bf16")
DIGESTS = ("digest",)
_BENCH = re.compile(r"^[├╰]─ (\w+)")
_LEVEL = re.compile(r"^[│ ]  [├╰]─ (\w+)")
_RATE = re.compile(r"([\d.]+) ([GM])B/s")
_MEDIAN = 2


def kernel_rates(names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Medians by name and level, or whatever else a benchmark is repeated for."""
    done = subprocess.run(
        ["cargo", "bench", "--package", "lingconv-core", "--bench", "kernels", "--", *names],
        cwd=ROOT,
        env=os.environ | {"LINGCONV_BENCH_MB": MEGABYTES},
        capture_output=True,
        text=True,
        check=True,
    )
    return rates_of(done.stdout)


def rates_of(text: str) -> dict[str, dict[str, float]]:
    """Reads divan's tree: a line with times, below it one with rates."""
    found: dict[str, dict[str, float]] = {}
    bench = level = ""
    for line in text.splitlines():
        if match := _BENCH.match(line):
            bench = match[1]
        elif match := _LEVEL.match(line):
            level = match[1]
        elif rates := _RATE.findall(line):
            value, prefix = rates[_MEDIAN]
            rate = float(value) / (1 if prefix == "G" else 1000)
            found.setdefault(bench, {})[level] = rate
    return found
