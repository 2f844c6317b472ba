"""`python -m lingconv` and `lingconv`: signals are handled before anything else is loaded."""

from __future__ import annotations

import os
import signal
import sys

# `typing` is not worth the milliseconds for which a signal would still kill.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

_STOPS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_SPACE = 6
_LAST_RESORT = b"""error: too little memory or too few open files, even to say which

hint: raise the limit of memory (`ulimit -v`) and that of open files (`ulimit -n`)
"""


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def main() -> NoReturn:
    """Run the command line, and leave without a moment in which a signal kills.

    The interpreter gives signals back to the system while it ends, so it is not left to end.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for number in _STOPS:
        signal.signal(number, _stop)
    sys.unraisablehook = _unraisable
    try:
        from lingconv import cli

        code = cli.main()
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    except BaseException as raised:
        # The one signal that is raised, or a limit of the system that left too little to go on.
        code = _code_of(raised)
    os._exit(code)


def _code_of(raised: BaseException) -> int:
    """Say on stderr what nobody has handled, with as little as there may be left."""
    code, text = _SPACE, _LAST_RESORT
    try:
        from lingconv import errors

        error = errors.of(raised)
        hint = f"\n\nhint: {error.hint}" if error.hint else ""
        code, text = error.exit_code, f"error: {error}{hint}\n".encode(errors="backslashreplace")
    except Exception:
        pass
    try:  # noqa: SIM105 - no room for another module
        os.write(_STDERR, text)
    except OSError:
        pass
    return code


def _unraisable(what: sys.UnraisableHookArgs) -> None:
    """A signal that came while an object was being thrown away ends everything here and now."""
    number = getattr(what.exc_value, "number", None)
    if isinstance(number, int):
        os._exit(128 + number)
    sys.__unraisablehook__(what)


if __name__ == "__main__":
    main()
