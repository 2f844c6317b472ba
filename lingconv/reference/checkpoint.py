"""What a converted checkpoint must hold, and where a folder differs from that.

A conversion is a list of steps, one for each source tensor: the output tensors it leads to and a
function that gives their bytes. Names, dtypes and shapes are known without reading data, so even
a sampled comparison checks those of every tensor. Memory is that of one tensor.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lingconv.reference import codec, names, storage
from lingconv.reference.codec import U8, Arith, Dialect, Grid, Role, ScaleKind
from lingconv.reference.config import config_differences, expected_config
from lingconv.reference.storage import Entry, Tensor


class Spec(NamedTuple):
    """An output tensor without its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The output tensors of one source tensor; `compute` gives their bytes in the same order."""

    outputs: tuple[Spec, ...]
    compute: Callable[[], tuple[U8, ...]]


@dataclass(frozen=True)
class Encoding:
    """How a checkpoint is encoded: the options of `quantize` that change tensors."""

    dialect: Dialect = "deepseek"
    scale: ScaleKind = "f32"
    arith: Arith = "ieee"
    experts_only: bool = False

    def __post_init__(self) -> None:
        codec.check_options(self.dialect, self.scale, self.arith)


def encoded_roles(
    entries: Mapping[str, Entry], architecture: str, experts_only: bool = False
) -> dict[str, Role]:
    """Names that are encoded, with their roles; everything 1-D or not float is kept."""
    roles: dict[str, Role] = {}
    for name, entry in entries.items():
        if len(entry.shape) == 3 and ".experts" in name:
            raise ValueError(f"{name} is a stack of experts")
        role = names.role_of(name, architecture)
        if role is None or len(entry.shape) != 2 or entry.dtype not in storage.FLOATS:
            continue
        if names.is_expert(role) or not experts_only:
            roles[name] = role
    return roles


def _keep(name: str, entry: Entry) -> Step:
    return Step((Spec(name, entry.dtype, entry.shape),), lambda: (entry.read(),))


def _encode(name: str, entry: Entry, role: Role, how: Encoding) -> Step:
    """`X.weight` in E4M3 and its scales."""
    narrow = how.dialect.startswith("compressed-tensors")
    scale_shape = codec.scale_shape(entry.shape, codec.grid_of(how.dialect))

    def compute() -> tuple[U8, ...]:
        try:
            codes, scales = codec.encode(entry.values(), how.dialect, role, how.scale, how.arith)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        stored = codec.f32_to_bf16(scales) if narrow else scales
        return storage.bytes_of(codes), storage.bytes_of(stored)

    scale_name = name + names.scale_suffix(how.dialect)
    return Step(
        (
            Spec(name, "F8_E4M3", entry.shape),
            Spec(scale_name, "BF16" if narrow else "F32", scale_shape),
        ),
        compute,
    )


def _decode(name: str, entry: Entry, scale: Entry) -> Step:
    """`X.weight` in BF16; the shape of the scale tells blocks from channels."""
    rows = entry.shape[0]
    grid: Grid = "block"
    if scale.shape != codec.scale_shape(entry.shape, "block"):
        if scale.shape not in ((rows, 1), (rows,)):
            raise ValueError(f"{name}: scale has shape {list(scale.shape)}")
        grid = "channel"

    def compute() -> tuple[U8, ...]:
        scales = scale.values().reshape(codec.scale_shape(entry.shape, grid))
        codes = entry.read().reshape(entry.shape)
        return (storage.bytes_of(codec.decode(codes, scales, grid)),)

    return Step((Spec(name, "BF16", entry.shape),), compute)


def quantize_steps(source: Path, how: Encoding) -> dict[str, Step]:
    """The encoded checkpoint, by name of source tensor."""
    entries = storage.open_checkpoint(source)
    architecture = storage.read_config(source)["architectures"][0]
    roles = encoded_roles(entries, architecture, how.experts_only)
    return {
        name: _encode(name, entry, roles[name], how) if name in roles else _keep(name, entry)
        for name, entry in entries.items()
    }


def dequantize_steps(source: Path) -> dict[str, Step]:
    """The BF16 checkpoint made of an FP8 one, by name of source tensor; scales lead to nothing."""
    entries = storage.open_checkpoint(source)
    steps: dict[str, Step] = {}
    used: set[str] = set()
    for name, entry in entries.items():
        if entry.dtype != "F8_E4M3":
            continue
        scale_name = next((name + s for s in ("_scale_inv", "_scale") if name + s in entries), None)
        if scale_name is None:
            raise ValueError(f"{name}: no scale")
        used.add(scale_name)
        steps[name] = _decode(name, entry, entries[scale_name])
    for name in entries.keys() - steps.keys() - used:
        steps[name] = _keep(name, entries[name])
    return steps


def _tensors(steps: Mapping[str, Step]) -> Iterator[Tensor]:
    for step in steps.values():
        for spec, data in zip(step.outputs, step.compute(), strict=True):
            yield Tensor(spec.name, spec.dtype, spec.shape, data)


def quantize_checkpoint(
    source: Path,
    dialect: Dialect = "deepseek",
    scale: ScaleKind = "f32",
    arith: Arith = "ieee",
    experts_only: bool = False,
) -> Iterator[Tensor]:
    """Tensors of the encoded checkpoint, one at a time."""
    return _tensors(quantize_steps(source, Encoding(dialect, scale, arith, experts_only)))


def dequantize_checkpoint(source: Path) -> Iterator[Tensor]:
    """Tensors of the BF16 checkpoint that an FP8 one decodes to, one at a time."""
    return _tensors(dequantize_steps(source))


def sample_of(all_names: Iterable[str], count: int | None) -> list[str]:
    """A deterministic choice of `count` names (None: all) that takes from every kind in turn.

    A kind is a name without its numbers; within one, order is that of the names' SHA-256.
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(all_names, key=lambda name: hashlib.sha256(name.encode()).digest()):
        kinds.setdefault(re.sub(r"\d+", "N", name), []).append(name)
    rounds = itertools.zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    in_turn = [name for turn in rounds for name in turn if name is not None]
    return in_turn[:count]


def _byte_differences(name: str, expected: U8, entry: Entry) -> list[str]:
    actual = entry.read()
    if np.array_equal(expected, actual):
        return []
    where = np.flatnonzero(expected != actual)
    first = where[0]
    return [
        f"{name}: {len(where)} of {len(actual)} bytes differ, the first at {first}: "
        f"0x{actual[first]:02x}, expected 0x{expected[first]:02x}"
    ]


def compare_steps(steps: Mapping[str, Step], output: Path, sample: int | None = None) -> list[str]:
    """Differences between what steps lead to and what a folder holds; empty means identical.

    Names, dtypes and shapes of all tensors; bytes of all or of a sample of source tensors.
    """
    try:
        entries = storage.open_checkpoint(output)
    except ValueError as error:
        return [str(error)]
    specs = {spec.name: spec for step in steps.values() for spec in step.outputs}
    found = [f"{name}: missing" for name in sorted(specs.keys() - entries.keys())]
    found += [f"{name}: not expected" for name in sorted(entries.keys() - specs.keys())]
    sound: set[str] = set()
    for name in sorted(specs.keys() & entries.keys()):
        have = Spec(name, entries[name].dtype, entries[name].shape)
        if have == specs[name]:
            sound.add(name)
            continue
        have_text, want_text = (f"{s.dtype} {list(s.shape)}" for s in (have, specs[name]))
        found.append(f"{name}: {have_text}, expected {want_text}")
    for name in sample_of(steps, sample):
        step = steps[name]
        for spec, data in zip(step.outputs, step.compute(), strict=True):
            if spec.name in sound:
                found += _byte_differences(spec.name, data, entries[spec.name])
    return found


def compare_checkpoint(
    source: Path,
    output: Path,
    dialect: Dialect = "deepseek",
    scale: ScaleKind = "f32",
    arith: Arith = "ieee",
    experts_only: bool = False,
    sample: int | None = None,
) -> list[str]:
    """Differences, as sentences, of a folder from the encoding of `source`: tensors and config."""
    how = Encoding(dialect, scale, arith, experts_only)
    steps = quantize_steps(source, how)
    shapes = {name: entry.shape for name, entry in storage.open_checkpoint(source).items()}
    encoded = [name for name, step in steps.items() if len(step.outputs) == 2]
    expected = expected_config(storage.read_config(source), shapes, encoded, dialect, scale)
    found = config_differences(expected, storage.read_config(output))
    return found + compare_steps(steps, output, sample)


def compare_dequantized(source: Path, output: Path, sample: int | None = None) -> list[str]:
    """Differences of a folder from the BF16 checkpoint that the FP8 folder `source` decodes to."""
    expected = storage.read_config(source)
    expected.pop("quantization_config", None)
    found = config_differences(expected, storage.read_config(output))
    return found + compare_steps(dequantize_steps(source), output, sample)
