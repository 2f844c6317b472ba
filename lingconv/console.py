"""The only module that prints: answers on stdout, everything else on stderr and in the log.

Rich is imported when something is drawn with it, so that `--help` and plain lines do without.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from io import BufferedWriter, RawIOBase, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lingconv.errors import Error, ExitCode, limit_of
from lingconv.outputs import open_log

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_WIDE = 1_000_000
_STREAMS = ("stdin", "stdout", "stderr")
# Rows from which on a table is written plainly.
_MANY = 2_000
# Names of files and tensors may hold escape sequences, which a terminal would obey.
_CONTROLS = (*range(9), *range(11, 32), *range(127, 160))
# What turns the direction of writing or breaks a line, and bytes that are no UTF-8.
_MISLEADING = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_SURROGATES = range(0xD800, 0xE000)
_VISIBLE = {code: f"\\x{code:02x}" for code in _CONTROLS} | {
    code: f"\\u{code:04x}" for code in (*_MISLEADING, *_SURROGATES)
}
_LABELS = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


class Console:
    """Prints for one command. Nobody has to read: a closed pipe ends the printing, quietly.

    An answer that cannot be written for another reason is an error, a message is not.
    """

    def __init__(self) -> None:
        for number, name in enumerate(_STREAMS):
            if getattr(sys, name) is None:
                setattr(sys, name, _standing_in(number))
            stream = getattr(sys, name)
            if number and isinstance(stream, TextIOWrapper):
                setattr(sys, name, _whole(stream))
        self.json = False
        self.quiet = False
        self.verbose = False
        self._log: TextIO | None = None
        self._write_line: Callable[[str], None] | None = None

    def open_log(self, path: Path) -> None:
        """Append everything that goes to stderr to a file, with the time."""
        self._log = open_log(path)

    def close(self) -> None:
        """Close the log, and hand over what is still buffered."""
        with self._logging() as log:
            if log:
                log.close()
        self._log = None
        for stream in (sys.stdout, sys.stderr):
            with _leading_nowhere_after(OSError, stream):
                stream.flush()

    @contextlib.contextmanager
    def lines_through(self, write_line: Callable[[str], None]) -> Iterator[None]:
        """Let `write_line` print the lines of stderr, around a bar that it keeps in place."""
        self._write_line = write_line
        try:
            yield
        finally:
            self._write_line = None

    def answer(self, text: str, *, style: str | None = None) -> None:
        """A line or more of the answer."""
        with _answering():
            _print(sys.stdout, text, style)

    def answer_spans(self, spans: Sequence[tuple[str, str]]) -> None:
        """A line of the answer in several styles."""
        with _answering():
            if sys.stdout.isatty():
                from rich.text import Text

                line = Text.assemble(*((text.translate(_VISIBLE), style) for text, style in spans))
                _rich(sys.stdout).print(line, soft_wrap=True)
            else:
                _print(sys.stdout, "".join(text for text, _ in spans), None)

    def answer_json(self, value: Any) -> None:
        """The answer of `--json`."""
        self.answer(json.dumps(value))

    def answer_table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        indent: int = 2,
    ) -> None:
        """A table as part of the answer; the columns named in `right` are aligned right."""
        if len(rows) > _MANY:
            lines = _aligned([columns, *rows], [name in right for name in columns])
            self.answer("\n".join(" " * indent + line for line in lines))
            return
        from rich.padding import Padding
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        rich = _rich(sys.stdout)
        with rich.capture() as capture:
            rich.print(Padding(table, (0, 0, 0, indent), expand=False))
        self.answer("\n".join(line.rstrip() for line in capture.get().splitlines()))

    def detail(self, text: str) -> None:
        """What only `-v` shows."""
        if self.verbose:
            self.note(text)
        else:
            self.record(text)

    def note(self, text: str) -> None:
        """What a user may want to know; not shown with `-q`."""
        if self.quiet:
            self.record(text)
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """What a user has asked for just now; shown even with `-q`."""
        self.record(text)
        self._message(text)

    def warn(self, text: str) -> None:
        """What a user should know, even with `-q`."""
        self.record(f"warning: {text}")
        self._message(text, label="warning")

    def hint(self, command: str) -> None:
        """The next command; not shown with `-q`."""
        self.record(f"hint: {command}")
        if not self.quiet:
            self._message(command, label="hint")

    def fail(self, error: Error) -> None:
        """An error and its hint; with `--json` the same as an object on the last line."""
        self.record(f"error {error.exit_code}: {error}")
        for label, text in self._said_of(error):
            self._message(text, label=label)

    def failure(self, error: Error) -> str:
        """The same, for whoever cannot call it at the time."""
        lines = (f"{label}: {text}" if label else text for label, text in self._said_of(error))
        return "".join(f"{line}\n" for line in lines)

    def _said_of(self, error: Error) -> Iterator[tuple[str | None, str]]:
        yield "error", str(error)
        if error.hint:
            yield None, ""
            yield "hint", error.hint
        if self.json:
            yield None, json.dumps({"error": error.as_json()})

    def record(self, text: str) -> None:
        """A line for the log alone."""
        with self._logging() as log:
            if log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
                log.flush()

    @contextlib.contextmanager
    def _logging(self) -> Iterator[TextIO | None]:
        """A log that cannot be written ends, and the command goes on without it."""
        try:
            yield self._log
        except OSError as error:
            log, self._log = self._log, None
            if log:
                with contextlib.suppress(OSError):
                    log.close()
            self.warn(f"the log ends here: {error.strerror}")

    def _message(self, text: str, label: str | None = None) -> None:
        plain = f"{label}: {text}" if label else text
        with _leading_nowhere_after(OSError, sys.stderr):
            if self._write_line:
                self._write_line(plain)
            elif label and sys.stderr.isatty():
                _rich(sys.stderr).print(f"{label}:", style=_LABELS[label], end=" ")
                _print(sys.stderr, text, None)
            else:
                _print(sys.stderr, plain, None)


def _standing_in(number: int) -> TextIO:
    """A stream that leads nowhere for one that was closed.

    Its number is taken, and those below it: else the first files that are opened would become
    stdout and stderr.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) < number:
        pass
    return os.fdopen(nowhere, "w" if number else "r")


def _whole(stream: TextIOWrapper) -> TextIOWrapper:
    """The same stream for any text: a terminal that lacks a sign shows its number.

    With PYTHONUNBUFFERED the interpreter has streams that lose the rest of what was taken in part,
    as it is at a signal or on a disk that has just become full.
    """
    raw, encoding = stream.buffer, stream.encoding
    if isinstance(raw, RawIOBase):
        stream.detach()
        stream = TextIOWrapper(BufferedWriter(raw), encoding, line_buffering=True)
    stream.reconfigure(errors="backslashreplace")
    return stream


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """Lines of a table that is too long to be drawn in seconds."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        yield "   ".join(cells).rstrip()


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    width = None if stream.isatty() else _WIDE
    return RichConsole(file=stream, highlight=False, markup=False, emoji=False, width=width)


def _print(stream: TextIO, text: str, style: str | None) -> None:
    text = text.translate(_VISIBLE)
    if style and stream.isatty():
        _rich(stream).print(text, style=style, soft_wrap=True)
    else:
        stream.write(f"{text}\n")
    stream.flush()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        with _leading_nowhere_after(BrokenPipeError, sys.stdout):
            yield
    except OSError as error:
        message = f"cannot write the answer: {error.strerror}"
        limit = limit_of(error)
        hint = limit.hint if limit else None
        raise Error(message, kind="io", exit_code=ExitCode.IO, path="stdout", hint=hint) from None


@contextlib.contextmanager
def _leading_nowhere_after(failure: type[OSError], stream: TextIO) -> Iterator[None]:
    """Let a stream that fails lead nowhere from then on: the interpreter flushes it once more."""
    try:
        yield
    except failure:
        # Without a descriptor for it the stream fails again, and that is caught here again.
        with contextlib.suppress(OSError), Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
