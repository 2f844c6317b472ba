"""What some tests need of a machine beyond Python and a Rust toolchain, asked in this one place."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from injection import is_possible
from journals import LIBRARY

# Needs that must be met, by name: where one of these is missing, the run fails rather than skips.
PROMISED = os.environ.get("LINGCONV_TESTS_MUST_HAVE", "").split()
MEMORY = Path("/dev/shm")


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _browser() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


def _mount() -> bool:
    tmpfs = "mount -t tmpfs tmpfs /mnt && nsenter --help"
    return _works("unshare", "--mount", "sh", "-c", tmpfs)


def _loop_devices() -> bool:
    """Whether a disk can be made of a file and mounted."""
    tools = ("losetup", "mkfs.ext4", "mount", "umount")
    if os.geteuid() != 0 or not all(map(shutil.which, tools)):
        return False
    return _works("losetup", "--find")


def _second_file_system() -> bool:
    return MEMORY.is_dir() and MEMORY.stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev


# For each need: whether it is met, and what is said if it is not.
_NEEDS: dict[str, tuple[Callable[[], bool], str]] = {
    "browser": (_browser, "needs chromium and chromedriver on the PATH"),
    "c-compiler": (lambda: _works("cc", "--version"), "needs cc"),
    "loop-devices": (
        _loop_devices,
        "needs root and loop devices (losetup, mkfs.ext4, mount)",
    ),
    "mount": (_mount, "needs root, who may mount a file system (unshare, mount, nsenter)"),
    "no-network": (
        lambda: _works("unshare", "-rn", "true"),
        "needs unshare and the right to make a network namespace",
    ),
    "other-user": (
        lambda: _works("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "true"),
        "needs root, who may become another user (setpriv)",
    ),
    "reflinks": (
        lambda: _loop_devices() and bool(shutil.which("mkfs.btrfs")),
        "needs root, loop devices and mkfs.btrfs",
    ),
    "prlimit": (lambda: _works("prlimit", "--nproc=99", "true"), "needs prlimit"),
    "second-file-system": (_second_file_system, f"needs {MEMORY} on a file system of its own"),
    "strace": (
        lambda: _works("strace", "-f", "-o", os.devnull, "true"),
        "needs strace and the right to trace",
    ),
    "watched-calls": (
        is_possible,
        "needs x86-64 Linux that lets a process watch the system calls of another (seccomp)",
    ),
    "xxhash": (lambda: LIBRARY is not None, "needs the shared library of xxHash"),
}


@cache
def lacking(need: str) -> str | None:
    """Why a need is not met; None if it is."""
    met, reason = _NEEDS[need]
    return None if met() else reason


def needs(*names: str) -> pytest.MarkDecorator:
    """Marks tests that are skipped by name where the machine lacks something."""
    assert set(names) <= set(_NEEDS)
    return pytest.mark.needs(*names)


def skip_what_is_lacking(items: list[pytest.Item]) -> None:
    """Skip tests whose needs are not met; an error if one of these needs was promised."""
    for item in items:
        for mark in item.iter_markers("needs"):
            for need in mark.args:
                if reason := lacking(need):
                    if need in PROMISED:
                        raise pytest.UsageError(f"{need} was promised: {item.nodeid} {reason}")
                    item.add_marker(pytest.mark.skip(reason=reason))
