"""Power cuts: a disk as it was at a moment of a run, mounted, looked at, and gone on with."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from invariants import JOURNALS, MANIFEST, violations
from loops import command, looped, mounted
from ordeal import FULL, PATIENCE, Case, moments, quantize
from requirements import needs
from support import COMMAND, environment, succeed

pytestmark = needs("loop-devices", "c-compiler")

SIZE = 96 << 20
CUTS = 100 if FULL else 4
# What a commit interval of five seconds would hide is on the disk within one.
OPTIONS = ("-o", "commit=1")
SHIM = Path(__file__).parent / "shims" / "unsynced.c"


def cut(case: Case, folder: Path, moment: float, **variables: str) -> Path:
    """The image of a disk whose power went `moment` seconds after the first trace of a run."""
    image, copy = folder / "disk", folder / "copy"
    with image.open("wb") as file:
        file.truncate(SIZE)
    command("mkfs.ext4", "-q", "-F", image)
    with looped(image) as device, mounted(device, folder / "mounted", *OPTIONS) as place:
        words = case.words(place / "out")
        child = subprocess.Popen(
            [*COMMAND, *map(str, words)],
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + PATIENCE
        while not (place / "out" / JOURNALS).exists() and child.poll() is None:
            assert time.monotonic() < deadline
        time.sleep(moment)
        # Stopped, it issues nothing that depends on what the copy has passed already.
        child.send_signal(signal.SIGSTOP)
        command("cp", "--sparse=always", image, copy)
        child.kill()
        child.wait()
    return copy


@pytest.fixture(scope="module")
def case(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case.of(shared / "tiny", tmp_path_factory.mktemp("cuts") / "calm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_nothing_is_lost(case: Case, folder: Path) -> None:
    for moment in moments(CUTS, 1.2 * case.seconds, seed=14):
        image = cut(case, folder, moment)
        with looped(image) as device, mounted(device, folder / "again") as place:
            assert violations(place / "out", case.expected) == [], moment
            succeed(*quantize(case.source, place / "out"))
            case.check_finished(place / "out")
    case.check_source()


def lost_after(case: Case, folder: Path, moment: float, **variables: str) -> list[str]:
    """What a run that had ended is found to have lost."""
    image = cut(case, folder, moment, **variables)
    with looped(image) as device, mounted(device, folder / "again") as place:
        found = violations(place / "out", case.expected)
        if not (place / "out" / MANIFEST).exists():
            found.append("no manifest")
        return found


def test_without_syncs_it_is_lost(case: Case, folder: Path) -> None:
    """The control: the cuts find what syncs prevent, and find nothing where they are done."""
    shim = folder / "unsynced.so"
    command("cc", "-shared", "-fPIC", "-o", shim, SHIM)
    lost = []
    for wait in (1, 3):
        moment = case.seconds + wait
        lost += lost_after(case, folder, moment, LD_PRELOAD=str(shim))
        assert lost_after(case, folder, moment) == []
    assert lost
