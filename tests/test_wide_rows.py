"""Rows too wide for the memory: cut in columns, within the memory, and said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from lingconv.reference import Tensor, write_safetensors
from lingconv.reference.storage import read_headers
from measure import cost_of_lingconv
from support import answer, contents, made_of_any, refuse, succeed

COLUMNS = 400_000
LITTLE = "8M"


def checkpoint(folder: Path) -> Path:
    """One matrix whose rows take more than an eighth of little memory."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    data = (0x3F80 + np.arange(3 * COLUMNS, dtype="<u2") % 251).astype("<u2").view(np.uint8)
    write_safetensors(
        folder / "model.safetensors", [Tensor("w.weight", "BF16", (3, COLUMNS), data)]
    )
    return folder


def test_the_bytes_are_those_of_plenty_of_memory(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    words = ("quantize", "fp8", source, "--only", "*")
    succeed(*words, "-o", tmp_path / "calm")
    done = succeed(*words, "-o", tmp_path / "tight", "--memory", LITTLE)
    assert "read twice" in done.stderr
    assert contents(tmp_path / "tight") == contents(tmp_path / "calm")
    for memory in ("1G", LITTLE):
        succeed("dequantize", tmp_path / "calm", "-o", tmp_path / memory, "--memory", memory)
    assert made_of_any(tmp_path / LITTLE) == made_of_any(tmp_path / "1G")


def test_the_plan_says_what_is_read_twice(tmp_path: Path) -> None:
    words = ("quantize", "fp8", checkpoint(tmp_path / "source"), "--only", "*", "--dry-run")
    assert answer(*words)["space"]["read_twice"] == 0
    assert answer(*words, "--memory", LITTLE)["space"]["read_twice"] == 3 * COLUMNS * 2
    assert "2.40 MB are read twice" in succeed(*words, "--memory", LITTLE).stderr


def test_what_is_measured_whole_is_refused_by_name(tmp_path: Path) -> None:
    words = ("quantize", "fp8", checkpoint(tmp_path / "source"), "--only", "*")
    error = refuse(6, *words, "-o", tmp_path / "out", "--report", "--memory", LITTLE)
    assert error["tensor"] == "w.weight"
    assert not (tmp_path / "out").exists()
    memory = error["hint"].rpartition(" ")[2]
    succeed(*words, "-o", tmp_path / "out", "--report", "--memory", memory)


def test_a_row_of_any_width_takes_the_memory_allowed(tmp_path: Path) -> None:
    """A file without blocks on the disk: 600 MB of zeros in one row."""
    folder, columns = tmp_path / "source", 300_000_000
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    path = folder / "model.safetensors"
    entry = {"dtype": "BF16", "shape": [1, columns], "data_offsets": [0, 2 * columns]}
    head = json.dumps({"w.weight": entry}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + 2 * columns)
    words = ("quantize", "fp8", folder, "--only", "*", "-o", tmp_path / "out", "--memory", "64M")
    cost = cost_of_lingconv(*words)
    assert cost.code == 0, cost.stderr
    assert cost.peak < 200_000_000
    shapes = {k: e.shape for k, e in read_headers(tmp_path / "out" / "model.safetensors").items()}
    assert shapes["w.weight"] == (1, columns)
