"""Small files that anybody may have made: read, and turned into values, within bounds.

What a text becomes is bounded as well as what it is: three bytes of JSON may become a list of 64.
"""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lingconv.errors import Error, file_error

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Memory that one JSON text may become; what large files of a known form hold is not built at all.
MAX_BUILT = 128 << 20
# What each mark outside of a string leads to at most, in bytes. In a string it counts too, which
# refuses only what is far from any file of ours.
_COSTS = {b"{": 250, b"[": 72, b",": 60, b":": 60}
# Arrays and objects in one another; how many Python itself bears depends on its release.
MAX_DEPTH = 128

T = TypeVar("T")
Refuse = Callable[[str, str], Error]
"""Makes the error of a message and a path."""


class CertainFile(io.FileIO):
    """A file whose reads fail where nothing can be read now; Python's own answer that with None or
    what they have, which others take for the end.
    """

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As `io.FileIO.readinto`; raises `BlockingIOError`."""
        count: int | None = super().readinto(buffer)
        return _certain(count)

    def read(self, size: int | None = -1) -> bytes:
        """As `io.FileIO.read`; raises `BlockingIOError`."""
        data: bytes | None = super().read(-1 if size is None else size)
        return _certain(data)


def _certain(found: T | None) -> T:
    if found is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return found


def read_bytes(path: Path, limit: int, *, refuse: Refuse, piped: bool = False) -> bytes:
    """All of a file of at most `limit` bytes; a pipe only if `piped`: it may never end.

    Raises what `refuse` makes of a file that is too large or of another kind, and `Error` 2 where
    the system cannot open or read it.
    """
    try:
        with _opened(path, piped=piped) as file:
            mode, size = os.fstat(file.fileno()).st_mode, os.fstat(file.fileno()).st_size
            if not stat.S_ISREG(mode) and not (piped and stat.S_ISFIFO(mode)):
                raise refuse("not a regular file", str(path))
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise file_error("cannot read", str(path), error) from None
    if max(len(data), size) > limit:
        raise refuse(f"more than {limit:,} bytes", str(path))
    return data


def _opened(path: Path, *, piped: bool) -> io.BufferedReader:
    # Opening a pipe waits for its other end, unless it is told not to.
    flags = os.O_RDONLY | os.O_CLOEXEC | (0 if piped else os.O_NONBLOCK)
    return io.BufferedReader(CertainFile(os.open(path, flags)))


def read_text(path: Path, limit: int, *, refuse: Refuse, piped: bool = False) -> str:
    """The UTF-8 text of a file of at most `limit` bytes; see `read_bytes`."""
    return decoded(read_bytes(path, limit, refuse=refuse, piped=piped), str(path), refuse=refuse)


def decoded(data: bytes, path: str, *, refuse: Refuse) -> str:
    """UTF-8 text, without the mark that some editors put in front."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(f"no UTF-8 text: {error.reason} at byte {error.start:,}", path) from None


def built_size(data: bytes) -> int:
    """How many bytes of memory a JSON text, or a part of one, becomes at most."""
    return sum(data.count(mark) * cost for mark, cost in _COSTS.items())


def _check_depth(value: Any) -> None:
    """Raises `RecursionError` beyond `MAX_DEPTH`, as the parser does beyond what Python bears."""
    inside: Iterable[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [node for node in inside if isinstance(node, (dict, list))]
        if not level:
            return
        parts = (node.values() if isinstance(node, dict) else node for node in level)
        inside = chain.from_iterable(parts)
    raise RecursionError


def parse_json(data: bytes, path: str, *, refuse: Refuse) -> Any:
    """The value of a JSON text that takes at most `MAX_BUILT` bytes, has no key twice and no more
    than `MAX_DEPTH` levels.
    """
    built = built_size(data)
    if built > MAX_BUILT:
        raise refuse(f"JSON that may take {built:,} bytes of memory, more than {MAX_BUILT:,}", path)
    text = decoded(data, path, refuse=refuse)
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_without_twins)
        _check_depth(value)
        if "\\u" in text:
            # Half a character could not be shown.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        problem = f"more than {MAX_DEPTH} levels deep"
        raise refuse(f"no JSON that can be read: {problem}", path) from None
    except ValueError as error:
        raise refuse(f"no JSON that can be read: {str(error)[:200]}", path) from None
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twin[:50]!r} is there {names.count(twin)} times")
    return found


def resolve_inside(folder: Path, name: str, *, refuse: Refuse) -> Path:
    """A file of a folder where its links lead: inside it, or to the blobs of a Hugging Face cache.

    A file that is not there is left to whoever opens it.
    """
    whole = Path(os.path.realpath(folder))
    allowed = [whole]
    if whole.parent.name == "snapshots":
        allowed.append(whole.parent.parent / "blobs")
    try:
        found = (folder / name).resolve()
    except (OSError, RuntimeError):  # a loop of links
        raise refuse("a link that leads nowhere", str(folder / name)) from None
    if not any(found.is_relative_to(place) for place in allowed):
        raise refuse("a link that leads outside the folder", str(folder / name))
    return folder / name
