"""Settings, and where each comes from: an option, the environment, or the default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lingconv.errors import usage_error
from lingconv.units import parse_size

T = TypeVar("T")

PROGRESS_MODES = ("auto", "bar", "lines", "json", "none")
KERNELS = ("scalar", "baseline", "avx2", "avx512")
DEFAULT_MEMORY = 1 << 30
DEFAULT_REMEMBER_DAYS = 7.0
MAX_REMEMBER_DAYS = 3650.0
MAX_JOBS = 1024


@dataclass(frozen=True)
class Setting(Generic[T]):
    """A value and its origin in words."""

    value: T
    origin: str


@dataclass(frozen=True)
class Settings:
    """The settings of a command; 0 jobs are one a core, no kernel is the best of this CPU."""

    jobs: Setting[int]
    memory: Setting[int]
    remember_days: Setting[float]
    progress: Setting[str]
    kernel: Setting[str | None]
    debug: Setting[bool]


def parse_jobs(text: str) -> int:
    """A number of tasks at a time."""
    if text.isdecimal() and 1 <= int(text) <= MAX_JOBS:
        return int(text)
    raise ValueError(f"{text!r} is no number of jobs from 1 to {MAX_JOBS}")


def parse_days(text: str) -> float:
    """For how many days `verify` believes what it has read; 0 is not at all."""
    if re.fullmatch(r"\d{1,4}(\.\d{1,9})?", text, re.ASCII):
        days = float(text)
        if days <= MAX_REMEMBER_DAYS:
            return days
    raise ValueError(f"{text!r} is no number of days from 0 to {MAX_REMEMBER_DAYS:g}")


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in names:
            return text
        raise ValueError(f"{text!r} is none of {', '.join(names)}")

    return parse


def _setting(
    option: T | None,
    name: str,
    default: T,
    parse: Callable[[str], T],
    environment: Mapping[str, str],
) -> Setting[T]:
    if option is not None:
        return Setting(option, f"option --{name.replace('_', '-')}")
    variable = f"LINGCONV_{name.upper()}"
    text = environment.get(variable)
    if not text:
        return Setting(default, "default")
    try:
        return Setting(parse(text), f"environment {variable}")
    except ValueError as error:
        raise usage_error(f"{variable}: {error}") from None


def resolve(
    *,
    jobs: int | None = None,
    memory: int | None = None,
    remember_days: float | None = None,
    progress: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings that the given options and the environment lead to."""
    parse_kernel = _one_of(KERNELS)
    return Settings(
        jobs=_setting(jobs, "jobs", 0, parse_jobs, environment),
        memory=_setting(memory, "memory", DEFAULT_MEMORY, parse_size, environment),
        remember_days=_setting(
            remember_days, "remember_days", DEFAULT_REMEMBER_DAYS, parse_days, environment
        ),
        progress=_setting(progress, "progress", "auto", _one_of(PROGRESS_MODES), environment),
        kernel=_setting(None, "kernel", None, parse_kernel, environment),
        debug=debug(environment),
    )


def debug(environment: Mapping[str, str] = os.environ) -> Setting[bool]:
    """Whether failures show a traceback."""
    return _setting(None, "debug", False, lambda text: text != "0", environment)


def state_folder() -> Path | None:
    """Where digests and speeds are remembered between runs: the XDG state folder of the user.

    There is none where nobody has a home folder, as in some containers: then nothing is remembered.
    """
    base = os.environ.get("XDG_STATE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "lingconv"
    try:
        # An empty HOME would lead to the root folder.
        home = Path.home() if os.environ.get("HOME") != "" else Path()
    except RuntimeError:
        return None
    return home / ".local" / "state" / "lingconv" if home.is_absolute() else None
