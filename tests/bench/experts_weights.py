"""One table: `lingconv experts stats` of a checkpoint beside `lingconv verify --level content`.

Both read the same shards, in turns. The verification also makes the SHA-256 of every file where
sums are known; without sums it only looks at values and ends with 9, as it must.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from racing import Racer, chill, machine, machine_text, options, save
from verify import FILES, SUMS, sources

from lingconv.errors import ExitCode
from measure import Cost, cost_of
from support import COMMAND, MANIFEST

STATS, CONTENT, VALUES = "experts stats", "verify content, with sums", "verify content, no sums"
COLUMNS = ("", "wall s", "least", "most", "GB/s", "x content", "x values", "CPU-s/GB", "peak MB")
KEYS = ("seconds", "seconds_least", "seconds_most", "gb_per_second", "of_content", "of_values")


@dataclass
class Look(Racer):
    """A command that reads a checkpoint; `size` becomes what it says that it read."""

    kind: str
    source: Path
    cold: bool = field(default=False, kw_only=True)
    code: int = field(default=ExitCode.DONE, kw_only=True)

    def prepare(self) -> None:
        """Sources in the page cache, or out of it."""
        super().prepare()
        if self.cold:
            for path in self.sources:
                chill(path)

    def run(self) -> Cost:
        """Measure once; another exit code than the one expected ends the benchmark."""
        self.prepare()
        cost = cost_of(*self.command, **self.variables)
        if cost.code != self.code:
            raise SystemExit(f"{self.name}: exit {cost.code}\n{cost.stderr}")
        self.costs.append(cost)
        return cost


def looks(folder: Path, experts: int) -> list[Look]:
    """Each kind on BF16 and FP8 in the page cache, on BF16 from the disk."""
    bf16, fp8 = sources(folder, experts)
    state = {"XDG_STATE_HOME": str(folder / "state")}

    def of(source: Path, label: str, *, cold: bool = False) -> list[Look]:
        files = sorted(source.glob(FILES))
        whole = sum(path.stat().st_size for path in files)
        bare = _without_sums(source)
        looked_at = _bytes_looked_at(source)
        verify = (*COMMAND, "verify", "--level", "content", "--fresh", "--json", "--quiet")
        stats = (*COMMAND, "experts", "stats", "--json", "--quiet", source)
        more: dict[str, Any] = {"cold": cold, "variables": state}
        values = {"code": ExitCode.UNVERIFIABLE} | more
        return [
            Look(f"{STATS}, {label}", stats, files, looked_at, STATS, source, **more),
            Look(f"{CONTENT}, {label}", (*verify, source), files, whole, CONTENT, source, **more),
            Look(f"{VALUES}, {label}", (*verify, bare), files, whole, VALUES, source, **values),
        ]

    return [*of(bf16, "BF16"), *of(fp8, "FP8"), *of(bf16, "BF16", cold=True)]


def _without_sums(source: Path) -> Path:
    """The same files, hard-linked, without what says how they should be."""
    bare = source.with_name(source.name + "-bare")
    if not bare.exists():
        ignored = shutil.ignore_patterns(SUMS, MANIFEST, ".lingconv")
        shutil.copytree(source, bare, copy_function=os.link, ignore=ignored)
    return bare


def _bytes_looked_at(source: Path) -> int:
    cost = cost_of(*COMMAND, "experts", "stats", "--json", "--quiet", source)
    answer = cost.answer()
    assert answer["findings"] == [], "a made-up checkpoint is sound"
    size: int = answer["bytes"]
    return size


def rows(racers: list[Look]) -> list[dict[str, Any]]:
    """Figures of each; speeds as shares of those of the two verifications."""
    speeds = {(r.source, r.cold, r.kind): r.size / r.wall for r in racers}
    found = []
    for racer in racers:
        shares = {
            name: round(racer.size / racer.wall / speeds[racer.source, racer.cold, kind], 3)
            for name, kind in (("of_content", CONTENT), ("of_values", VALUES))
        }
        found.append(racer.figures() | shares | {"cold": racer.cold})
    return found


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        machine_text(report["machine"]),
        f"{report['rounds']} rounds in turns, medians; GB are bytes read; start of Python included",
    ]
    for cold in (False, True):
        title = "dropped by fadvise" if cold else "page cache"
        lines += ["", f"{title:32}" + "".join(f"{column:>10}" for column in COLUMNS[1:])]
        for row in (row for row in report["commands"] if row["cold"] == cold):
            cells = [row[key] for key in (*KEYS, "cpu_seconds_per_gb")]
            numbers = "".join(f"{cell:10.2f}" for cell in cells)
            lines.append(f"{row['name']:32}{numbers}{row['peak_mb']:10}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, save."""
    args = options(
        __doc__, experts="about 0.1 GB of BF16 each", free="7 GB", save="bench-experts-weights.json"
    ).parse_args()
    report: dict[str, Any] = {"schema": "lingconv.bench-experts-weights/1", "machine": machine()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        racers = looks(Path(folder), args.experts)
        for _ in range(args.rounds):
            for racer in racers:
                racer.run()
    report["rounds"] = args.rounds
    report["commands"] = rows(racers)
    save(report, args.save)
    sys.stdout.write(f"{table(report)}\nsaved to {args.save}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
