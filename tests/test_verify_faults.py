"""Flipped bits, zeroed ranges and cut files in a converted checkpoint: every one is caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lingconv import api
from lingconv.reference.storage import Entry, read_headers
from lingconv.verify_records import Verification
from ordeal import FULL
from support import MANIFEST, succeed

FLIPS, HOLES, CUTS = (10_000, 1_000, 1_000) if FULL else (300, 60, 60)
FLIPS_OF_A_SMALL_FILE = 50 if FULL else 10
TRUTHS = ("SHA256SUMS", MANIFEST)
HOLE = 4_096
SHARD_SIZE = "250KB"
Change = Callable[[bytes, random.Random], tuple[bytes, int, int]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 50 shards with sums and a manifest of ours."""
    base = tmp_path_factory.mktemp("faults")
    succeed("synth", "tiny", "-o", base / "tiny", "--shard-size", SHARD_SIZE)
    succeed("quantize", "fp8", base / "tiny", "-o", base / "fp8")
    return base / "fp8"


def verified(folder: Path, name: str) -> Verification:
    return api.verify(folder, files=[name], jobs=1)


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    """The file with other bytes, for a while."""
    before = path.read_bytes()
    assert data != before
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def tensors_at(entries: dict[str, Entry], start: int, end: int) -> set[str]:
    """The tensors that a range of a file touches; empty if it touches the header."""
    if start < min(entry.start for entry in entries.values()):
        return set()
    touched = (n for n, e in entries.items() if e.start < end and start < e.start + e.size)
    return set(touched)


def check_named(found: Verification, name: str, tensors: set[str]) -> None:
    """The file is named, and if only data changed, exactly its tensors."""
    assert found.verdict == "failed", name
    assert {finding.file for finding in found.findings} == {name}
    if tensors:
        named = {(finding.category, finding.tensor) for finding in found.findings}
        assert named == {("checksum", tensor) for tensor in tensors}


def changed_bits(before: bytes, chance: random.Random) -> tuple[bytes, int, int]:
    data = bytearray(before)
    at = chance.randrange(len(data))
    data[at] ^= 1 << chance.randrange(8)
    return bytes(data), at, at + 1


def zeroed_range(before: bytes, chance: random.Random) -> tuple[bytes, int, int]:
    data = bytearray(before)
    while data == before:
        at = chance.randrange(0, len(data) - HOLE)
        data[at : at + HOLE] = bytes(HOLE)
    differing = [i for i in range(at, at + HOLE) if data[i] != before[i]]
    return bytes(data), differing[0], differing[-1] + 1


@pytest.mark.parametrize(
    ("change", "count"), [(changed_bits, FLIPS), (zeroed_range, HOLES)], ids=["flips", "holes"]
)
def test_changed_bytes_name_shard_and_tensor(checkpoint: Path, change: Change, count: int) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    assert len(shards) >= 50
    entries = {path: read_headers(path) for path in shards}
    chance = random.Random(count)
    for _ in range(count):
        path = chance.choice(shards)
        data, start, end = change(path.read_bytes(), chance)
        with damaged(path, data):
            found = verified(checkpoint, path.name)
        check_named(found, path.name, tensors_at(entries[path], start, end))
    assert api.verify(checkpoint).verdict == "ok"


def test_cut_files_are_truncated(checkpoint: Path) -> None:
    shards = sorted(checkpoint.glob("*.safetensors"))
    chance = random.Random(CUTS)
    for _ in range(CUTS):
        path = chance.choice(shards)
        data = path.read_bytes()
        with damaged(path, data[: chance.randrange(len(data))]):
            found = verified(checkpoint, path.name)
        assert found.verdict == "failed"
        assert {(f.category, f.file) for f in found.findings} == {("truncated", path.name)}
    assert api.verify(checkpoint).verdict == "ok"


def test_changes_in_small_files(checkpoint: Path) -> None:
    shards = set(checkpoint.glob("*.safetensors"))
    small = {path for path in checkpoint.iterdir() if path.name not in TRUTHS} - shards
    chance = random.Random(len(small))
    for path in sorted(small):
        for _ in range(FLIPS_OF_A_SMALL_FILE):
            data, _, _ = changed_bits(path.read_bytes(), chance)
            with damaged(path, data):
                found = api.verify(checkpoint, jobs=1)
            assert found.verdict == "failed", path.name
            assert path.name in {finding.file for finding in found.findings}
