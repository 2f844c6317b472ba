"""Journals as a run leaves them, changed and given right sums again."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Records = list[dict[str, Any]]
LIBRARY = ctypes.util.find_library("xxhash")


def read(path: Path) -> Records:
    """The records of a journal."""
    return [json.loads(line[17:]) for line in path.read_bytes().splitlines()]


def write(path: Path, records: Records) -> None:
    """Records under sums that hold."""
    library = ctypes.CDLL(LIBRARY)
    library.XXH3_64bits.restype = ctypes.c_uint64
    library.XXH3_64bits.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
    lines = []
    for record in records:
        text = json.dumps(record, separators=(",", ":")).encode()
        lines.append(b"%016x %s\n" % (library.XXH3_64bits(text, len(text)), text))
    path.write_bytes(b"".join(lines))


def each_done(change: Callable[[dict[str, Any]], object]) -> Callable[[Records], Records]:
    """`change` of what is recorded of every finished task."""

    def changed(records: Records) -> Records:
        for record in records:
            if "done" in record:
                change(record["done"])
        return records

    return changed
