"""`--verify-source`: a download is converted and checked with one read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lingconv.reference import open_checkpoint
from lingconv.reference.storage import read_headers
from lingconv.units import size_text
from ordeal import Words, digests, killed, quantize
from support import (
    EXPERT,
    MANIFEST,
    answer,
    contents,
    overwrite,
    published,
    refuse,
    shard_of,
    succeed,
)

KINDS = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}
VERBS: list[Words] = [("quantize", "fp8"), ("reshard", "--tp", "2"), ("reshard", "--pp", "3")]


def listed(folder: Path, *left_out: str) -> Path:
    """A folder with the sums of its files."""
    files = sorted(path for path in folder.iterdir() if path.name not in left_out)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder


def run(source: Path, output: Path, *words: str | Path) -> dict[str, Any]:
    verb, *rest = words
    done: dict[str, Any] = answer(verb, *rest, source, "-o", output, "--verify-source")
    return done


def told(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["source"]
    return manifest


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_a_sound_source(tiny: Path, tmp_path: Path, words: Words) -> None:
    verb, *rest = words
    succeed(verb, *rest, tiny, "-o", tmp_path / "plain")
    listed(tiny)
    done = run(tiny, tmp_path / "out", *words)
    sums = digests(tiny)
    found = told(tmp_path / "out")
    assert {shard["name"]: shard["sha256"] for shard in found["shards"]} == {
        name: value for name, value in sums.items() if name.endswith(".safetensors")
    }
    assert "SHA256SUMS" in found["verified_by"]
    held, plain = contents(tmp_path / "out"), contents(tmp_path / "plain")
    assert {n: d for n, d in held.items() if n != MANIFEST} == {
        n: d for n, d in plain.items() if n != MANIFEST
    }
    if words[0] == "quantize":
        # Small tensors have another order in the output: they wait for their turn.
        assert done["reread"] < done["read"] / 50


def test_fp8_with_its_scales(coded: Path, tmp_path: Path) -> None:
    listed(coded)
    done = run(coded, tmp_path / "out", "dequantize")
    assert done["reread"] < done["read"] / 3


def in_name_order(source: Path) -> Path:
    """Shards written again as the safetensors library orders them: experts 0, 1, 10, 11, 2."""
    for path in source.glob("*.safetensors"):
        tensors = {
            name: np.array(entry.read()).view(KINDS[entry.dtype]).reshape(entry.shape)
            for name, entry in read_headers(path).items()
        }
        save_file(tensors, path, {"format": "pt"})
    return source


def test_parts_that_are_read_twice_are_told(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    size = ("--layers", "2", "--experts", "64", "--shard-size", "100M")
    succeed("synth", "tiny", *size, "-o", source)
    listed(in_name_order(source))
    files = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    once = run(source, tmp_path / "coded", "quantize", "fp8")
    assert once["reread"] < once["read"] / 50
    command = ("reshard", "--tp", "2", source, "-o", out, "--verify-source")
    assert "parts of the source twice" in succeed(*command, "--dry-run").stderr
    twice = run(source, tmp_path / "ranks", *command[:3])
    assert twice["reread"] > files / 3
    assert twice["read"] - twice["reread"] <= files
    told = (
        f"{size_text(twice['reread'])} of {size_text(twice['read'] - twice['reread'])} read again"
    )
    assert told in succeed(*command).stdout


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
@pytest.mark.parametrize("place", [EXPERT, "model.norm.weight", "header", "config.json"])
def test_a_changed_source(tiny: Path, tmp_path: Path, words: Words, place: str) -> None:
    """Bytes that are no NaN and that only a digest can find."""
    listed(tiny)
    if place == "config.json":
        path = tiny / place
        path.write_text(path.read_text() + "\n")
    elif place == "header":
        path = shard_of(tiny, EXPERT)
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"format":"pt"', b'"format":"pf"', 1))
        assert path.read_bytes() != raw
    else:
        path = overwrite(tiny, place, b"\x12\x3e", at=6)
    verb, *rest = words
    error = refuse(3, verb, *rest, tiny, "-o", tmp_path / "out", "--verify-source")
    assert path.name in str(error["path"]) + str(error["details"])
    assert not published(tmp_path / "out")
    if words == ("quantize", "fp8"):
        assert not (tmp_path / "out" / path.name).exists()


def test_a_changed_tensor_that_is_left_out(tiny_mtp: Path, tmp_path: Path) -> None:
    listed(tiny_mtp)
    path = overwrite(tiny_mtp, "model.layers.3.eh_proj.weight", b"\x12\x3e", at=6)
    command = ("quantize", "fp8", tiny_mtp, "-o", tmp_path / "out", "--drop-mtp")
    if all(name.startswith("model.layers.3.") for name in _names(path)):
        succeed(*command, "--verify-source")  # no byte of this shard is used
    else:
        assert path.name in refuse(3, *command, "--verify-source")["path"]


def _names(path: Path) -> list[str]:
    found = open_checkpoint(path.parent).items()
    return [name for name, entry in found if entry.path == path]


def test_nothing_to_compare_with(tiny: Path, tmp_path: Path) -> None:
    error = refuse(9, *quantize(tiny, tmp_path / "out", "--verify-source"))
    assert len(error["details"]) == 14
    listed(tiny, "model-00003-of-00014.safetensors")
    error = refuse(9, *quantize(tiny, tmp_path / "out", "--verify-source"))
    assert error["details"] == ["model-00003-of-00014.safetensors"]
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_goes_on_with_its_digests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    size = ("--layers", "8", "--experts", "64", "--shard-size", "20M")
    succeed("synth", "tiny", *size, "-o", source)
    listed(source)
    words, hits = quantize(source, tmp_path / "out", "--verify-source"), 0
    for moment in (0.02, 0.05, 0.08, 0.12, 0.2):
        hits += killed(words, tmp_path / "out", moment)
    succeed(*words)
    assert hits > 0
    assert all(shard["sha256"] for shard in told(tmp_path / "out")["shards"])
    succeed(*quantize(source, tmp_path / "calm"))
    shutil.copy(tmp_path / "calm" / MANIFEST, tmp_path / "out" / MANIFEST)
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def test_what_was_converted_before_is_verified_too(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    size = ("--layers", "8", "--experts", "64", "--shard-size", "20M")
    succeed("synth", "tiny", *size, "-o", source)
    listed(source)
    overwrite(source, "model.layers.0.mlp.up_proj.weight", b"\x12\x3e", at=6)
    plan = tmp_path / "plan.json"
    succeed(*quantize(source, out, "--dry-run", "--save", plan))
    share = ("run", plan, "--source", source, "-o", out, "--worker")
    succeed(*share, "1/2")
    error = refuse(3, *share, "2/2", "--verify-source")
    assert shard_of(source, "model.layers.0.mlp.up_proj.weight").name in error["path"]
    assert not published(out)


def test_workers_verify_each_their_part(tmp_path: Path) -> None:
    source, out, plan = tmp_path / "source", tmp_path / "out", tmp_path / "plan.json"
    size = ("--layers", "4", "--experts", "16", "--shard-size", "2M")
    succeed("synth", "tiny", *size, "-o", source)
    listed(source)
    succeed("reshard", source, "--tp", "2", "--dry-run", "--save", plan)
    for worker in ("1/3", "2/3", "3/3"):
        where = ("--source", source, "-o", out, "--worker", worker, "--verify-source")
        succeed("run", plan, *where)
    assert all(shard["sha256"] for shard in told(out)["shards"])
