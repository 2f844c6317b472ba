"""Errors: what they carry, and the exit codes that a command ends with."""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence
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
    ExitCode.IMPOSSIBLE: "plan impossible",
    ExitCode.SPACE: "not enough space or memory",
    ExitCode.FOREIGN: "output belongs to something else or is locked",
    ExitCode.IO: "I/O failed midway, resumable",
    ExitCode.UNVERIFIABLE: "could not verify (no digest to compare with)",
    ExitCode.SIGINT: "SIGINT, resumable",
    ExitCode.SIGTERM: "SIGTERM, resumable",
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


def usage_error(message: str, *, path: str | None = None, hint: str | None = None) -> Error:
    """The request makes no sense."""
    return Error(message, kind="usage", exit_code=ExitCode.USAGE, path=path, hint=hint)


def file_error(action: str, path: str, error: OSError) -> Error:
    """A small file that the user named (a plan, a log) could not be read or written."""
    message = f"{action}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Error(message, kind="space", exit_code=ExitCode.SPACE, path=path)
    return usage_error(message, path=path)


def unexpected_error(error: Exception) -> Error:
    """What nobody handled: no memory left, a stream that cannot be written, or else a bug."""
    if isinstance(error, MemoryError):
        return Error("not enough memory", kind="space", exit_code=ExitCode.SPACE)
    if isinstance(error, OSError):
        return Error(str(error), kind="io", exit_code=ExitCode.IO)
    return Error(
        f"internal error: {type(error).__name__}: {error}",
        kind="internal",
        exit_code=ExitCode.INTERNAL,
        hint="please report it with the command and the output of LINGCONV_DEBUG=1",
    )


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
