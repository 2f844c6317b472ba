"""One table: what `lingconv verify` costs beside the usual ways to check sums, and its bounds; and
what verifying adds to a conversion, in a pass of its own or in the same one.

In memory the bound is the rate of `sha2` on every core used; cold it is also what the disk gives to
`dd` with direct I/O. All are measured in one run, in turns, on files that are removed at the end.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from kernels import DIGESTS, kernel_rates
from racing import GIGABYTE, Racer, chill, machine, machine_text, options, remove, save

from measure import Cost, cost_of
from ordeal import Words, quantize
from support import COMMAND, succeed

SUMS = "SHA256SUMS"
FILES = "*.safetensors"
# As `hf cache verify` reads; prints what `sha256sum` would.
HASHLIB = """
import hashlib, os, sys
for path in sys.argv[1:]:
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    print(f"{sha256.hexdigest()}  {os.path.basename(path)}")
"""
HASHLIB_NAME = "hashlib, 1 thread"
# A reader for each file in turn, as many at a time as the first argument says.
DISK = """
readers=$1; shift
printf '%s\\0' "$@" |
  xargs -0 -P "$readers" -I FILE dd if=FILE of=/dev/null bs=8M iflag=direct status=none
"""
COLUMNS = ("", "wall s", "least", "most", "GB/s", "x hashlib", "of bound", "CPU-s/GB", "peak MB")
KEYS = ("seconds", "seconds_least", "seconds_most", "gb_per_second", "ratio_to_hashlib", "of_bound")


@dataclass
class Reader(Racer):
    """A command that reads; `bound` is the number of cores that bound it, 0 for a yardstick."""

    bound: int = 0
    cold: bool = field(default=False, kw_only=True)

    def prepare(self) -> None:
        """Sources in the page cache, or out of it."""
        super().prepare()
        if self.cold:
            for path in self.sources:
                chill(path)

    def run(self) -> Cost:
        """Measure once, and see that our own command did read and compare all of it."""
        cost = super().run()
        if "verify" in self.command:
            answer = cost.answer()
            if answer["verified"] < len(self.sources) or answer["bytes"] < self.size:
                raise SystemExit(f"{self.name}: not everything was read\n{cost.stdout}")
        return cost


@dataclass
class Converter(Racer):
    """A command that ends with a converted checkpoint; its rates count the bytes of the source."""

    output: Path

    def prepare(self) -> None:
        """No output yet."""
        remove(self.output)
        super().prepare()


def sources(folder: Path, experts: int) -> tuple[Path, Path]:
    """A checkpoint in four shards with sums beside it, and its FP8 form with sums and manifest."""
    bf16, fp8 = folder / "bf16", folder / "fp8"
    # An expert of this layer has 100 MB, what is not experts as much as four of them.
    shard = f"{(experts + 4) * 28}MB"
    succeed("synth", "ling-1t-layer", "--experts", str(experts), "--shard-size", shard, "-o", bf16)
    cost = cost_of(sys.executable, "-c", HASHLIB, *sorted(bf16.glob(FILES)))
    (bf16 / SUMS).write_text(cost.stdout)
    succeed(*quantize(bf16, fp8))
    return bf16, fp8


def readers(folder: Path, experts: int) -> list[Reader]:
    """Those that read from the page cache, then those that read from the disk."""
    bf16, fp8 = sources(folder, experts)
    state = {"XDG_STATE_HOME": str(folder / "state")}

    def reader(name: str, source: Path, *words: str, bound: int = 0, cold: bool = False) -> Reader:
        files = sorted(source.glob(FILES))
        size = sum(path.stat().st_size for path in files)
        command: Words = (*words, *files)
        if not words or words[0].startswith("-"):
            command = (*COMMAND, "verify", source, "--fresh", "--json", "--quiet", *words)
        variables = {} if command[0] != COMMAND[0] else state
        return Reader(name, command, files, size, bound, variables=variables, cold=cold)

    hashlib = (sys.executable, "-c", HASHLIB)
    content = ("--level", "content")
    return [
        reader("sha256sum", bf16, "sha256sum"),
        reader("openssl dgst", bf16, "openssl", "dgst", "-sha256"),
        reader(HASHLIB_NAME, bf16, *hashlib),
        reader("verify, 1 job", bf16, "-j1", bound=1),
        reader("verify, 2 jobs", bf16, "-j2", bound=2),
        reader("verify, 2 jobs, content", bf16, "-j2", *content, bound=2),
        reader("verify, 2 jobs, experts", bf16, "-j2", *content, "--experts", bound=2),
        reader("verify FP8, 2 jobs", fp8, "-j2", bound=2),
        reader("verify FP8, 2 jobs, content", fp8, "-j2", *content, bound=2),
        reader("verify FP8, 2 jobs, experts", fp8, "-j2", *content, "--experts", bound=2),
        reader("dd, 1 reader", bf16, "sh", "-c", DISK, "sh", "1", cold=True),
        reader("dd, 2 readers", bf16, "sh", "-c", DISK, "sh", "2", cold=True),
        reader(HASHLIB_NAME, bf16, *hashlib, cold=True),
        reader("verify, 1 job", bf16, "-j1", bound=1, cold=True),
        reader("verify, 2 jobs", bf16, "-j2", bound=2, cold=True),
        reader("verify, 2 jobs, content", bf16, "-j2", *content, bound=2, cold=True),
    ]


def converters(folder: Path, bf16: Path) -> list[Converter]:
    """A conversion without verifying, after a verification, and with it in the same pass."""
    output, files = folder / "out", sorted(bf16.glob(FILES))
    size = sum(path.stat().st_size for path in files)
    variables = {"XDG_STATE_HOME": str(folder / "state")}

    def converter(name: str, *words: str | Path) -> Converter:
        return Converter(name, words, files, size, output, variables=variables)

    own = (*COMMAND, *quantize(bf16, output, "-j2", "--quiet"))
    verify = (*COMMAND, "verify", bf16, "--fresh", "-j2", "--quiet")
    both = shlex.join(map(str, verify)) + " && " + shlex.join(map(str, own))
    return [
        converter("quantize", *own),
        converter("verify, then quantize", "sh", "-c", both),
        converter("quantize --verify-source", *own, "--verify-source"),
    ]


def sha2_rate() -> float:
    """GB/s of one stream of the core's SHA-256, from memory."""
    return kernel_rates(DIGESTS)["digest"]["sha256"]


def rows(racers: list[Reader], sha2: float, disk: float) -> list[dict[str, Any]]:
    """Figures of each; `sha2` and `disk` are in GB/s."""
    paces = {racer.cold: racer.wall / racer.size for racer in racers if racer.name == HASHLIB_NAME}
    found = []
    for racer in racers:
        pace = racer.wall / racer.size
        bound = min(sha2 * racer.bound, disk) if racer.cold else sha2 * racer.bound
        more = {
            "cold": racer.cold,
            "cached": round(max(racer.cached) if racer.cold else min(racer.cached), 2),
            "ratio_to_hashlib": round(paces[racer.cold] / pace, 3),
            "of_bound": round(1 / pace / GIGABYTE / bound, 3) if bound else None,
        }
        found.append(racer.figures() | more)
    return found


def content_shares(racers: list[Reader]) -> dict[str, float]:
    """What the scan of values, and of experts, adds to the CPU seconds of the same verification
    without it."""
    cpu = {racer.name: racer.cpu for racer in racers if not racer.cold}
    plain = {name: name.removesuffix(", content").removesuffix(", experts") for name in cpu}
    return {name: round(cpu[name] / cpu[plain[name]] - 1, 3) for name in cpu if name != plain[name]}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        machine_text(report["machine"]),
        f"one stream of sha2 from memory {report['sha2']:.2f} GB/s, disk {report['disk']:.2f} GB/s",
        f"{report['rounds']} rounds in turns, medians; GB are bytes read; start of Python included",
    ]
    for cold in (False, True):
        state = [row for row in report["commands"] if row["cold"] == cold]
        share = f"{max(row['cached'] for row in state):.0%}"
        title = f"dropped by fadvise: {share} cached" if cold else f"page cache: {share} cached"
        lines += ["", f"{title:28}" + "".join(f"{column:>10}" for column in COLUMNS[1:])]
        for row in state:
            cells = [row[key] for key in (*KEYS, "cpu_seconds_per_gb")]
            numbers = "".join(f"{'–':>10}" if cell is None else f"{cell:10.2f}" for cell in cells)
            lines.append(f"{row['name']:28}{numbers}{row['peak_mb']:10}")
    titles = ("converting", "wall s", "least", "most", "GB/s", "CPU-s/GB", "peak MB")
    lines += ["", f"{titles[0]:28}" + "".join(f"{title:>10}" for title in titles[1:])]
    for row in report["conversions"]:
        cells = [row[key] for key in (*KEYS[:4], "cpu_seconds_per_gb")]
        numbers = "".join(f"{cell:10.2f}" for cell in cells)
        lines.append(f"{row['name']:28}{numbers}{row['peak_mb']:10}")
    lines.append("")
    lines += [f"{name}: {share:+.0%} CPU" for name, share in report["content_adds"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, save."""
    args = options(
        __doc__, experts="about 0.1 GB of BF16 each", free="10 GB", save="bench-verify.json"
    ).parse_args()
    report: dict[str, Any] = {"schema": "lingconv.bench-verify/1", "machine": machine()}
    rates = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        racers = readers(Path(folder), args.experts)
        conversions = converters(Path(folder), Path(folder) / "bf16")
        for _ in range(args.rounds):
            for racer in (*racers, *conversions):
                racer.run()
            rates.append(sha2_rate())
    disk = max(racer.size / racer.wall for racer in racers if racer.name.startswith("dd"))
    report["rounds"] = args.rounds
    report["sha2"] = median(rates)
    report["disk"] = round(disk / GIGABYTE, 2)
    report["commands"] = rows(racers, report["sha2"], report["disk"])
    report["conversions"] = [racer.figures() for racer in conversions]
    report["content_adds"] = content_shares(racers)
    save(report, args.save)
    sys.stdout.write(f"{table(report)}\nsaved to {args.save}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
