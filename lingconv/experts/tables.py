"""Expert loads in neutral files: npy and npz in windows, JSON, CSV."""

from __future__ import annotations

import csv
import io
import math
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lingconv import foreign
from lingconv.errors import Error, invalid_error, limit_of
from lingconv.experts.archives import MAX_READ, opened
from lingconv.experts.bounds import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_LINE,
    MAX_TEXT,
    MAX_WHOLE,
    WINDOW,
    Numbers,
    check_dtype,
    check_shape,
)

NAME = "logical_count"
_MAX_HEADER = 2**16
# Steps, layers, experts.
_MAX_DEPTH = 3
_AS_NPY = f"save {NAME} as npy instead, which is read in windows"


@dataclass(frozen=True)
class Table:
    """Counts of one file, held as an array [steps, layers, experts]."""

    path: str
    counts: Numbers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, layers, experts."""
        steps, layers, experts = self.counts.shape
        return steps, layers, experts

    def windows(self, first: int, last: int) -> Iterator[Numbers]:
        """The steps from `first` up to `last`, some at a time."""
        rows = rows_of_window(self.counts[0].nbytes)
        for start in range(first, last, rows):
            yield self.counts[start : min(start + rows, last)]


@dataclass(frozen=True)
class NpyTable:
    """Counts of an npy file, or of one inside an npz archive, which stay there."""

    path: str
    archived: bool
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    start: int

    def windows(self, first: int, last: int) -> Iterator[Numbers]:
        """The steps from `first` up to `last`, read some at a time into one buffer."""
        _, layers, experts = self.shape
        size = layers * experts * self.dtype.itemsize
        rows = min(rows_of_window(size), last - first)
        buffer = np.empty((rows, layers, experts), self.dtype)
        with opened(self.path, NAME, archived=self.archived) as (file, _):
            file.seek(self.start + first * size)
            for start in range(first, last, rows):
                window = buffer[: last - start]
                _fill(file, window, self.path)
                yield window


def rows_of_window(size: int) -> int:
    """How many steps of `size` bytes are read at a time."""
    return max(1, WINDOW // size)


def _fill(file: IO[bytes], window: Numbers, path: str) -> None:
    target = window.data.cast("B")
    while target:
        count: int = file.readinto(target[:MAX_READ])  # type: ignore[attr-defined]
        if not count:
            raise invalid_error(f"ends {len(target):,} bytes before the counts do", path)
        target = target[count:]


def read_npy(path: str, *, archived: bool) -> Table | NpyTable:
    """Open an npy file, or an npz archive with `logical_count`; nothing is unpickled."""
    with opened(path, NAME, archived=archived) as (file, held):
        shape, fortran, dtype = _header(file, path)
        check_dtype(dtype, path)
        sizes = check_shape(shape, path)
        start, size = file.tell(), math.prod(shape) * dtype.itemsize
        if held != start + size:
            raise invalid_error(
                f"holds not the {size:,} bytes of counts that its header says", path
            )
        if not fortran:
            return NpyTable(path, archived, sizes, dtype, start)
        if size > MAX_WHOLE:
            raise invalid_error(
                f"{size:,} bytes in Fortran order cannot be read in windows",
                path,
                hint="save them with `np.save(file, np.ascontiguousarray(counts))`",
            )
        counts: Numbers = np.empty(shape[::-1], dtype)
        _fill(file, counts, path)
        return Table(path, counts.T.reshape(sizes))


def _header(file: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """What the header says; `file` is left behind it."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    # A header may say that it is gigabytes long.
    start = io.BytesIO(file.read(_MAX_HEADER))
    try:
        version = npy.read_magic(start)
        if version not in readers:
            raise ValueError(f"npy format {version}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape, fortran, dtype = readers[version](start)
    except Exception as error:  # numpy evaluates the header as a Python literal
        if limit := limit_of(error):
            raise limit from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise invalid_error(f"no npy header: {reason[:200]}", path) from None
    file.seek(start.tell())
    return shape, fortran, dtype


def read_json(path: str) -> Table:
    """Read `{"logical_count": [[…]]}`, or the nested lists alone."""
    text = foreign.read_bytes(Path(path), MAX_TEXT, refuse=_too_large)
    data: Any = foreign.parse_json(text, path, refuse=_too_large)
    if isinstance(data, dict):
        if NAME not in data:
            keys = ", ".join(sorted(map(str, data))[:5]) or "nothing"
            raise invalid_error(f"no {NAME}, but {keys[:200]}", path)
        data = data[NAME]
    counts = _array(data, path)
    return Table(path, counts.reshape(check_shape(counts.shape, path)))


def _array(data: Any, path: str) -> Numbers:
    """Nested lists of numbers as an array; every list is as long as the first of its depth."""
    values, shape = [data], list[int]()
    while len(shape) < _MAX_DEPTH and values and isinstance(values[0], list):
        values, shape = _joined(values, shape, path), [*shape, len(values[0])]
    if not values:
        raise invalid_error("no counts", path)
    kinds = set(map(type, values))
    if not kinds <= {int, float}:
        number = next(i for i, value in enumerate(values) if type(value) not in (int, float))
        name = type(values[number]).__name__
        raise invalid_error(f"{_place(number, shape)} is of type {name}, no number", path)
    try:
        return np.array(values, np.float64 if float in kinds else np.int64).reshape(shape)
    except OverflowError:
        number = max(range(len(values)), key=lambda i: abs(values[i]))
        raise invalid_error(f"{_place(number, shape)} is too large a count", path) from None


def _joined(rows: list[Any], shape: list[int], path: str) -> list[Any]:
    """The elements of lists that are all as long as the first."""
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(rows[0]):
            raise invalid_error(f"ragged counts: {_place(number, shape)} is unlike the first", path)
    return [element for row in rows for element in row]


def _place(number: int, shape: list[int]) -> str:
    """Where the element of a number lies, in indices from 0."""
    indices = np.unravel_index(number, shape) if shape else ()
    return f"[{']['.join(map(str, indices))}]" if shape else "what is there"


def _too_large(message: str, path: str) -> Error:
    return invalid_error(message, path, hint=_AS_NPY)


def read_csv(path: str) -> Table:
    """Read rows `layer,expert,count`; a layer of which nothing is said counts nothing."""
    numbers = array("q")
    data = foreign.read_bytes(Path(path), MAX_TEXT, refuse=_too_large)
    with io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig") as file:
        lines = csv.reader(_lines(file, path), strict=True)
        try:
            if [name.strip() for name in next(lines, [])] != ["layer", "expert", "count"]:
                raise invalid_error("the first line is not `layer,expert,count`", path)
            for row in filter(None, lines):
                numbers.extend(_checked_row(row, lines.line_num, path))
        except (csv.Error, UnicodeDecodeError) as error:
            reason = getattr(error, "reason", str(error))[:200]
            raise invalid_error(f"after line {lines.line_num}: {reason}", path) from None
    if not numbers:
        raise invalid_error("no counts", path)
    layers, experts, counts = np.array(numbers, np.int64).reshape(-1, 3).T
    return Table(path, _placed(layers, experts, counts, path))


def _lines(file: TextIO, path: str) -> Iterator[str]:
    """Lines of a length that can be one of ours."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise invalid_error(f"line {number}: more than {MAX_LINE:,} characters", path)
        yield line


def _checked_row(row: list[str], line: int, path: str) -> tuple[int, int, int]:
    try:
        layer, expert, count = map(int, row)
    except ValueError:
        raise invalid_error(f"line {line}: not three whole numbers", path) from None
    if not (0 <= layer < MAX_LAYERS and 0 <= expert < MAX_EXPERTS):
        raise invalid_error(f"line {line}: no such layer or expert is possible", path)
    if not 0 <= count < 2**63:
        raise invalid_error(f"line {line}: {row[2][:50]} is no possible count", path)
    return layer, expert, count


def _placed(
    layers: NDArray[np.int64], experts: NDArray[np.int64], values: NDArray[np.int64], path: str
) -> NDArray[np.int64]:
    """Counts [1, layers, experts]; a layer has all experts or none, each once."""
    shape = (int(layers.max()) + 1, int(experts.max()) + 1)
    sizes = check_shape(shape, path)
    given = np.bincount(layers * shape[1] + experts, minlength=shape[0] * shape[1]).reshape(shape)
    if given.max() > 1:
        layer, expert = divmod(int(given.argmax()), shape[1])
        raise invalid_error(f"layer {layer}, expert {expert} is there {given.max()} times", path)
    held = given.sum(axis=1)
    ragged = np.flatnonzero((held != 0) & (held != shape[1]))
    if ragged.size:
        layer = int(ragged[0])
        raise invalid_error(f"layer {layer} has {held[layer]} experts, not {shape[1]}", path)
    counts = np.zeros(sizes, np.int64)
    counts[0, layers, experts] = values
    return counts
