"""What `lingconv experts` costs on loads of Ling-1T: 80 layers × 256 experts.

Recorder dumps are measured with `--torch PYTHON`, the interpreter of an environment that has torch
and lingconv; importing torch is measured apart. The files are removed at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from racing import machine, machine_text, warm

from measure import cost_of
from ordeal import Words

LAYERS, DENSE, EXPERTS = 80, 4, 256
MODULE = ("-m", "lingconv", "experts")
DUMP = """
import sys, torch
steps, path = int(sys.argv[1]), sys.argv[2]
counts = torch.randint(0, 60, (steps, 80, 256), dtype=torch.int32)
counts[:, :4] = 0
torch.save({"rank": 0, "logical_count": counts}, path)
"""


def write_npy(path: Path, steps: int) -> None:
    """Counts of which the experts of a layer get unequal shares."""
    generator = np.random.default_rng(0)
    shares = np.exp(generator.normal(size=(LAYERS, EXPERTS)) / 2) * 30
    shares[:DENSE] = 0
    shape = (steps, LAYERS, EXPERTS)
    counts = np.lib.format.open_memmap(path, "w+", np.int32, shape)
    for start in range(0, steps, 100):
        counts[start : start + 100] = generator.poisson(shares, (100, LAYERS, EXPERTS))
    counts.flush()


def show(name: str, command: Words, sources: list[Path], rounds: int) -> None:
    """Measure a command some times, its sources in the page cache."""
    costs = []
    for _ in range(rounds):
        for source in sources:
            warm(source)
        costs.append(cost_of(*command))
        if costs[-1].code:
            raise SystemExit(f"{name}: {costs[-1].stderr}")
    seconds = [cost.seconds for cost in costs]
    peak = max(cost.peak for cost in costs) / 1e6
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    sys.stdout.write(f"{name:<44} {median(seconds):6.2f} s ({spread})   peak {peak:5.0f} MB\n")


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--torch", metavar="PYTHON", help="Measure recorder dumps with it.")
    options = parser.parse_args()
    python = (sys.executable, *MODULE)
    sys.stdout.write(machine_text(machine()) + "\n")
    with tempfile.TemporaryDirectory(prefix="lingconv-bench-") as name:
        folder = Path(name)
        table = folder / "loads.npy"
        write_npy(table, options.steps)
        size = table.stat().st_size / 1e6
        stats = (*python, "stats", table, "--ep", "32", "--json")
        show(f"stats, npy, {options.steps:,} steps, {size:.0f} MB", stats, [table], options.rounds)
        small = folder / "small.npy"
        write_npy(small, 100)
        for method in ("eplb", "greedy"):
            for purpose in ("files", "sglang"):
                place = (*python, "place", small, "--ep", "32", "--groups", "8", "--json")
                command = (*place, "--method", method, "--for", purpose)
                show(f"place, {method}, for {purpose}", command, [small], options.rounds)
        if options.torch:
            dump = folder / "dump.pt"
            cost_of(options.torch, "-c", DUMP, "1000", dump)
            show("import torch", (options.torch, "-c", "import torch"), [], options.rounds)
            read = (options.torch, *MODULE, "stats", dump, "--ep", "32", "--json")
            show("stats, recorder dump, 1,000 steps", read, [dump], options.rounds)


if __name__ == "__main__":
    main()
