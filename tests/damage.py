"""What goes wrong in real downloads, each done to a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from downloads import edit_json, pointer, rewrite_shard
from lingconv.reference import Tensor, open_checkpoint
from lingconv.reference.storage import INDEX
from support import overwrite, shard_of

Damage = Callable[[Path], None]
# A damage done to a copy of the clean folder of this name.
Copies = Callable[[str, Damage], Path]
HTML = "<!DOCTYPE html>\n<html><head><title>503 Service Unavailable</title></head></html>\n"
JSON_ERROR = '{"error": "Repository not found"}'
_PREFIX = 8


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def flip(name: str, at: int = -1) -> Damage:
    """Another bit somewhere in a file: wrong bytes at the right size."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return damage


def flip_tensor(tensor: str) -> Damage:
    """Another bit in the data of a tensor."""

    def damage(folder: Path) -> None:
        first = int(open_checkpoint(folder)[tensor].read()[0])
        overwrite(folder, tensor, bytes([first ^ 1]))

    return damage


def fill(tensor: str, data: bytes, at: int = 0) -> Damage:
    """These bytes in the data of a tensor."""
    return lambda folder: void(overwrite(folder, tensor, data, at))


def zero_tensor(tensor: str) -> Damage:
    def damage(folder: Path) -> None:
        overwrite(folder, tensor, bytes(open_checkpoint(folder)[tensor].size))

    return damage


def zero(name: str, start: int, end: int | None = None) -> Damage:
    """Zeros in a range of a file: space that was reserved and never written."""

    def damage(folder: Path) -> None:
        stop = (folder / name).stat().st_size if end is None else end
        with (folder / name).open("r+b") as file:
            file.seek(start)
            file.write(bytes(stop - start))

    return damage


def zero_header(name: str) -> Damage:
    """Zeros in place of the JSON, behind a sound length."""

    def damage(folder: Path) -> None:
        length = int.from_bytes((folder / name).read_bytes()[:_PREFIX], "little")
        zero(name, _PREFIX, _PREFIX + length)(folder)

    return damage


def cut(name: str, size: int) -> Damage:
    """The first `size` bytes of a file; all but so many if it is negative."""

    def damage(folder: Path) -> None:
        whole = (folder / name).stat().st_size
        os.truncate(folder / name, size if size >= 0 else whole + size)

    return damage


def append(name: str, data: bytes = b"\n") -> Damage:
    def damage(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(data)

    return damage


def write(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return damage


def to_pointer(name: str) -> Damage:
    return lambda folder: void((folder / name).write_text(pointer(folder / name)))


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def link(name: str, target: str) -> Damage:
    """A link in place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def pipe(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def copy(name: str, other: str) -> Damage:
    return lambda folder: void(shutil.copy(folder / name, folder / other))


def in_json(name: str, change: Callable[[Any], object]) -> Damage:
    return lambda folder: edit_json(folder / name, lambda value: void(change(value)))


def in_index(change: Callable[[dict[str, str]], object]) -> Damage:
    return in_json(INDEX, lambda index: change(index["weight_map"]))


def in_config(**keys: Any) -> Damage:
    return in_json("config.json", lambda config: config.update(keys))


def in_shard(tensor: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """`change` of the tensors of the file that holds this one; index and others stay."""
    return lambda folder: rewrite_shard(shard_of(folder, tensor), lambda them: void(change(them)))


def drop(tensor: str) -> Damage:
    """A tensor gone, and the index says so."""
    return both(in_shard(tensor, lambda them: them.pop(tensor)), in_index(lambda i: i.pop(tensor)))


def add(like: str, name: str) -> Damage:
    """A tensor more, and the index says so."""

    def place(them: dict[str, Tensor]) -> None:
        them[name] = them[like]._replace(name=name)

    return both(in_shard(like, place), in_index(lambda i: i.update({name: i[like]})))


def reshape(tensor: str, shape: tuple[int, ...]) -> Damage:
    """The first values of a tensor under another shape."""

    def change(them: dict[str, Tensor]) -> None:
        old = them[tensor]
        width = old.data.size // int(np.prod(old.shape))
        data = old.data[: width * int(np.prod(shape))]
        them[tensor] = old._replace(shape=shape, data=data)

    return in_shard(tensor, change)


def retype(tensor: str, dtype: str) -> Damage:
    """The bytes of a tensor under another dtype of the same width."""
    return in_shard(tensor, lambda them: them.update({tensor: them[tensor]._replace(dtype=dtype)}))


def move(tensor: str, other: str) -> Damage:
    """A tensor in the file of another one, the index unchanged."""

    def damage(folder: Path) -> None:
        source, target = shard_of(folder, tensor), shard_of(folder, other)
        moved: dict[str, Tensor] = {}
        rewrite_shard(source, lambda them: moved.update({tensor: them.pop(tensor)}))
        rewrite_shard(target, lambda them: them.update(moved))

    return damage


def repeat(tensor: str, other: str) -> Damage:
    """A tensor also in the file of another one."""

    def damage(folder: Path) -> None:
        source, target = shard_of(folder, tensor), shard_of(folder, other)
        twice: dict[str, Tensor] = {}
        rewrite_shard(source, lambda them: twice.update({tensor: them[tensor]}))
        rewrite_shard(target, lambda them: them.update(twice))

    return damage


def nothing(_folder: Path) -> None:
    """No damage."""


def void(_value: object) -> None:
    """For what is called for its effect."""
