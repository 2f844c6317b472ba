"""SIGINT and SIGTERM stop gracefully once, then at once; SIGUSR1 asks for a line of progress."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from types import FrameType

from lingconv.errors import Interrupted


@dataclass
class Signals:
    """What the user has asked for by signals so far."""

    stopping: bool = False
    line_wanted: bool = False

    def install(self) -> None:
        """Handle signals from now on; only the main thread may."""
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGUSR1, self._want_line)

    def take_line(self) -> bool:
        """Whether a line was asked for since the last call."""
        wanted, self.line_wanted = self.line_wanted, False
        return wanted

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stopping:
            os._exit(128 + number)
        self.stopping = True
        raise Interrupted(number)

    def _want_line(self, _number: int, _frame: FrameType | None) -> None:
        self.line_wanted = True
