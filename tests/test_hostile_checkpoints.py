"""Checkpoints that somebody made to harm: every command ends by itself, and takes little memory."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from downloads import bf16, small_checkpoint
from lingconv.reference.storage import INDEX
from measure import cost_of_lingconv
from support import MANIFEST, lingconv

MOST_MEMORY = 300_000_000
SHARD = "model.safetensors"


def with_index(folder: Path, places: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def false_names(folder: Path) -> None:
    with_index(folder, {f"n{number}": "../x" for number in range(900_000)})


def names_of_one_shard(folder: Path) -> None:
    with_index(folder, {f"n{number}": SHARD for number in range(1_000_000)})


def absent_shards(folder: Path) -> None:
    with_index(folder, {f"n{number}": f"{number}.safetensors" for number in range(100_000)})


def lists_of_a_configuration(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"z": [' + b"0," * 7_800_000 + b"0]}")


def absent_shards_of_long_names(folder: Path) -> None:
    with_index(folder, {f"n{n}": f"{'f' * 200}{n}.safetensors" for n in range(250_000)})


def a_large_small_file(folder: Path) -> None:
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(600 << 20)


def one_byte_tensors(path: Path, prefix: str, count: int) -> None:
    """A file of tensors of one byte each, named by `prefix` and a number."""
    rows = (
        f'"{prefix}{at}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{at + 1}]}}'
        for at in range(count)
    )
    header = ("{" + ",".join(rows) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(count))


def many_tensors(folder: Path) -> None:
    """As many as are converted, in one file."""
    one_byte_tensors(folder / SHARD, "n", 280_000)


def many_tensors_of_many_files(folder: Path) -> None:
    """Twice as many as fit, in files that could be read at once."""
    one_byte_tensors(folder / SHARD, "n", 100_000)
    for number in range(20):
        (folder / f"{number}.safetensors").hardlink_to(folder / SHARD)


CASES: list[Callable[[Path], None]] = [
    false_names,
    names_of_one_shard,
    absent_shards,
    absent_shards_of_long_names,
    lists_of_a_configuration,
    a_large_small_file,
    many_tensors,
    many_tensors_of_many_files,
]
COMMANDS = {
    "verify": ("verify",),
    "inspect": ("inspect",),
    "tree": ("inspect", "--tree"),
    "quantize": ("quantize", "fp8", "--dry-run"),
    "reshard": ("reshard", "--target", "sglang", "--tp", "2", "--dry-run"),
    "fit": ("fit",),
    "stats": ("experts", "stats"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one tensor."""
    return small_checkpoint(tmp_path / "model", [bf16("w", 8)])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", CASES)
def test_a_command_takes_little_memory(
    folder: Path, case: Callable[[Path], None], command: str
) -> None:
    case(folder)
    cost = cost_of_lingconv(*COMMANDS[command], folder)
    assert cost.code in (0, 2, 3, 4, 5, 9), cost.stderr[-2000:]
    assert "Traceback" not in cost.stderr
    assert cost.peak < MOST_MEMORY


def test_what_becomes_of_a_checkpoint_is_bounded(tiny: Path) -> None:
    """What nobody knows goes to every stage."""
    one_byte_tensors(tiny / SHARD, "n", 200_000)
    (tiny / INDEX).unlink()
    cost = cost_of_lingconv("reshard", tiny, "--pp", "3", "--target", "hf", "--dry-run")
    assert cost.code == 5, cost.stderr
    assert "too large for this version of lingconv: more than 280000 tensors" in cost.stderr
    assert cost.peak < MOST_MEMORY


LONG = "m" * 50 + "."


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("reshard", "--target", "sglang", "--link", "copy", "-o"), 0),
        (("reshard", "--target", "hf", "--pp", "2", "-o"), 5),
        (("inspect", "--tensor", "*"), 2),
    ],
)
def test_many_long_names_take_little_memory(
    tiny: Path, arguments: tuple[str, ...], code: int
) -> None:
    """As many and as long as are converted: 280,000 tensors, 34 MB of headers."""
    one_byte_tensors(tiny / SHARD, LONG, 279_000)
    (tiny / INDEX).unlink()
    command, *options = arguments
    out = (tiny.parent / "out",) if options[-1] == "-o" else ()
    cost = cost_of_lingconv(command, tiny, *options, *out)
    assert cost.code == code, cost.stderr[-2000:]
    assert cost.peak < MOST_MEMORY


def test_headers_above_the_bound_are_called_large_and_not_damaged(tiny: Path) -> None:
    one_byte_tensors(tiny / SHARD, "m" * 300 + ".", 200_000)
    (tiny / INDEX).unlink()
    for command in (("inspect",), ("quantize", "fp8", "--dry-run"), ("inspect", "--tensor", "*")):
        cost = cost_of_lingconv(*command, tiny)
        assert cost.code == 5, cost.stderr[-2000:]
        assert "too large for this version of lingconv: headers of more than" in cost.stderr
        assert cost.peak < MOST_MEMORY


def test_a_request_that_a_manifest_records_is_bounded(tiny: Path) -> None:
    out = tiny.parent / "out"
    layout: tuple[str | Path, ...] = ("reshard", tiny, "--tp", "2", "--pp", "2", "-o", out)
    assert cost_of_lingconv(*layout, "--rank", "pp0").code == 0
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["request"]["only"] = ["*a*"] * 3_000_000
    (out / MANIFEST).write_text(json.dumps(manifest))
    cost = cost_of_lingconv(*layout, "--rank", "pp1")
    assert cost.code == 7, cost.stderr
    assert cost.peak < MOST_MEMORY


def verified(folder: Path) -> Any:
    return json.loads(lingconv("verify", folder, "--json").stdout)


@pytest.mark.parametrize(
    ("case", "category", "count"),
    [
        (false_names, "index", 900_000),
        (names_of_one_shard, "index", 1_000_000),
        (absent_shards, "missing", 100_000),
    ],
)
def test_findings_beyond_the_first_are_counted(
    folder: Path, case: Callable[[Path], None], category: str, count: int
) -> None:
    case(folder)
    found = verified(folder)
    told = [f for f in found["findings"] if f["category"] == category]
    left_out = {more["category"]: more["count"] for more in found["left_out"]}
    assert len(told) == 1_000
    assert 0 <= len(told) + left_out[category] - count <= 2
    plain = lingconv("verify", folder)
    assert plain.returncode != 0
    assert f"and {left_out[category]:,} more" in plain.stdout
