"""Files that the user names for an answer: whole, and never in place of somebody else's."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from injection import watch
from lingconv import api
from lingconv.errors import Error
from requirements import needs
from support import COMMAND, environment, lingconv, published, refuse, succeed

Words = list[str | Path]
LOADS = "[[5, 1, 2, 3, 4, 9, 1, 7]]"


def writers(tiny: Path) -> dict[str, Callable[[Path | str], Words]]:
    """Commands that write a file, by the kind of it."""
    loads = tiny.parent / "loads.json"
    loads.write_text(f'{{"logical_count": {LOADS}}}')
    place: Words = ["experts", "place", loads, "--ep", "2", "--groups", "1", "-o"]
    return {
        "sums": lambda path: ["verify", tiny, "--level", "sizes", "--write-sums", path],
        "plan": lambda path: ["quantize", "fp8", tiny, "--dry-run", "--save", path],
        "report": lambda path: ["report", tiny, "-o", path],
        "map": lambda path: [*place, path],
        "log": lambda path: ["inspect", tiny, "--log", path],
    }


KINDS = ("sums", "plan", "report", "map", "log")


@needs("watched-calls")
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EIO])
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_looked_at_is_not_replaced(tiny: Path, kind: str, number: int) -> None:
    foreign = tiny.parent / "foreign"
    foreign.write_text("somebody's")
    words = writers(tiny)[kind](foreign)
    done = watch(words, {"foreign": foreign}, lambda call: number if call.name == "read" else None)
    assert any(call.name == "read" for call in done.calls)
    assert done.returncode == 8, done.stderr
    assert foreign.read_text() == "somebody's"


@pytest.mark.parametrize("kind", KINDS)
def test_own_files_are_replaced_and_no_others(tiny: Path, kind: str) -> None:
    words = writers(tiny)[kind]
    path = tiny.parent / "written"
    for _ in range(2):
        done = lingconv(*words(path))
        assert done.returncode in (0, 9), done.stderr
        assert path.stat().st_size
    foreign = tiny.parent / "foreign"
    foreign.write_text("somebody's")
    refuse(7, *words(foreign))
    assert foreign.read_text() == "somebody's"
    link = tiny.parent / "link"
    link.symlink_to(path)
    refuse(7, *words(link))
    assert link.is_symlink()
    loop = tiny.parent / "loop"
    loop.symlink_to(loop)
    refuse(2, *words(loop))
    assert loop.is_symlink()
    assert not list(tiny.parent.glob(".*.part"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_name_is_enough(tiny: Path, kind: str) -> None:
    done = subprocess.run(
        [*COMMAND, *map(str, writers(tiny)[kind]("written"))],
        env=environment(),
        cwd=tiny.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 9), done.stderr
    assert (tiny.parent / "written").stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_stays_what_it_is(tiny: Path, kind: str) -> None:
    reading, writing = os.pipe()
    command = [*COMMAND, *map(str, writers(tiny)[kind](f"/dev/fd/{writing}"))]
    done = subprocess.run(
        command, env=environment(), capture_output=True, pass_fds=[writing], check=False
    )
    os.close(writing)
    assert done.returncode in (0, 9), done.stderr
    assert os.read(reading, 10)
    os.close(reading)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a device")
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_stays_a_device(tiny: Path, kind: str) -> None:
    device = tiny.parent / "null"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    done = lingconv(*writers(tiny)[kind](device))
    assert done.returncode in (0, 9), done.stderr
    assert stat.S_ISCHR(device.stat().st_mode)


def test_a_log_that_ends_ends_no_run(tiny: Path) -> None:
    out = tiny.parent / "out"
    done = succeed("quantize", "fp8", tiny, "-o", out, "--log", "/dev/full")
    assert "warning: the log ends here: No space left on device" in done.stderr
    assert published(out)
    reading, writing = os.pipe()
    os.close(reading)
    words = ["quantize", "fp8", str(tiny), "-o", f"{out}2", "--log", f"/dev/fd/{writing}"]
    piped = subprocess.run(
        [*COMMAND, *words], env=environment(), capture_output=True, pass_fds=[writing], check=False
    )
    os.close(writing)
    assert piped.returncode == 0, piped.stderr
    assert published(Path(f"{out}2"))


def test_sums_are_refused_before_anything_is_read(tiny: Path) -> None:
    for path in tiny.glob("*.safetensors"):
        path.write_bytes(b"")
    foreign = tiny.parent / "foreign"
    foreign.write_text("somebody's")
    assert refuse(7, "verify", tiny, "--write-sums", foreign)["path"] == str(foreign)


def test_sums_are_taken_by_sha256sum(tiny: Path) -> None:
    sums = tiny.parent / "sums"
    lingconv("verify", tiny, "--write-sums", sums)
    succeed("verify", tiny, "--against", sums)
    done = subprocess.run(["sha256sum", "-c", "--quiet", sums], cwd=tiny, check=False)
    assert done.returncode == 0


def test_sums_of_the_api_follow_the_same_rules(tiny: Path) -> None:
    foreign, path = tiny.parent / "foreign", tiny.parent / "sums"
    foreign.write_text("somebody's")
    with pytest.raises(Error) as caught:
        api.verify(tiny, write_sums=foreign)
    assert caught.value.exit_code == 7
    assert foreign.read_text() == "somebody's"
    for _ in range(2):
        api.verify(tiny, write_sums=path)
        assert path.read_text().startswith("# ")
    succeed("verify", tiny, "--against", path)
