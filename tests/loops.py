"""Disks made of files."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


def command(*words: str | Path) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


@contextlib.contextmanager
def looped(image: Path) -> Iterator[str]:
    """The device of an image."""
    device = command("losetup", "--find", "--show", image)
    try:
        yield device
    finally:
        command("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: str | Path, place: Path, *options: str) -> Iterator[Path]:
    """A disk at `place`."""
    place.mkdir(exist_ok=True)
    command("mount", *options, device, place)
    try:
        yield place
    finally:
        command("umount", place)


@contextlib.contextmanager
def disk(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """An empty disk of that file system, in a folder."""
    image = folder / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    command(f"mkfs.{kind}", "-q", image)
    with looped(image) as device, mounted(device, folder / "mounted") as place:
        yield place
