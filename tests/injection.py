"""Runs in which every system call on given folders is counted, and one of them fails.

The calls of a run, whichever of its threads makes them, wait for an answer from here (a listener of
seccomp). So the n-th call of a kind on a file is the same one in every run of one job.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ordeal import Words
from support import TIMEOUT, environment

# The property under which a test tells how many calls it made to fail.
INJECTIONS = "injections"
LAUNCHER = Path(__file__).parent / "shims" / "watched.py"
# Numbers on x86-64, by where the calls name their file: by a descriptor, by a path, by a path that
# is relative to a descriptor. Of calls with two files it is the one that is made.
_BY_DESCRIPTOR = {
    "read": (0, 0), "write": (1, 0), "fstat": (5, 0), "ioctl": (16, 0), "pread64": (17, 0),
    "pwrite64": (18, 0), "fcntl": (72, 0), "flock": (73, 0), "fsync": (74, 0),
    "fdatasync": (75, 0), "ftruncate": (77, 0), "fstatfs": (138, 0), "getdents64": (217, 0),
    "fadvise64": (221, 0), "fallocate": (285, 0), "copy_file_range": (326, 2),
    "preadv2": (327, 0),
}  # fmt: skip
_BY_PATH = {
    "open": (2, 0), "stat": (4, 0), "lstat": (6, 0), "rename": (82, 0), "mkdir": (83, 0),
    "rmdir": (84, 0), "link": (86, 1), "unlink": (87, 0), "symlink": (88, 1),
    "readlink": (89, 0), "statfs": (137, 0),
}  # fmt: skip
_BY_BOTH = {
    "openat": (257, 0), "mkdirat": (258, 0), "newfstatat": (262, 0), "unlinkat": (263, 0),
    "renameat": (264, 0), "linkat": (265, 2), "symlinkat": (266, 1), "readlinkat": (267, 0),
    "renameat2": (316, 0), "statx": (332, 0),
}  # fmt: skip
_TABLES = (_BY_DESCRIPTOR, _BY_PATH, _BY_BOTH)
_NAMES = {number: name for table in _TABLES for name, (number, _) in table.items()}
# Of those that do many things, the one that is looked for: its command, and what it is called here.
_COMMANDS = {"fcntl": (4, "set O_DIRECT"), "ioctl": (0x40049409, "FICLONE")}
# Those that move data, and what is added to their names where it goes past the page cache.
_BULK, DIRECT = {"pread64", "pwrite64"}, ", direct"
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
_HERE = -100  # AT_FDCWD
_PAGE = 4096
Roots = Mapping[str, Path]


@dataclass(frozen=True)
class Call:
    """The `nth` call of this name on `path`, relative to a folder that has a name here."""

    name: str
    root: str
    path: Path
    nth: int

    @property
    def file(self) -> str:
        """The name under which people know the file."""
        return self.path.name.removesuffix(".part")


@dataclass(frozen=True)
class Done:
    """How a run ended, and what it did."""

    returncode: int
    stdout: str
    stderr: str
    calls: list[Call]


# What happens to a call: the error that it returns, or a signal that ends the run there.
Effect = int | signal.Signals
Answer = Callable[[Call], Effect | None]


def once(call: Call, effect: Effect) -> Answer:
    """It happens to that call alone."""
    return lambda made: effect if made == call else None


def from_then_on(call: Call, number: int) -> Answer:
    """That call fails, and every later one of the kind on any file of the folder."""
    begun = False

    def answer(made: Call) -> int | None:
        nonlocal begun
        begun |= made == call
        same = (made.name, made.root) == (call.name, call.root)
        return number if begun and same else None

    return answer


def watch(words: Words, roots: Roots, answer: Answer = lambda _: None) -> Done:
    """Run a command to its end; each of its calls on `roots` gets an answer, most of them None."""
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        numbers = ",".join(map(str, _NAMES))
        child = subprocess.Popen(
            [sys.executable, LAUNCHER, str(theirs.fileno()), numbers, *map(str, words)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with _killed_at_last(child):
            ours.settimeout(TIMEOUT)
            _, (listener, *_), _, _ = socket.recv_fds(ours, 1, 1)
            calls = _attend(child, listener, roots, answer)
            code = child.wait(TIMEOUT)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return Done(code, *texts, calls)


@contextlib.contextmanager
def _killed_at_last(child: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _attend(
    child: subprocess.Popen[bytes], listener: int, roots: Roots, answer: Answer
) -> list[Call]:
    calls, counts = [], Counter[tuple[str, str, Path]]()
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    folders = {name: os.fspath(path) for name, path in roots.items()}
    with os.fdopen(listener, "rb", buffering=0):
        while True:
            events = waiting.poll(TIMEOUT * 1000)
            assert events, "no call for a long time: it hangs"
            if not events[0][1] & select.POLLIN:
                return calls
            notice = bytearray(_NOTICE.size)
            with contextlib.suppress(FileNotFoundError):  # the thread was killed
                fcntl.ioctl(listener, _RECEIVE, notice)
                number, verdict = 0, None
                if found := _place(notice, folders):
                    counts[found] += 1
                    calls.append(Call(*found, counts[found]))
                    verdict = answer(calls[-1])
                if isinstance(verdict, signal.Signals):
                    child.send_signal(verdict)
                elif verdict is not None:
                    number = verdict
                flags = 0 if number else _CONTINUE
                identity = _NOTICE.unpack(notice)[0]
                fcntl.ioctl(listener, _SEND, _ANSWER.pack(identity, 0, -number, flags))


def _place(notice: bytearray, folders: Mapping[str, str]) -> tuple[str, str, Path] | None:
    """Name of the call, and which file of which folder it is about."""
    _, thread, _, number, _, _, *arguments = _NOTICE.unpack(notice)
    name = _NAMES[number]
    if command := _COMMANDS.get(name):
        wanted, name = command
        if arguments[1] & 0xFFFFFFFF != wanted:
            return None
    path = _path(_NAMES[number], thread, arguments)
    for root, folder in folders.items():
        if path == folder or path.startswith(f"{folder}/"):
            if name in _BULK and _is_direct(thread, arguments[0]):
                name += DIRECT
            return name, root, Path(path[len(folder) + 1 :])
    return None


def _is_direct(thread: int, descriptor: int) -> bool:
    lines = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_DIRECT)


def _path(name: str, thread: int, arguments: list[int]) -> str:
    with contextlib.suppress(OSError):
        if name in _BY_DESCRIPTOR:
            return _opened(thread, arguments[_BY_DESCRIPTOR[name][1]])
        if name in _BY_PATH:
            base, text = _HERE, _text(thread, arguments[_BY_PATH[name][1]])
        else:
            first = _BY_BOTH[name][1]
            base, text = arguments[first], _text(thread, arguments[first + 1])
        if text.startswith("/"):
            return os.path.normpath(text)
        return os.path.normpath(f"{_opened(thread, base)}/{text}")
    return ""


def _opened(thread: int, descriptor: int) -> str:
    here = ctypes.c_int(descriptor).value == _HERE
    link = "cwd" if here else f"fd/{descriptor & 0xFFFFFFFF}"
    return os.fspath(Path(f"/proc/{thread}/{link}").readlink())


def _text(thread: int, address: int) -> str:
    """A string in the memory of a thread."""
    if address == 0:
        return ""
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        text = b""
        while b"\0" not in text:
            at = address + len(text)
            text += os.pread(memory, _PAGE - at % _PAGE, at)
        return os.fsdecode(text[: text.index(b"\0")])
    finally:
        os.close(memory)


def is_possible() -> bool:
    """Whether this machine lets calls be watched."""
    if os.uname().machine != "x86_64":
        return False
    nowhere = Path(tempfile.gettempdir()) / "nowhere"
    try:
        return bool(watch(("inspect", nowhere), {"source": nowhere}).calls)
    except (OSError, ValueError):
        return False
