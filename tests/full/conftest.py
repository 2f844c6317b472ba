"""Tests of full size: gigabytes and minutes, only with LINGCONV_FULL=1. They print figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ordeal import FULL

collect_ignore_glob = [] if FULL else ["test_*.py"]
_LINES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Takes a line for the end of the report."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the figures."""
    if lines := config.stash.get(_LINES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
