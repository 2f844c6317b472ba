"""Files of arrays and archives of them, opened without believing what they say of themselves."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from lingconv.errors import file_error, invalid_error
from lingconv.foreign import CertainFile

# Most bytes of one read: an archive lists its members in a single one.
MAX_READ = 2**20
# What may be compressed to how much less; below the first of them nothing is a bomb.
_HARMLESS = 64 * 2**20
_MAX_INFLATED = 2**30
_MAX_RATIO = 100
# What zipfile raises where it does not find what it expects.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
)


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what files and archives raise into errors that name the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of a decompressor; of an offset before the begin
            raise invalid_error("damaged archive", path) from None
        raise file_error("cannot read the loads", path, error) from None
    except _DAMAGED as error:
        raise invalid_error(f"damaged archive: {str(error)[:200]}", path) from None


@contextmanager
def opened(path: str, name: str, *, archived: bool) -> Iterator[tuple[IO[bytes], int]]:
    """A file, or the array `name` of an npz archive, and how many bytes it holds."""
    with reading(path), regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not archived:
            yield file, size
            return
        with listed(file, path, most=MAX_READ) as archive:
            info = _member(archive, f"{name}.npy", path)
            _check_inflated(info, size, path)
            with archive.open(info) as member:
                yield member, info.file_size


def regular(path: str) -> CertainFile:
    """Opens a regular file; a pipe would wait for its other end."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise invalid_error("not a regular file", path)
    return CertainFile(handle)


class _Limited(io.RawIOBase):
    """A file of which no single read takes more than `most` bytes."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise ValueError(f"a part of {size:,} bytes, more than {self._most:,}")
        # The end of a file is read without a size.
        data = self._file.read(size if size >= 0 else self._most + 1)
        if len(data) > self._most:
            raise ValueError(f"an end of more than {self._most:,} bytes")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


def listed(file: IO[bytes], path: str, *, most: int) -> zipfile.ZipFile:
    """An archive whose list of members takes at most `most` bytes, each of another name."""
    archive = zipfile.ZipFile(_Limited(file, most))
    twins = [name for name, count in Counter(archive.namelist()).items() if count > 1]
    if twins:
        raise invalid_error(f"the archive holds {twins[0][:100]} more than once", path)
    return archive


def _member(archive: zipfile.ZipFile, name: str, path: str) -> zipfile.ZipInfo:
    if name not in archive.namelist():
        raise invalid_error(f"the archive holds no {name.removesuffix('.npy')}", path)
    info = archive.getinfo(name)
    # Of the other methods some take memory as a file tells them.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise invalid_error(f"{name} is compressed in a way that numpy does not use", path)
    return info


def _check_inflated(info: zipfile.ZipInfo, size: int, path: str) -> None:
    """Refuse what becomes much more than it is; the archive itself has `size` bytes."""
    packed = info.compress_size
    if packed > size:
        raise invalid_error(f"{packed:,} bytes of counts in an archive of {size:,}", path)
    limit = min(_MAX_INFLATED, max(_HARMLESS, _MAX_RATIO * packed))
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > limit:
        raise invalid_error(
            f"{packed:,} bytes become {info.file_size:,}, more than {limit:,}",
            path,
            hint="save the counts as npy instead, which is read in windows",
        )
