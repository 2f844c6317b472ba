"""What is shown of samples, with a clock that obeys."""

from __future__ import annotations

import json

import pytest

from lingconv import progress
from lingconv.console import Console
from lingconv.progress import reporting
from lingconv.records import Sample
from lingconv.signals import Signals


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def sample(written: int, **fields) -> Sample:
    return Sample(**{"total": 100_000, "written": written, "resumed": 0, "read": 0} | fields)


def test_a_line_every_thirty_seconds(clock: Clock, capsys) -> None:
    with reporting(Console(), Signals(), "lines") as report:
        for second in range(0, 91, 10):
            clock.now = 100.0 + second
            report(sample(second * 1000))
    assert capsys.readouterr().err.splitlines() == [
        "30.0 kB of 100 kB (30.0 %) · 1.00 kB/s · 1m 10s left",
        "60.0 kB of 100 kB (60.0 %) · 1.00 kB/s · 40.0 s left",
        "90.0 kB of 100 kB (90.0 %) · 1.00 kB/s · 10.0 s left",
    ]


def test_what_an_earlier_run_wrote_does_not_count_for_the_rate(clock: Clock, capsys) -> None:
    with reporting(Console(), Signals(), "json") as report:
        clock.now += 10
        report(sample(60_000, resumed=50_000))
    line = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (line["bytes_per_second"], line["seconds_left"]) == (1000, 40.0)


def test_a_line_when_asked_even_if_quiet(clock: Clock, capsys) -> None:
    console, signals = Console(), Signals()
    console.quiet = True
    with reporting(console, signals, "json") as report:
        clock.now += 1
        report(sample(1000))
        signals.line_wanted = True
        report(sample(1000))
        report(sample(1000))
    assert capsys.readouterr().err == "1.00 kB of 100 kB (1.0 %) · 1.00 kB/s · 1m 39s left\n"


def test_files_that_hold_up_the_end_are_named_after_a_second(clock: Clock, capsys) -> None:
    with reporting(Console(), Signals(), "none") as report:
        report(sample(1000, busy=["a", "b"], cancelling=True))
        assert capsys.readouterr().err == "stopping; once more stops at once\n"
        clock.now += 0.9
        report(sample(1000, busy=["a", "b"], cancelling=True))
        assert capsys.readouterr().err == ""
        for _ in range(2):
            clock.now += 0.2
            report(sample(1000, busy=["b"], cancelling=True))
        assert capsys.readouterr().err == "still waiting for b\n"


def test_notes_are_warnings_and_shown_once(clock: Clock, capsys) -> None:
    with reporting(Console(), Signals(), "none") as report:
        report(sample(0, notes=["a shard changed; written again"]))
        report(sample(0))
    assert capsys.readouterr().err == "warning: a shard changed; written again\n"


def test_without_a_total(clock: Clock, capsys) -> None:
    with reporting(Console(), Signals(), "lines") as report:
        clock.now += 31
        report(sample(31_000, total=0))
    assert capsys.readouterr().err == "31.0 kB · 1.00 kB/s\n"
