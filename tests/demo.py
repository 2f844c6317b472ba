"""What `make demo` shows: one MoE layer of Ling-1T in its true sizes, there and back.

Everything is written below one temporary folder of the clone, about 3 GB, and removed at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = "ling-1t-layer"
EXPERTS = "8"
SAMPLE = "12"
BUILD = Path(__file__).parents[1] / "build"


def show(folder: Path, *words: str, module: str = "lingconv") -> None:
    """Run a command in `folder` as its user sees it; the first failure ends the demonstration."""
    name = "lingconv" if module == "lingconv" else f"python -m {module}"
    sys.stdout.write(f"\n$ {name} {' '.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", module, *words], cwd=folder, check=True)


def main() -> int:
    """Make, look, plan, quantize, check, turn back, check."""
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-", dir=BUILD) as name:
        folder = Path(name)
        try:
            show(folder, "synth", SOURCE, "-o", "Ling-1T", "--experts", EXPERTS)
            show(folder, "inspect", "Ling-1T")
            show(folder, "plan", "quantize", "fp8", "Ling-1T")
            show(folder, "quantize", "fp8", "Ling-1T", "--report")
            reference = "lingconv.reference"
            compared = ("Ling-1T", "Ling-1T-fp8", "--sample", SAMPLE)
            show(folder, *compared, module=reference)
            show(folder, "dequantize", "Ling-1T-fp8")
            compared = ("Ling-1T-fp8", "Ling-1T-fp8-bf16", "--dequantized", "--sample", SAMPLE)
            show(folder, *compared, module=reference)
        except subprocess.CalledProcessError as error:
            return error.returncode
        except KeyboardInterrupt:
            return 130
    sys.stdout.write("\nEvery byte compared is what the definition says. The files are removed.\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
