"""What `reshard` costs beside `cp`, what it moves from and to the disk, and plans at full size.

Wall times are measured in turns from the page cache, as ratios to `cp` with fsync. Every
command also runs once from a cold cache, to count what it reads from storage and writes to it.
Plans are those of a sparse checkpoint with the names and shapes of Ling-1T.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from racing import chill, machine, machine_text, options, remove, save

from bench import COPY, Contender
from measure import Cost, cost_of, cost_of_lingconv
from ordeal import Words
from support import COMMAND, succeed

LAYOUTS: dict[str, Words] = {
    "TP 8": ("--tp", "8"),
    "TP 8, fp8": ("--tp", "8", "--format", "fp8"),
    "TP 32 x EP 32": ("--tp", "32", "--ep", "32"),
}
PLANS: dict[str, Words] = {
    "TP 8 x PP 4": ("--tp", "8", "--pp", "4"),
    "TP 16 x PP 2 x EP 16": ("--tp", "16", "--pp", "2", "--ep", "16"),
    "TP 32 x EP 32": ("--tp", "32", "--ep", "32"),
}
UNDO = "undo of TP 8"
# One of them dense; each is a task, beside embeddings and head, as in a whole checkpoint.
LAYERS = 3
COLUMNS = ("", "wall s", "x cp", "GB/s", "CPU-s/GB", "peak MB", "asked", "read", "written")


@dataclass
class Cutter(Contender):
    """A command whose rate counts the bytes that it writes; `needed` is what it has to read."""

    needed: int = field(kw_only=True)
    cold: Cost | None = field(default=None, kw_only=True)

    def run_cold(self) -> None:
        """Once from an empty cache."""
        self.prepare()
        for path in self.sources:
            chill(path)
        self.cold = cost_of(*self.command, **self.variables)
        if self.cold.code != 0:
            raise SystemExit(f"{self.name}: exit {self.cold.code}\n{self.cold.stderr}")

    def traffic(self) -> dict[str, float | None]:
        """Bytes asked of the kernel, read from storage, written to it: shares of what is needed."""
        if self.cold is None:
            return {}
        cold = self.cold
        return {
            "asked": round(cold.read / self.needed, 3),
            "storage_read": round(cold.storage_read / self.needed, 3),
            "storage_written": round(cold.storage_written / self.size, 3),
        }


def size_of(folder: Path) -> int:
    """Bytes of the safetensors files."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def cutters(folder: Path, experts: int) -> list[Cutter]:
    """Makes the sources: layers of Ling-flash-2.0 in one file, and the same cut for 8 ranks."""
    source, cut, output = folder / "source", folder / "cut", folder / "out"
    shape = ("ling-flash-2.0", "--layers", str(LAYERS), "--experts", str(experts))
    succeed("synth", *shape, "--shard-size", "999G", "-o", source)
    (file,) = source.glob("*.safetensors")
    size = file.stat().st_size
    copied = folder / "copy"
    found = [
        Cutter(
            "cp + fsync", ("sh", "-c", COPY, "sh", file, copied), [file], size, copied, needed=size
        )
    ]
    for name, layout in LAYOUTS.items():
        words: Words = ("reshard", source, "-o", output, *layout, "--quiet")
        succeed(*words)
        written = size_of(output)
        remove(output)
        found.append(Cutter(name, (*COMMAND, *words), [file], written, output, needed=size))
    succeed("reshard", source, "-o", cut, *LAYOUTS["TP 8"])
    files = sorted(cut.glob("*.safetensors"))
    words = ("reshard", cut, "-o", output, "--target", "hf", "--quiet")
    needed = sum(path.stat().st_size for path in files)
    found.append(Cutter(UNDO, (*COMMAND, *words), files, size, output, needed=needed))
    return found


def plans(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds and memory of plans of a checkpoint of full size."""
    source = folder / "ling-1t"
    succeed("synth", "ling-1t", "--sparse", "-o", source)
    rows = []
    for name, layout in PLANS.items():
        words = ("reshard", source, "-o", folder / "none", *layout, "--dry-run", "--json")
        costs = [cost_of_lingconv(*words) for _ in range(rounds)]
        plan = costs[0].answer()
        small = plan["write_bytes"] - sum(rank["bytes"] for rank in plan["ranks"])
        rows.append(
            {
                "layout": name,
                "seconds": round(median(cost.seconds for cost in costs), 3),
                "peak_mb": round(max(cost.peak for cost in costs) / 1e6),
                "files": plan["write_files"],
                "bytes": plan["write_bytes"],
                "small_files": small,
            }
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        machine_text(report["machine"]),
        f"{report['rounds']} rounds in turns from the page cache, medians; asked, read, written: "
        "shares of the bytes needed, once from a cold cache",
        "",
        f"{COLUMNS[0]:22}" + "".join(f"{column:>10}" for column in COLUMNS[1:]),
    ]
    keys = ("seconds", "ratio_to_cp", "gb_per_second", "cpu_seconds_per_gb")
    for row in report["commands"]:
        numbers = "".join(f"{row[key]:10.2f}" for key in keys)
        shares = "".join(
            f"{row[key]:10.3f}" for key in ("asked", "storage_read", "storage_written")
        )
        lines.append(f"{row['name']:22}{numbers}{row['peak_mb']:10}{shares}")
    lines += ["", f"{'plan of Ling-1T':22}{'wall s':>10}{'peak MB':>10}{'files':>10}"]
    for row in report["plans"]:
        lines.append(
            f"{row['layout']:22}{row['seconds']:10.2f}{row['peak_mb']:10}{row['files']:10}"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, save."""
    args = options(
        __doc__, experts="0.05 GB of BF16 each; 32 or more", free="20 GB", save="bench-reshard.json"
    ).parse_args()
    report: dict[str, Any] = {"schema": "lingconv.bench/1", "machine": machine()}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        racers = cutters(Path(name), args.experts)
        for _ in range(args.rounds):
            for racer in racers:
                racer.run()
                remove(racer.output)
        for racer in racers:
            racer.run_cold()
            remove(racer.output)
        report["plans"] = plans(Path(name), args.rounds)
    copy_pace = racers[0].wall / racers[0].size
    report["rounds"] = args.rounds
    report["cached"] = min(min(racer.cached) for racer in racers)
    report["commands"] = [racer.compared(copy_pace) | racer.traffic() for racer in racers]
    save(report, args.save)
    sys.stdout.write(f"{table(report)}\nsaved to {args.save}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
