"""A small safetensors reader and writer: JSON, and bytes mapped where the header says.

A file is 8 bytes of little-endian length, a JSON header of that length, then the data; offsets in
the header count from the start of the data. A checkpoint is a folder of such files, those of the
index or all of them. Nothing is read before its bytes are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lingconv.reference.codec import F32, U8, bf16_to_f32, e8m0_to_f32, f16_to_f32

INDEX = "model.safetensors.index.json"
FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `start` and `size` in bytes, counted from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> U8:
        """The stored bytes [size]."""
        if self.size == 0:
            return np.empty(0, dtype=np.uint8)
        return np.memmap(self.path, np.uint8, "r", offset=self.start, shape=(self.size,))

    def values(self) -> F32:
        """The values [shape] of a tensor of weights or scales."""
        return values_of(self.dtype, self.read()).reshape(self.shape)


class Tensor(NamedTuple):
    """A tensor with its bytes as stored (little-endian), flat."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: U8


def values_of(dtype: str, data: U8) -> F32:
    """Stored bytes as flat float32 values, exactly; U8 is read as E8M0."""
    if dtype == "F32":
        return data.view("<f4").astype(np.float32)
    if dtype == "BF16":
        return bf16_to_f32(data.view("<u2").astype(np.uint16))
    if dtype == "F16":
        return f16_to_f32(data.view("<u2").astype(np.uint16))
    if dtype in ("F8_E8M0", "U8"):
        return e8m0_to_f32(data)
    raise ValueError(f"{dtype} is no format of weights or scales")


def bytes_of(array: NDArray[Any]) -> U8:
    """An array as flat little-endian bytes."""
    stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8)


def read_headers(path: Path) -> dict[str, Entry]:
    """Tensors of one file, by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = {}
    for name, value in header.items():
        first, end = value["data_offsets"]
        start = 8 + length + first
        entries[name] = Entry(path, value["dtype"], tuple(value["shape"]), start, end - first)
    return entries


def open_checkpoint(folder: Path) -> dict[str, Entry]:
    """Tensors of a folder, by name; ValueError when files overlap or contradict the index."""
    index = folder / INDEX
    placed: dict[str, str] | None = None
    if index.exists():
        placed = json.loads(index.read_text())["weight_map"]
        files = sorted(set(placed.values()))
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
    found: dict[str, Entry] = {}
    for file in files:
        if not (folder / file).exists():
            raise ValueError(f"{file} is named by {INDEX} and does not exist")
        entries = read_headers(folder / file)
        if twice := found.keys() & entries.keys():
            raise ValueError(f"{min(twice)} is in {file} and in another file")
        found |= entries
    if placed is not None and placed != {name: entry.path.name for name, entry in found.items()}:
        raise ValueError(f"{INDEX} does not list the tensors that its files hold")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def write_safetensors(path: Path, tensors: Iterable[Tensor]) -> None:
    """One file of the given tensors, in their order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[U8] = []
    end = 0
    for name, dtype, shape, data in tensors:
        offsets = [end, end + data.size]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        end = offsets[1]
        parts.append(data)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(part.tobytes() for part in parts)
