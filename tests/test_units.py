"""Sizes and durations, settings and their origins."""

from __future__ import annotations

import pytest

from lingconv.config import DEFAULT_MEMORY, resolve
from lingconv.errors import Error, Interrupted, cancelled, unexpected_error
from lingconv.units import count_text, duration_text, parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1G", 1 << 30),
        ("512M", 512 << 20),
        ("1.5g", 3 << 29),
        ("2T", 2 << 40),
        ("5GB", 5_000_000_000),
        ("5 GiB", 5 << 30),
        ("64K", 65536),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "1X", "1GG", "1e9", "0.1"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|byte"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (24_160_000_000, "24.2 GB"),
        (999_999, "1.00 MB"),
        (1_999_410_696_192, "2.00 TB"),
        (10**18, "1000 PB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


def test_other_texts() -> None:
    assert count_text(979_300_000_000) == "979 B"
    assert count_text(12) == "12"
    assert duration_text(4.24) == "4.2 s"
    assert duration_text(462) == "7m 42s"
    assert duration_text(3 * 3600 + 5 * 60) == "3h 05m"


def test_an_option_beats_the_environment_which_beats_the_default() -> None:
    given = {"LINGCONV_JOBS": "3", "LINGCONV_PROGRESS": "none", "LINGCONV_KERNEL": "scalar"}
    settings = resolve(jobs=5, environment=given)
    assert (settings.jobs.value, settings.jobs.origin) == (5, "option --jobs")
    assert settings.progress.value == "none"
    assert settings.progress.origin == "environment LINGCONV_PROGRESS"
    assert (settings.memory.value, settings.memory.origin) == (DEFAULT_MEMORY, "default")
    assert settings.kernel.value == "scalar"
    assert not settings.debug.value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LINGCONV_JOBS", "0"),
        ("LINGCONV_JOBS", "many"),
        ("LINGCONV_MEMORY", "lots"),
        ("LINGCONV_PROGRESS", "loud"),
        ("LINGCONV_KERNEL", "sse9"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str) -> None:
    with pytest.raises(Error, match=variable) as raised:
        resolve(environment={variable: text})
    assert raised.value.exit_code == 2


def test_unexpected_failures_have_exit_codes() -> None:
    assert unexpected_error(MemoryError()).exit_code == 6
    assert unexpected_error(OSError(5, "Input/output error")).exit_code == 8
    assert unexpected_error(KeyError("x")).exit_code == 1
    assert cancelled(15).exit_code == 143
    assert not issubclass(Interrupted, Exception)
