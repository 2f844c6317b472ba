"""Recorded expert loads: which files hold them, and their sum over steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import Error, invalid_error, usage_error
from lingconv.experts.bounds import MAX_COUNT, Numbers, check_values
from lingconv.experts.recorder import PATTERN, Passes, StatDump, read_dump
from lingconv.experts.tables import read_csv, read_json, read_npy

SUFFIXES = (".pt", ".npy", ".npz", ".json", ".csv")
StrPath = str | os.PathLike[str]


class Source(Protocol):
    """Counts of one or more files, given out some steps at a time."""

    @property
    def path(self) -> str:
        """The file to name in errors."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, layers, experts."""

    def windows(self, first: int, last: int) -> Iterator[Numbers]:
        """Arrays [steps, layers, experts]; each is valid until the next is asked for."""


@dataclass(frozen=True)
class Loads:
    """How many tokens each expert got.

    `counts` is [layers, experts], summed over steps: int64, or float64 where a file held
    floating-point numbers. A layer without any count is taken for a dense one.
    """

    counts: NDArray[np.int64] | NDArray[np.float64]
    files: list[str]
    steps: int
    idle_steps: int
    notes: list[str]

    @property
    def moe_layers(self) -> NDArray[np.int64]:
        """Numbers of the layers that have counts."""
        return np.flatnonzero(self.counts.any(axis=1))

    @property
    def dense_layers(self) -> NDArray[np.int64]:
        """Numbers of the layers that have none."""
        return np.flatnonzero(~self.counts.any(axis=1))


def read_loads(
    paths: StrPath | Sequence[StrPath], *, steps: tuple[int, int | None] | None = None
) -> Loads:
    """Sum the loads of one or more files, or of a folder of recorder dumps.

    Files: SGLang recorder dumps (`.pt`, needs torch), `.json`, `.npy` or `.npz` with
    `logical_count` [layers, experts] or [steps, layers, experts], `.csv` layer,expert,count.
    Records of several ranks are summed pass by pass, other files follow one another. `steps` is
    the half-open range of recorded steps to sum; steps that are all zero, such as unused rows of
    the recorder's buffer, count as idle.

    Raises `Error`: 2 if a file or step is not there, 4 if counts are ragged, empty or impossible.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = list(_expanded(given))
    sources, notes = _open(files)
    shape = sources[0].shape[1:]
    for source in sources[1:]:
        if source.shape[1:] != shape:
            here, there = ("{} layers × {} experts".format(*s) for s in (source.shape[1:], shape))
            raise invalid_error(f"{here}, but {there} in {sources[0].path}", source.path)
    recorded = sum(source.shape[0] for source in sources)
    first, last = steps or (0, None)
    last = recorded if last is None else last
    if not first < last <= recorded:
        raise usage_error(f"steps {first}:{last} asked for, {recorded:,} recorded")
    counts, used = _sum(sources, first, last)
    if not used:
        raise invalid_error("no token was counted", files[0])
    return Loads(counts, files, last - first, last - first - used, notes)


def _expanded(paths: Iterable[StrPath]) -> Iterator[str]:
    seen = set()
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob(PATTERN))
            if not found:
                raise usage_error(f"a folder without {PATTERN}", path=str(path))
        else:
            found = [path]
        for file in found:
            real = os.path.realpath(file)
            if real in seen:
                raise usage_error("named twice", path=str(file))
            seen.add(real)
            yield str(file)


def _open(files: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The sources in the order of the files; records of all ranks are one source, the last."""
    sources: list[Source] = []
    stats: list[StatDump] = []
    passes = Passes(files[0])
    for path in files:
        suffix = Path(path).suffix.lower()
        if suffix == ".pt":
            dump = read_dump(path, passes)
            stats += [dump] if dump else []
        elif suffix in (".npy", ".npz"):
            sources.append(read_npy(path, archived=suffix == ".npz"))
        elif suffix == ".json":
            sources.append(read_json(path))
        elif suffix == ".csv":
            sources.append(read_csv(path))
        else:
            raise _unknown(path)
    rank = min((dump.rank for dump in stats), default=0)
    copies = [dump for dump in stats if dump.rank != rank]
    sources += [dump.table for dump in stats if dump.rank == rank]
    sources += [passes] if passes.records else []
    left = "1 file" if len(copies) == 1 else f"{len(copies)} files"
    text = f"{left} left out: every rank's dump holds the sum over all ranks already"
    return sources, [text] if copies else []


def _unknown(path: str) -> Error:
    return usage_error(f"no file of loads: {', '.join(SUFFIXES)} are read", path=path)


def _sum(
    sources: Sequence[Source], first: int, last: int
) -> tuple[NDArray[np.int64] | NDArray[np.float64], int]:
    """Counts over the steps from `first` up to `last` of all sources, and the steps with any."""
    total: NDArray[np.int64] | NDArray[np.float64] = np.zeros(sources[0].shape[1:], np.int64)
    used = 0
    for source in sources:
        steps = source.shape[0]
        for window in source.windows(max(0, min(first, steps)), max(0, min(last, steps))):
            used += int(check_values(window, source.path).sum())
            dtype = np.float64 if window.dtype.kind == "f" else np.int64
            total = total + window.sum(axis=0, dtype=dtype)
            if total.sum(dtype=np.float64) > MAX_COUNT:
                raise invalid_error(
                    "the counts cannot be summed exactly, they are too large", source.path
                )
        first, last = first - steps, last - steps
    return total, used
