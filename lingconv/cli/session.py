"""What a command has at hand: console, settings, signals, the words it was called by."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from lingconv.config import Settings, resolve
from lingconv.console import Console
from lingconv.errors import memory_error
from lingconv.signals import Signals

if TYPE_CHECKING:
    from lingconv.progress import Reporter

PROGRAM = "lingconv"


class Session:
    """One command from its first word to its exit code."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.console = Console()
        # Known before the options are parsed, for when they cannot be.
        self.console.json = "--json" in arguments
        self.signals = Signals()
        self.settings: Settings

    def configure(
        self,
        *,
        json: bool,
        quiet: bool,
        verbose: bool,
        log: Path | None,
        progress: str | None,
        jobs: int | None = None,
        memory: int | None = None,
        remember_days: float | None = None,
    ) -> None:
        """Take the options that every command has, and those that settings are made of."""
        self.console.json = json
        self.console.quiet = quiet
        self.console.verbose = verbose
        if log:
            self.console.open_log(log)
        self.console.record(self.command())
        self._prepare_last_words()
        self.settings = resolve(
            jobs=jobs, memory=memory, remember_days=remember_days, progress=progress
        )

    def _prepare_last_words(self) -> None:
        """Where the core has no memory left, nobody comes back to say so."""
        from lingconv import api

        error = memory_error()
        api.last_words(self.console.failure(error), error.exit_code)

    def command(self, *, without: tuple[str, ...] = (), option: str | None = None) -> str:
        """The command as it was typed, without some of its words, and with one more option."""
        words = [word for word in self.arguments if word not in without]
        return command_text(*words[:1], *([option] if option else []), *words[1:])

    def reporting(self) -> AbstractContextManager[Reporter]:
        """Shows progress for the time of a run."""
        from lingconv.progress import reporting

        return reporting(self.console, self.signals, self.settings.progress.value)


def command_text(*words: str | Path) -> str:
    """A command to copy, with the user's own paths."""
    return shlex.join([PROGRAM, *map(str, words)])
