"""Sizes, counts and durations as people write and read them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(I?B)?|B)?", re.IGNORECASE)
_PREFIXES = "KMGTP"
_COUNTS = ("", "K", "M", "B", "T")
_DIGITS = 3


def parse_size(text: str) -> int:
    """Bytes of `512M`, `1.5G` or `1GiB` (powers of 1024), `5GB` (powers of 1000) or `4096`."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is no size; write for example 512M, 1.5G or 5GB")
    number, prefix, ending = match.groups()
    base = 1000 if (ending or "").upper() == "B" else 1024
    power = _PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    size = int(float(number) * base**power)
    if size < 1:
        raise ValueError(f"{text!r} is less than a byte")
    return size


def _short(value: float, units: tuple[str, ...], separator: str) -> str:
    """Three significant digits with the unit that leaves 1 to 999 before it."""
    power = 0
    while round(value, 0) >= 1000 and power < len(units) - 1:
        value /= 1000
        power += 1
    if power == 0:
        return f"{value:.0f}{separator}{units[0]}".rstrip()
    decimals = max(0, _DIGITS - len(str(int(value))))
    return f"{value:.{decimals}f}{separator}{units[power]}"


def size_text(size: float) -> str:
    """`1.96 TB`."""
    return _short(size, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def count_text(count: float) -> str:
    """`979 B`, of parameters."""
    return _short(count, _COUNTS, " ")


def duration_text(seconds: float) -> str:
    """`4.2 s`, `7m 42s`, `3h 05m`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def age_text(seconds: int) -> str:
    """`3 days`, in whole units of the largest kind that is reached."""
    for name, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= length:
            count = seconds // length
            return f"{count} {name}" if count == 1 else f"{count} {name}s"
    return "less than a minute"
