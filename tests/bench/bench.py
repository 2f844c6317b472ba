"""One table: what whole commands cost beside cp, sha256sum and the usual PyTorch script.

Everything is measured in one run, in turns, from the page cache, on files that are removed at the
end. Ratios of one run can be compared between machines; seconds cannot.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels import CONVERSION, kernel_rates
from racing import Racer, machine, machine_text, options, remove, save

import lingconv
from ordeal import Words, quantize
from support import COMMAND, succeed

TORCH_ROUNDS = 2
TORCH_SCRIPT = """
import os, sys
from pathlib import Path
from lingconv.reference import torch_quantize_deepseek
torch_quantize_deepseek(Path(sys.argv[1]), Path(sys.argv[2]))
with open(sys.argv[2], "rb") as file:
    os.fsync(file.fileno())
"""
COPY = 'cp "$1" "$2" && sync "$2"'
COLUMNS = ("", "wall s", "least", "most", "x cp", "GB/s", "CPU-s/GB", "peak MB")


@dataclass
class Contender(Racer):
    """A command that writes; `size` is that of the BF16 form of what it works on."""

    output: Path

    def prepare(self) -> None:
        """No output yet, sources in the page cache, nothing left to write back."""
        remove(self.output)
        super().prepare()

    def compared(self, copy_pace: float) -> dict[str, Any]:
        """Figures; `copy_pace` is the time that cp takes for a byte."""
        return self.figures() | {"ratio_to_cp": round(self.wall / self.size / copy_pace, 3)}


def contenders(folder: Path, experts: int, torch_python: Path | None) -> list[Contender]:
    """Makes the sources: the same tensors in BF16 in one file, in two files, and in FP8."""
    one, two, coded = folder / "one", folder / "two", folder / "coded"
    layer = ("ling-1t-layer", "--experts", str(experts), "--shard-size")
    succeed("synth", *layer, "999G", "-o", one)
    (file,) = one.glob("*.safetensors")
    succeed("synth", *layer, f"{file.stat().st_size * 53 // 100}B", "-o", two)
    succeed(*quantize(one, coded))
    halves, codes = list(two.glob("*.safetensors")), list(coded.glob("*.safetensors"))
    output = folder / "out"

    def own(name: str, source: Path, files: list[Path], *options: str) -> Contender:
        verb: Words = (
            ("dequantize", source, "-o", output, *options)
            if source == coded
            else quantize(source, output, *options)
        )
        size = sum(path.stat().st_size for path in (files if source != coded else [file]))
        return Contender(name, (*COMMAND, *verb, "--quiet"), files, size, output)

    size, copied = file.stat().st_size, folder / "copy"
    found = [
        Contender("cp + fsync", ("sh", "-c", COPY, "sh", file, copied), [file], size, copied),
        Contender("sha256sum", ("sha256sum", file), [file], size, copied),
        own("quantize, 1 job", one, [file], "-j1"),
        own("quantize, 1 job, buffered", one, [file], "-j1", "--io", "buffered"),
        own("quantize, 2 jobs, 2 files", two, halves, "-j2"),
        own("quantize, 2 jobs, buffered", two, halves, "-j2", "--io", "buffered"),
        own("dequantize, 1 job", coded, codes, "-j1"),
    ]
    if torch_python:
        variables = {"PYTHONPATH": str(Path(lingconv.__file__).parents[1])}
        script = (torch_python, "-c", TORCH_SCRIPT, file, copied)
        found.append(Contender("torch script", script, [file], size, copied, variables=variables))
    return found


def measure(racers: list[Contender], rounds: int) -> None:
    """Rounds in turns; PyTorch last and less often, for it is slow."""
    for _ in range(rounds):
        for racer in racers:
            if racer.name != "torch script":
                racer.run()
    for racer in racers:
        if racer.name == "torch script":
            for _ in range(TORCH_ROUNDS):
                racer.run()


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    facts = report["machine"]
    lines = [
        machine_text(facts),
        f"one core: memcpy {facts['memcpy']} GB/s, one SHA-256 stream {facts['sha256']} GB/s",
        f"{report['rounds']} rounds in turns, medians; sources {report['cached']:.0%} in the page "
        "cache; outputs fsynced; GB are of BF16",
        "",
        f"{COLUMNS[0]:28}" + "".join(f"{column:>10}" for column in COLUMNS[1:]),
    ]
    keys = ("seconds", "seconds_least", "seconds_most", "ratio_to_cp", "gb_per_second")
    for row in report["commands"]:
        cells = [row[key] for key in (*keys, "cpu_seconds_per_gb")]
        numbers = "".join(f"{cell:10.2f}" for cell in cells)
        lines.append(f"{row['name']:28}{numbers}{row['peak_mb']:10}")
    if not any(row["name"] == "torch script" for row in report["commands"]):
        lines.append(f"{'torch script':28}{'not measured':>20}")
    lines += ["", f"{'kernels, one core, GB/s':28}" + "not measured" * (not report["kernels"])]
    for name, rates in report["kernels"].items():
        levels = "  ".join(f"{level} {rate:.2f}" for level, rate in rates.items())
        lines.append(f"  {name:26}{levels}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, save."""
    parser = options(__doc__, experts="about 0.1 GB of BF16 each", free="15 GB", save="bench.json")
    parser.add_argument("--torch-python", type=Path, help="an interpreter that has torch")
    parser.add_argument("--no-kernels", action="store_true", help="leave cargo bench out")
    args = parser.parse_args()
    report: dict[str, Any] = {"schema": "lingconv.bench/1", "machine": machine()}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        racers = contenders(Path(folder), args.experts, args.torch_python)
        measure(racers, args.rounds)
    copy_pace = racers[0].wall / racers[0].size
    report["rounds"] = args.rounds
    report["cached"] = min(min(racer.cached) for racer in racers)
    report["commands"] = [racer.compared(copy_pace) for racer in racers]
    report["kernels"] = {} if args.no_kernels else kernel_rates(CONVERSION)
    save(report, args.save)
    sys.stdout.write(f"{table(report)}\nsaved to {args.save}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
