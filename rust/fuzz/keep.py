"""Adds to the corpus what fuzzing found, as few and small inputs as reach most of it.

Run after `make fuzz`, perhaps with names of targets: python3 rust/fuzz/keep.py [TARGET …]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "rust/fuzz/corpus"
FOUND = ROOT / "target/fuzz/corpus"
PROGRAMS = ROOT / "target/fuzz/build"
# Inputs of a target that are kept beside its seeds, their longest, and edges each has to add.
MOST, LONGEST, LEAST = 24, 2_048, 5


def first_to_reach(target: str) -> dict[Path, int]:
    """How many edges each input is the first to reach: the corpus first, then the shortest."""
    program = next(PROGRAMS.glob(f"*/release/{target}"))
    with tempfile.TemporaryDirectory() as scratch:
        control = Path(scratch, "control")
        options = ["-merge=1", f"-merge_control_file={control}"]
        # A merge writes to the first of its folders.
        corpus = shutil.copytree(CORPUS / target, Path(scratch, "corpus"))
        folders = [corpus, FOUND / target]
        subprocess.run([program, *options, *folders], check=True, stderr=subprocess.DEVNULL)
        lines = control.read_text().splitlines()
    count = int(lines[0])
    paths = [Path(line) for line in lines[2 : 2 + count]]
    records = (line.split() for line in lines[2 + count :])
    return {paths[int(r[1])]: len(r) - 2 for r in records if r[0] == "COV"}


def keep(target: str) -> None:
    """Copies the inputs that add most to what the corpus reaches."""
    added = first_to_reach(target)
    found = [p for p in added if p.parent == FOUND / target and p.stat().st_size <= LONGEST]
    found.sort(key=lambda path: (-added[path], path.name))
    for path in found[:MOST]:
        if added[path] >= LEAST:
            shutil.copy(path, CORPUS / target / f"found-{path.name[:12]}")


for name in sys.argv[1:] or sorted(path.name for path in FOUND.iterdir()):
    keep(name)
