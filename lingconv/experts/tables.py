"""Expert loads in neutral files: npy and npz in windows, JSON, CSV."""

from __future__ import annotations

import csv
import errno
import io
import json
import lzma
import math
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lingconv.errors import file_error
from lingconv.experts.bounds import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_TEXT,
    MAX_WHOLE,
    WINDOW,
    Numbers,
    check_dtype,
    check_shape,
    invalid,
)

NAME = "logical_count"
_MEMBER = f"{NAME}.npy"
# What zipfile raises where it does not find what it expects.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


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
        with reading(self.path), _opened(self.path, archived=self.archived) as file:
            file.seek(self.start + first * size)
            for start in range(first, last, rows):
                window = buffer[: last - start]
                _fill(file, window, self.path)
                yield window


def rows_of_window(size: int) -> int:
    """How many steps of `size` bytes are read at a time."""
    return max(1, WINDOW // size)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what files and archives raise into errors that name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of a decompressor; of an offset before the begin
            raise invalid("damaged archive", path) from None
        raise file_error("cannot read the loads", path, error) from None
    except _DAMAGED as error:
        raise invalid(f"damaged archive: {str(error)[:200]}", path) from None


@contextmanager
def _opened(path: str, *, archived: bool) -> Iterator[IO[bytes]]:
    opened: AbstractContextManager[IO[bytes]]
    with Path(path).open("rb", buffering=0) as file:
        if not archived:
            yield file
            return
        with zipfile.ZipFile(file) as archive:
            if _MEMBER not in archive.namelist():
                raise invalid(f"the archive holds no {NAME}", path)
            opened = archive.open(_MEMBER)
            with opened as member:
                yield member


def _fill(file: IO[bytes], window: Numbers, path: str) -> None:
    target = window.data.cast("B")
    while target:
        count: int = file.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise invalid(f"ends {len(target):,} bytes before the counts do", path)
        target = target[count:]


def read_npy(path: str, *, archived: bool) -> Table | NpyTable:
    """Open an npy file, or an npz archive with `logical_count`; nothing is unpickled."""
    with reading(path), _opened(path, archived=archived) as file:
        shape, fortran, dtype = _header(file, path)
        check_dtype(dtype, path)
        sizes = check_shape(shape, path)
        start, size = file.tell(), math.prod(shape) * dtype.itemsize
        if not archived and Path(path).stat().st_size != start + size:
            raise invalid(f"holds not the {size:,} bytes of counts that its header says", path)
        if not fortran:
            return NpyTable(path, archived, sizes, dtype, start)
        if size > MAX_WHOLE:
            raise invalid(
                f"{size:,} bytes in Fortran order cannot be read in windows",
                path,
                hint="save them with `np.save(file, np.ascontiguousarray(counts))`",
            )
        counts: Numbers = np.empty(shape[::-1], dtype)
        _fill(file, counts, path)
        return Table(path, np.ascontiguousarray(counts.T).reshape(sizes))


def _header(file: IO[bytes], path: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(file)
        if version not in readers:
            raise ValueError(f"npy format {version}")
        shape, fortran, dtype = readers[version](file)
    except OSError:
        raise
    except Exception as error:  # numpy evaluates the header as a Python literal
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise invalid(f"no npy header: {reason[:200]}", path) from None
    return shape, fortran, dtype


def _text(path: str) -> str:
    with reading(path):
        size = Path(path).stat().st_size
        if size > MAX_TEXT:
            raise invalid(
                f"{size:,} bytes of text, more than {MAX_TEXT:,}",
                path,
                hint=f"save {NAME} as npy instead, which is read in windows",
            )
        try:
            return Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise invalid(f"no UTF-8 text: {error}", path) from None


def read_json(path: str) -> Table:
    """Read `{"logical_count": [[…]]}`, or the nested lists alone."""

    def refuse(constant: str) -> NoReturn:
        raise invalid(f"a count is {constant}", path)

    try:
        data: Any = json.loads(_text(path), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise invalid(f"no JSON that can be read: {error}", path) from None
    if isinstance(data, dict):
        if NAME not in data:
            keys = ", ".join(sorted(map(str, data))[:5]) or "nothing"
            raise invalid(f"no {NAME}, but {keys[:200]}", path)
        data = data[NAME]
    try:
        counts = np.array(data)
    except (ValueError, OverflowError) as error:
        raise invalid(f"ragged counts: {str(error)[:200]}", path) from None
    if counts.size == 0:
        raise invalid("no counts", path)
    check_dtype(counts.dtype, path)
    return Table(path, counts.reshape(check_shape(counts.shape, path)))


def read_csv(path: str) -> Table:
    """Read rows `layer,expert,count`; a layer of which nothing is said counts nothing."""
    lines = csv.reader(io.StringIO(_text(path)))
    if [name.strip() for name in next(lines, [])] != ["layer", "expert", "count"]:
        raise invalid("the first line is not `layer,expert,count`", path)
    numbers = array("q")
    for row in filter(None, lines):
        try:
            layer, expert, count = map(int, row)
        except ValueError:
            raise invalid(f"line {lines.line_num}: not three whole numbers", path) from None
        if not (0 <= layer < MAX_LAYERS and 0 <= expert < MAX_EXPERTS):
            raise invalid(f"line {lines.line_num}: no such layer or expert is possible", path)
        if not 0 <= count < 2**63:
            raise invalid(f"line {lines.line_num}: {row[2][:50]} is no possible count", path)
        numbers.extend((layer, expert, count))
    if not numbers:
        raise invalid("no counts", path)
    layers, experts, counts = np.array(numbers, np.int64).reshape(-1, 3).T
    return Table(path, _placed(layers, experts, counts, path))


def _placed(
    layers: NDArray[np.int64], experts: NDArray[np.int64], values: NDArray[np.int64], path: str
) -> NDArray[np.int64]:
    """Counts [1, layers, experts]; a layer has all experts or none, each once."""
    shape = (int(layers.max()) + 1, int(experts.max()) + 1)
    given = np.bincount(layers * shape[1] + experts, minlength=shape[0] * shape[1]).reshape(shape)
    if given.max() > 1:
        layer, expert = divmod(int(given.argmax()), shape[1])
        raise invalid(f"layer {layer}, expert {expert} is there {given.max()} times", path)
    held = given.sum(axis=1)
    ragged = np.flatnonzero((held != 0) & (held != shape[1]))
    if ragged.size:
        layer = int(ragged[0])
        raise invalid(f"layer {layer} has {held[layer]} experts, not {shape[1]}", path)
    counts = np.zeros(check_shape(shape, path), np.int64)
    counts[0, layers, experts] = values
    return counts
