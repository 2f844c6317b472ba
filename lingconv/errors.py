"""Errors: what they carry, and the exit codes that a command ends with."""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """How a command ended; the same numbers for every command."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    CHECK = 3
    INVALID = 4
    IMPOSSIBLE = 5
    SPACE = 6
    FOREIGN = 7
    IO = 8
    UNVERIFIABLE = 9
    SIGINT = 130
    SIGTERM = 143


EXIT_CODES = {
    ExitCode.DONE: "done",
    ExitCode.INTERNAL: "internal error",
    ExitCode.USAGE: "usage",
    ExitCode.CHECK: "a check failed (mismatch, difference, threshold)",
    ExitCode.INVALID: "checkpoint unreadable or invalid",
    ExitCode.IMPOSSIBLE: "plan impossible, or too large for this version",
    ExitCode.SPACE: "not enough space or memory",
    ExitCode.FOREIGN: "output belongs to something else or is locked",
    ExitCode.IO: "I/O failed midway, resumable",
    ExitCode.UNVERIFIABLE: "could not verify (no digest to compare with)",
    ExitCode.SIGINT: "SIGINT, resumable",
    ExitCode.SIGTERM: "SIGTERM, resumable",
}

# What a disk or a network answers, whichever name was given.
_OF_THE_DISK = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EINTR,
    errno.EOPNOTSUPP,
}


class Error(Exception):
    """Everything that lingconv raises on purpose. `str()` is the whole text but the hint."""

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        exit_code: int,
        details: Sequence[str] = (),
        path: str | None = None,
        tensor: str | None = None,
        hint: str | None = None,
        text: str | None = None,
    ) -> None:
        place = f"{message} ({path})" if path else message
        super().__init__(text or "\n  ".join([place, *details]))
        self.message = message
        self.kind = kind
        self.exit_code = exit_code
        self.details = list(details)
        self.path = path
        self.tensor = tensor
        self.hint = hint

    def as_json(self) -> dict[str, Any]:
        """The object that `--json` ends with on failure."""
        return {
            "code": self.exit_code,
            "kind": self.kind,
            "message": self.message,
            "details": self.details,
            "path": self.path,
            "tensor": self.tensor,
            "hint": self.hint,
        }


def core_error(raised: Any) -> Error:
    """The same error as one of the compiled core, whose exception has the same fields."""
    fields = {name: getattr(raised, name) for name in ("details", "path", "tensor", "hint")}
    code = raised.exit_code
    return Error(raised.message, kind=raised.kind, exit_code=code, text=str(raised), **fields)


def usage_error(message: str, *, path: str | None = None, hint: str | None = None) -> Error:
    """The request makes no sense."""
    return Error(message, kind="usage", exit_code=ExitCode.USAGE, path=path, hint=hint)


def invalid_error(message: str, path: str, *, hint: str | None = None) -> Error:
    """A file that says what cannot be."""
    return Error(message, kind="invalid", exit_code=ExitCode.INVALID, path=path, hint=hint)


def impossible_error(message: str, path: str, *, hint: str | None = None) -> Error:
    """What is asked for cannot be done with this file, sound as it may be."""
    return Error(message, kind="impossible", exit_code=ExitCode.IMPOSSIBLE, path=path, hint=hint)


def file_error(action: str, path: str, error: OSError) -> Error:
    """A small file that the user named (a plan, a log) could not be read or written."""
    message = f"{action}: {error.strerror}"
    if error.errno in _LIMITS:
        return _space_error(message, path=path, hint=_LIMITS[error.errno])
    if error.errno in _OF_THE_DISK:
        return Error(message, kind="io", exit_code=ExitCode.IO, path=path)
    return usage_error(message, path=path)


def _space_error(message: str, *, path: str | None = None, hint: str | None) -> Error:
    """The system gives no more of something."""
    return Error(message, kind="space", exit_code=ExitCode.SPACE, path=path, hint=hint)


_MORE_MEMORY = "raise the limit of memory (`ulimit -v`), or use fewer jobs"
_MORE_FILES = "raise the limit of open files (`ulimit -n`)"
_MORE_THREADS = "raise the limit of processes (`ulimit -u`) or of memory, or use fewer: --jobs 1"
# What is full or limited, and what helps.
_LIMITS = {
    errno.ENOSPC: None,
    errno.EDQUOT: None,
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`), or use another file system",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
    errno.ENOMEM: _MORE_MEMORY,
}
# The loader of shared libraries has no numbers for what it lacks, only words.
_UNMAPPED = re.compile("failed to map|cannot map|allocate|cannot create shared object descriptor")
_UNOPENED = re.compile(rf"Error {errno.EMFILE}\b|Too many open files")


def limit_of(raised: BaseException) -> Error | None:
    """The limit of the system that an exception tells of, or one that it came from."""
    for error in _causes(raised):
        text = str(error)
        if isinstance(error, MemoryError):
            return memory_error()
        if isinstance(error, OSError) and error.errno in _LIMITS:
            return _space_error(text, hint=_LIMITS[error.errno])
        if isinstance(error, RuntimeError) and text == "can't start new thread":
            return threads_error()
        if isinstance(error, ImportError) and _UNMAPPED.search(text):
            return _space_error("not enough memory to load a library", hint=_MORE_MEMORY)
        if isinstance(error, ImportError) and _UNOPENED.search(text):
            return _space_error("too many open files to load a library", hint=_MORE_FILES)
    return None


def memory_error() -> Error:
    """No memory more."""
    return _space_error("not enough memory", hint=_MORE_MEMORY)


def threads_error() -> Error:
    """Neither a thread nor a process more."""
    return _space_error("the system gives no more threads", hint=_MORE_THREADS)


def process_limit_of(raised: OSError) -> Error | None:
    """The limit that kept a process from being started, which EAGAIN says only there."""
    return threads_error() if isinstance(raised, BlockingIOError) else limit_of(raised)


def _causes(raised: BaseException | None) -> Iterator[BaseException]:
    while raised is not None:
        yield raised
        raised = raised.__cause__ or raised.__context__


def unexpected_error(error: BaseException) -> Error:
    """What nobody handled: a limit, a stream that cannot be written, or else a bug."""
    if limit := limit_of(error):
        return limit
    if isinstance(error, OSError):
        return Error(str(error), kind="io", exit_code=ExitCode.IO)
    return Error(
        f"internal error: {type(error).__name__}: {error}",
        kind="internal",
        exit_code=ExitCode.INTERNAL,
        hint="please report it with the command and the output of LINGCONV_DEBUG=1",
    )


def of(raised: BaseException) -> Error:
    """What a command ends with, whatever was raised."""
    if isinstance(raised, Interrupted):
        return cancelled(raised.number)
    return raised if isinstance(raised, Error) else unexpected_error(raised)


def cancelled(
    number: int, kept: str = "", *, path: str | None = None, hint: str | None = None
) -> Error:
    """The user stopped a command; `kept` says what there is to go on with."""
    name = signal.Signals(number).name
    message = f"stopped by {name}; {kept}" if kept else f"stopped by {name}"
    return Error(message, kind="cancelled", exit_code=128 + number, path=path, hint=hint)


class Interrupted(BaseException):
    """The first SIGINT or SIGTERM. Like KeyboardInterrupt it passes `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
