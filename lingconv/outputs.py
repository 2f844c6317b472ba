"""Files that the user names for an answer: whole or not at all, and never over somebody else's.

A pipe, a device or another name for one of them (`/dev/stdout`, `/dev/fd/3`) is written to as it
is; any other link is refused, since a name would be replaced that stands for another file.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from lingconv.errors import Error, ExitCode, file_error
from lingconv.foreign import CertainFile

SAVED_PLAN = ('{"schema":"lingconv.saved-plan/',)
_SUMS = ("# self-attested by lingconv", "# made by lingconv")
LOG = "# lingconv log\n"


def check_file(path: Path, *, marks: Sequence[str]) -> None:
    """Refuse a file that does not begin with one of `marks`, or that cannot be made.

    Raises `Error`: 7 if another file has the name, 2 if it cannot be made.
    """
    try:
        if _is_stream(path):
            return
        mode = _mode(path)
        if mode is not None and (stat.S_ISLNK(mode) or not _begins(path, marks)):
            raise Error(
                "exists and is not a file of this kind that lingconv wrote",
                kind="foreign",
                exit_code=ExitCode.FOREIGN,
                path=str(path),
                hint="give another name, or move that file away",
            )
        with _part(path):
            pass
    except OSError as error:
        raise file_error("cannot write", str(path), error) from None


def write_file(path: Path, text: str, *, marks: Sequence[str]) -> None:
    """Write a file that begins with one of `marks`, and replace only one that does.

    Raises `Error`: 7 if another file has the name, 6 if the disk is full, 2 if it cannot be made.
    """
    check_file(path, marks=marks)
    try:
        if _is_stream(path):
            with path.open("w", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(text)
            return
        with _part(path) as (part, file):
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise file_error("cannot write", str(path), error) from None


def check_sums(path: str | os.PathLike[str] | None) -> None:
    """Refuse, where sums are wanted, what `write_sums` would refuse once they are made."""
    if path is not None:
        check_file(Path(path), marks=_SUMS)


def write_sums(path: str | os.PathLike[str] | None, text: str) -> None:
    """Write sums, where they are wanted; the core marks those that no source agrees with."""
    if path is not None:
        marked = text if text.startswith(_SUMS) else f"{_SUMS[1]}: a source of truth agreed\n{text}"
        write_file(Path(path), marked, marks=_SUMS)


def open_log(path: Path) -> TextIO:
    """A log to append to: a new one, one that was begun here, or a stream."""
    check_file(path, marks=(LOG,))
    try:
        log = path.open("a", encoding="utf-8", errors="backslashreplace")
        if not _is_stream(path) and not log.tell():
            log.write(LOG)
            log.flush()
    except OSError as error:
        raise file_error("cannot write the log", str(path), error) from None
    return log


def _is_stream(path: Path) -> bool:
    """Whether a name stands for a pipe, a socket or a device, or for a descriptor of this process.

    `/dev/stdout` is written to even where it leads to a file: that file was opened by the user.
    """
    if path.is_symlink() and Path(os.path.realpath(path)).parent == Path(f"/proc/{os.getpid()}/fd"):
        return True
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


@contextlib.contextmanager
def _part(path: Path) -> Iterator[tuple[Path, TextIO]]:
    """A file beside `path` that is gone afterwards, unless it was given that name."""
    # Named before it is made, and removed once more: a signal may come at any of these lines.
    part = path.parent / f".{path.name}.{os.urandom(4).hex()}.part"
    try:
        file = part.open("x", encoding="utf-8", errors="surrogateescape")
        with file:
            yield part, file
    finally:
        try:
            part.unlink(missing_ok=True)
        finally:
            part.unlink(missing_ok=True)


def _mode(path: Path) -> int | None:
    """What is there, a link perhaps; None only where there surely is nothing."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _begins(path: Path, marks: Sequence[str]) -> bool:
    """Whether a file is of this kind; an empty one holds nothing to lose."""
    with io.BufferedReader(CertainFile(path)) as file:
        start = file.read(max(len(mark.encode()) for mark in marks))
    return not start or any(start.startswith(mark.encode()) for mark in marks)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
