"""Memory asked for before libraries are loaded that would end badly without it.

Some say so on stderr in their own way, and the one of linear algebra that comes with numpy starts a
thread a core, of which nothing here makes use, and ends the process with a code of its own.
"""

from __future__ import annotations

import mmap
import os

# The core, the library of hashes, and what a command begins with.
FOR_A_COMMAND = 24 << 20
# Numpy when it is loaded with a single thread, and as much again for arrays.
_ARRAYS = 160 << 20


def make_room(length: int) -> None:
    """Raises `OSError` if there is too little memory."""
    # Nothing is touched, so that it costs nothing but the asking.
    mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()


def make_room_for_arrays() -> None:
    """Call before the first import of numpy. Raises `OSError` if there is too little memory."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    make_room(_ARRAYS)
