"""Checkpoints and requests that are refused: exit code, names, hint, and nothing published."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lingconv.reference import Tensor
from lingconv.reference.storage import INDEX
from requirements import needs
from support import (
    COMMAND,
    EXPERT,
    contents,
    environment,
    overwrite,
    published,
    rebuilt,
    refuse,
    rewrite_header,
    shard_of,
    succeed,
)

SCALE = f"{EXPERT}_scale_inv"


def refuse_quantize(code: int, source: Path, *options: str) -> dict:
    """A refusal that leaves no output folder behind."""
    out = source.parent / "out"
    error = refuse(code, "quantize", "fp8", source, "-o", out, *options)
    assert not out.exists()
    return error


def test_a_truncated_shard(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    assert path.name in refuse_quantize(4, tiny)["path"]


def test_an_empty_shard(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)
    path.write_bytes(b"")
    assert path.name in refuse_quantize(4, tiny)["path"]


def test_a_duplicate_key(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)

    def repeat(text: str) -> str:
        found = re.search(rf'"{re.escape(EXPERT)}":\{{[^}}]*\}}', text.replace(" ", ""))
        assert found
        return text.rstrip()[:-1] + "," + found.group() + "}"

    rewrite_header(path, repeat)
    error = refuse_quantize(4, tiny)
    assert path.name in error["path"]
    assert EXPERT in (error["tensor"] or error["message"])


def test_overlapping_ranges(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)

    def overlap(text: str) -> str:
        header = json.loads(text)
        first, end = header[EXPERT]["data_offsets"]
        header[EXPERT]["data_offsets"] = [first - 128, end - 128]
        return json.dumps(header)

    rewrite_header(path, overlap)
    error = refuse_quantize(4, tiny)
    assert path.name in error["path"]
    assert error["tensor"] or "model.layers" in error["message"]


def test_a_missing_shard(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)
    path.unlink()
    error = refuse_quantize(4, tiny)
    assert path.name in error["path"]
    assert error["hint"]


def test_a_tensor_that_the_index_names_and_no_file_holds(tiny: Path) -> None:
    index = json.loads((tiny / INDEX).read_text())
    index["weight_map"]["model.ghost.weight"] = shard_of(tiny, EXPERT).name
    (tiny / INDEX).write_text(json.dumps(index))
    assert "model.ghost.weight" in str(refuse_quantize(4, tiny))


def test_a_pointer_in_place_of_a_shard(tiny: Path) -> None:
    path = shard_of(tiny, EXPERT)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    error = refuse_quantize(4, tiny)
    assert path.name in error["path"]
    assert "git-lfs" in error["message"]


def test_a_link_that_leads_outside(tiny: Path, tmp_path: Path) -> None:
    path = shard_of(tiny, EXPERT)
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    assert path.name in refuse_quantize(4, tiny)["path"]


@pytest.mark.parametrize(
    "value", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"], ids=["nan", "inf", "-inf"]
)
def test_a_nonfinite_expert(tiny: Path, value: bytes) -> None:
    path = overwrite(tiny, EXPERT, value)
    out = tiny.parent / "out"
    error = refuse(4, "quantize", "fp8", tiny, "-o", out)
    assert error["tensor"] == EXPERT
    assert path.name in error["path"]
    assert not published(out)
    assert not (out / path.name).exists()


def test_an_fp8_weight_without_its_scale(coded: Path, tmp_path: Path) -> None:
    broken = rebuilt(coded, tmp_path / "broken", lambda tensors: tensors.pop(SCALE) and None)
    error = refuse(4, "dequantize", broken)
    assert f"{EXPERT} in model.safetensors: no scale" in str(error["details"])
    assert not Path(f"{broken}-bf16").exists()


def test_a_scale_of_the_wrong_shape(coded: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, Tensor]) -> None:
        scale = tensors[SCALE]
        tensors[SCALE] = scale._replace(shape=(1, 3), data=scale.data[:12])

    broken = rebuilt(coded, tmp_path / "broken", halve)
    error = refuse(4, "dequantize", broken)
    assert EXPERT in str(error["details"])
    assert "[1, 3]" in str(error["details"])
    assert not Path(f"{broken}-bf16").exists()


def test_a_scale_without_its_weight(coded: Path, tmp_path: Path) -> None:
    broken = rebuilt(coded, tmp_path / "broken", lambda tensors: tensors.pop(EXPERT) and None)
    assert SCALE in str(refuse(4, "dequantize", broken)["details"])


def test_a_stack_of_experts(tiny: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.gate_up_proj"

    def stack(tensors: dict[str, Tensor]) -> None:
        tensors[name] = Tensor(name, "BF16", (2, 4, 8), np.zeros(128, np.uint8))

    stacked = rebuilt(tiny, tmp_path / "stacked", stack)
    error = refuse_quantize(5, stacked)
    assert error["tensor"] == name
    assert "model.safetensors" in error["path"]


def test_an_unknown_architecture(tiny: Path) -> None:
    path = tiny / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["NewForCausalLM"]}
    path.write_text(json.dumps(config))
    error = refuse_quantize(5, tiny)
    assert "NewForCausalLM" in error["message"]
    assert "--only" in error["hint"]


def test_what_is_fp8_already(coded: Path) -> None:
    assert "already" in refuse_quantize(5, coded)["message"]


def test_nothing_to_dequantize(tiny: Path) -> None:
    assert "nothing to dequantize" in refuse(5, "dequantize", tiny)["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--skip", "*nothing*"], "nothing"),
        (["--only", "*nothing*"], "nothing"),
        (["--only", "*norm*"], "none that may be encoded"),
        (["--only", "[a"], "[a"),
    ],
)
def test_patterns_that_select_nothing(tiny: Path, options: list[str], said: str) -> None:
    assert said in str(refuse_quantize(2, tiny, *options))


def test_half_the_experts_of_a_layer(tiny: Path) -> None:
    assert "layer 1" in str(refuse_quantize(5, tiny, "--skip", EXPERT)["details"])


@pytest.mark.parametrize("place", [".", "inside", "inside/deeper", ".."])
def test_a_target_inside_the_source_or_around_it(tiny: Path, place: str) -> None:
    before = contents(tiny)
    for dry in ([], ["--dry-run"]):
        error = refuse(2, "quantize", "fp8", tiny, "-o", tiny / place, *dry)
        assert "in one another" in error["message"]
    assert contents(tiny) == before


def test_a_target_that_links_into_the_source(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tiny)
    refuse(2, "quantize", "fp8", tiny, "-o", tmp_path / "link" / "out")


@pytest.mark.parametrize("options", [[], ["--force"], ["--no-resume"]])
def test_a_foreign_folder(tiny: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter-1.txt").write_text("years of work")
    error = refuse(7, "quantize", "fp8", tiny, "-o", out, *options)
    assert error["path"] == str(out)
    assert contents(out) == {"chapter-1.txt": b"years of work"}


def test_a_file_in_place_of_the_output(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("mine")
    refuse(7, "quantize", "fp8", tiny, "-o", out, "--force")
    assert out.read_text() == "mine"


def test_synth_into_a_folder_that_holds_something(tiny: Path) -> None:
    before = contents(tiny)
    refuse(7, "synth", "tiny", "-o", tiny)
    assert contents(tiny) == before


def on_a_small_disk(disk: Path, size: str, *arguments: str | Path) -> tuple[int, str, list[str]]:
    """Exit code, stderr and files left of a command that sees a file system of `size` at `disk`.

    The mount lives in a namespace of its own and ends with the command.
    """
    disk.mkdir()
    script = (
        "import os, subprocess, sys\n"
        f"subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size={size}', 'none', {str(disk)!r}],"
        " check=True)\n"
        f"code = subprocess.run({[*COMMAND, *map(str, arguments)]!r}).returncode\n"
        f"print(*sorted(os.listdir({str(disk)!r})))\n"
        "sys.exit(code)\n"
    )
    command = ["unshare", "--mount", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    return done.returncode, done.stderr, done.stdout.split()


@needs("mount")
def test_a_full_disk(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    code, said, left = on_a_small_disk(
        disk, "6m", "quantize", "fp8", tiny, "-o", disk / "out", "-q", "--json"
    )
    assert code == 6, said
    error = json.loads(said.splitlines()[-1])["error"]
    assert error["kind"] == "space"
    assert str(disk) in error["path"]
    assert left == []


@needs("mount")
def test_a_disk_that_is_large_enough(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    code, said, left = on_a_small_disk(
        disk, "12m", "quantize", "fp8", tiny, "-o", disk / "out", "-q"
    )
    assert code == 0, said
    assert left[-1] == "out"


def test_too_little_memory(tiny: Path) -> None:
    error = refuse_quantize(6, tiny, "--memory", "1M")
    assert "--memory" in error["hint"]
    hinted = error["hint"].rsplit(" ", 1)[-1]
    succeed("quantize", "fp8", tiny, "--memory", hinted)


def test_a_source_that_is_no_checkpoint(tmp_path: Path) -> None:
    assert refuse(4, "inspect", tmp_path)["path"] == str(tmp_path)
    assert refuse(4, "inspect", tmp_path / "missing")["path"] == str(tmp_path / "missing")


def test_a_kernel_that_no_cpu_has(tiny: Path) -> None:
    error = refuse(2, "quantize", "fp8", tiny, LINGCONV_KERNEL="sse9")
    assert "LINGCONV_KERNEL" in error["message"]
