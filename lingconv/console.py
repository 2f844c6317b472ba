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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lingconv.errors import Error, file_error

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_WIDE = 1_000_000
# Names of files and tensors may hold escape sequences, which a terminal would obey.
_VISIBLE = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)
}
_LABELS = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


class Console:
    """Prints for one command. Nobody has to read: a closed pipe ends the printing, quietly.

    An answer that cannot be written for another reason is an error, a message is not.
    """

    def __init__(self) -> None:
        # Else the first files that are opened would become stdout and stderr.
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        self.json = False
        self.quiet = False
        self.verbose = False
        self._log: TextIO | None = None
        self._write_line: Callable[[str], None] | None = None

    def open_log(self, path: Path) -> None:
        """Append everything that goes to stderr to a file, with the time."""
        try:
            self._log = path.open("a", encoding="utf-8")
        except OSError as error:
            raise file_error("cannot write the log", str(path), error) from None

    def close(self) -> None:
        """Close the log, and hand over what is still buffered."""
        if self._log:
            self._log.close()
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
        with _leading_nowhere_after(BrokenPipeError, sys.stdout):
            _print(sys.stdout, text, style)

    def answer_spans(self, spans: Sequence[tuple[str, str]]) -> None:
        """A line of the answer in several styles."""
        with _leading_nowhere_after(BrokenPipeError, sys.stdout):
            if sys.stdout.isatty():
                from rich.text import Text

                line = Text.assemble(*((text.translate(_VISIBLE), style) for text, style in spans))
                _rich(sys.stdout).print(line, soft_wrap=True)
            else:
                _print(sys.stdout, "".join(text for text, _ in spans), None)

    def answer_json(self, value: Any) -> None:
        """The answer of `--json`."""
        self.answer(json.dumps(value, ensure_ascii=False))

    def answer_table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        indent: int = 2,
    ) -> None:
        """A table as part of the answer; the columns named in `right` are aligned right."""
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
        self._message(str(error), label="error")
        if error.hint:
            self._message("")
            self._message(error.hint, label="hint")
        if self.json:
            self._message(json.dumps({"error": error.as_json()}, ensure_ascii=False))

    def record(self, text: str) -> None:
        """A line for the log alone."""
        if self._log:
            self._log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
            self._log.flush()

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
def _leading_nowhere_after(failure: type[OSError], stream: TextIO) -> Iterator[None]:
    """Let a stream that fails lead nowhere from then on: the interpreter flushes it once more."""
    try:
        yield
    except failure:
        with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
