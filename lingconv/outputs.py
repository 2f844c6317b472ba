"""Small files that commands write: whole or not at all, and never over somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

from lingconv.errors import Error, ExitCode, file_error


def write_file(path: Path, text: str, *, mark: str) -> None:
    """Write a file that begins with `mark`, and replace only one that does.

    Raises `Error`: 7 if another file has the name, 6 if the disk is full, 2 if it cannot be made.
    """
    part = path.with_name(path.name + ".part")
    try:
        if path.exists() and not _begins(path, mark):
            raise Error(
                "exists and is not a file of this kind",
                kind="foreign",
                exit_code=ExitCode.FOREIGN,
                path=str(path),
                hint="give another name with -o",
            )
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise file_error("cannot write", str(path), error) from None


def _begins(path: Path, mark: str) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark.encode())) == mark.encode()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
