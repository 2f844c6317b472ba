"""Runs a command line that sends itself a signal when it begins its n-th line of Python.

interrupting.py SIGNAL N WORDS…; with N 0 it says on its last line how many lines there were.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any


class Moment:
    """Counts lines, and sends the signal at one of them."""

    def __init__(self, number: int, line: int) -> None:
        self.number = number
        self.line = line
        self.lines = 0

    def trace(self, _frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.line:
                os.kill(os.getpid(), self.number)
        return self.trace


def main() -> None:
    name, line, *words = sys.argv[1:]
    moment = Moment(signal.Signals[name], int(line))
    sys.argv = ["lingconv", *words]
    leave = os._exit

    def leaving(code: int) -> None:
        sys.settrace(None)
        if not moment.line:
            os.write(2, f"\n{moment.lines}\n".encode())
        leave(code)

    os._exit = leaving  # type: ignore[assignment]
    from lingconv.__main__ import main

    sys.settrace(moment.trace)
    main()


if __name__ == "__main__":
    main()
