"""The only module that draws bars: shows how far a run is, in the way that was asked for.

On a terminal one tqdm bar; without one a plain line every 30 s; or one JSON object a line for log
collectors. Whatever the way, SIGUSR1 prints a line now.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from lingconv.units import duration_text, size_text

if TYPE_CHECKING:
    from tqdm import tqdm

    from lingconv.console import Console
    from lingconv.records import Sample
    from lingconv.signals import Signals

LINES_EVERY = 30.0
JSON_EVERY = 5.0
NAME_BUSY_AFTER = 1.0


class _Pace:
    """Bytes a second and time left, of what this run itself has written."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def rate(self, sample: Sample) -> float:
        elapsed = time.monotonic() - self._start
        return (sample.written - sample.resumed) / elapsed if elapsed > 0 else 0.0

    def left(self, sample: Sample) -> float | None:
        rate = self.rate(sample)
        return (sample.total - sample.written) / rate if rate > 0 and sample.total else None

    def line(self, sample: Sample) -> str:
        """`12.3 GB of 1.00 TB (1.2 %) · 2.13 GB/s · 7m 42s left`."""
        parts = [size_text(sample.written)]
        if sample.total:
            share = 100 * sample.written / sample.total
            parts[0] += f" of {size_text(sample.total)} ({share:.1f} %)"
        parts.append(f"{size_text(self.rate(sample))}/s")
        left = self.left(sample)
        if left is not None:
            parts.append(f"{duration_text(left)} left")
        return " · ".join(parts)

    def record(self, sample: Sample) -> dict[str, Any]:
        """The line for machines."""
        left = self.left(sample)
        return {
            "schema": "lingconv.progress/1",
            "time": round(time.time(), 3),
            "total": sample.total,
            "written": sample.written,
            "resumed": sample.resumed,
            "read": sample.read,
            "bytes_per_second": round(self.rate(sample)),
            "seconds_left": None if left is None else round(left, 1),
            "busy": sample.busy,
        }


class _View(Protocol):
    def show(self, sample: Sample) -> None: ...

    def close(self, sample: Sample | None) -> None: ...


class _Lines:
    """Plain lines for people."""

    def __init__(self, write: Callable[[str], None], pace: _Pace) -> None:
        self._write = write
        self._pace = pace
        self._next = time.monotonic() + LINES_EVERY

    def show(self, sample: Sample) -> None:
        if time.monotonic() >= self._next:
            self._next += LINES_EVERY
            self._write(self._pace.line(sample))

    def close(self, sample: Sample | None) -> None:
        pass


class _Json:
    """JSON lines; the last one is written whatever its time."""

    def __init__(self, write: Callable[[str], None], pace: _Pace) -> None:
        self._write = write
        self._pace = pace
        self._next = time.monotonic()

    def show(self, sample: Sample) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + JSON_EVERY
            self._line(sample)

    def close(self, sample: Sample | None) -> None:
        if sample:
            self._line(sample)

    def _line(self, sample: Sample) -> None:
        self._write(json.dumps(self._pace.record(sample)))


class _Bar:
    """One bar. What an earlier run had written counts as done, but not for the rate."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar = bar

    def show(self, sample: Sample) -> None:
        bar = self._bar
        if sample.total and bar.total != sample.total:
            bar.total = sample.total
        gained = sample.resumed - bar.initial
        bar.initial += gained
        bar.n += gained
        bar.update(sample.written - bar.n)

    def close(self, sample: Sample | None) -> None:
        if sample:
            self.show(sample)
        self._bar.close()


class Reporter:
    """Takes the samples of a run, about every 50 ms, and shows them."""

    def __init__(self, console: Console, signals: Signals, views: list[_View], pace: _Pace) -> None:
        self._console = console
        self._signals = signals
        self._views = views
        self._pace = pace
        self._last: Sample | None = None
        self._stopping_since: float | None = None
        self._busy_named = False
        self._seen: set[str] = set()

    def __call__(self, sample: Sample) -> None:
        """One sample."""
        self._last = sample
        for note in sample.notes:
            self._console.warn(note)
        for name in sample.busy:
            if name not in self._seen:
                self._seen.add(name)
                self._console.detail(f"begins {name}")
        if self._signals.take_line():
            self._console.say(self._pace.line(sample))
        if sample.cancelling:
            self._stopping(sample)
            return
        for view in self._views:
            view.show(sample)

    def _stopping(self, sample: Sample) -> None:
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            self._console.note("stopping; once more stops at once")
        if now - self._stopping_since >= NAME_BUSY_AFTER and not self._busy_named and sample.busy:
            self._busy_named = True
            self._console.note(f"still waiting for {', '.join(sample.busy)}")

    def close(self) -> None:
        """The last word of each view."""
        for view in self._views:
            view.close(self._last)


@contextlib.contextmanager
def reporting(console: Console, signals: Signals, mode: str) -> Iterator[Reporter]:
    """A reporter for the time of a run; `mode` is one of `config.PROGRESS_MODES`."""
    pace = _Pace()
    if mode == "auto":
        mode = "bar" if sys.stderr.isatty() else "lines"
    if mode == "bar" and console.verbose:
        mode = "lines"
    if console.quiet:
        mode = "none"
    views: list[_View] = []
    with contextlib.ExitStack() as stack:
        if mode == "json":
            views.append(_Json(console.note, pace))
        if mode == "bar":
            from tqdm import tqdm

            bar = tqdm(total=None, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True)
            views.append(_Bar(bar))
            stack.enter_context(
                console.lines_through(lambda text: tqdm.write(text, file=sys.stderr))
            )
        views.append(_Lines(console.note if mode == "lines" else console.record, pace))
        reporter = Reporter(console, signals, views, pace)
        stack.callback(reporter.close)
        yield reporter
