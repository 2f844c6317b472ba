"""What `verify` believes of an earlier run, what it says of that, and how it goes on without."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from downloads import bf16, hub_local, small_checkpoint, sums, verify
from requirements import needs
from support import COMMAND, environment, lingconv, refuse, succeed
from test_full_disk import Disk, small_disk

DAY = 86_400
# Larger than both ends that identify a file.
ELEMENTS = 1 << 18
SHARD = "model.safetensors"
FILES = 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with sums, verified once."""
    made = small_checkpoint(tmp_path / "model", [bf16("weight", ELEMENTS)])
    sums(made)
    assert verify(made).report["memory"] == {
        "files": 0,
        "of": FILES,
        "oldest_seconds": None,
        "problem": None,
    }
    return made


def state_of(folder: Path) -> Path:
    """The one state file."""
    (found,) = (folder.parent / "state" / "lingconv").glob("verify-*")
    return found


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every entry of the state file."""
    path = state_of(folder)
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        change(entry)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def age(folder: Path, seconds: float) -> None:
    """Let what is remembered be so much older."""
    edit(folder, lambda entry: entry.update(at=entry["at"] - int(seconds)))


def rot(folder: Path) -> None:
    """Change a byte that no time tells of: the entry is taken along to the new times."""
    path = folder / SHARD
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\x01")
    times = {"mtime_ns": path.stat().st_mtime_ns, "ctime_ns": path.stat().st_ctime_ns}

    def follow(entry: dict[str, Any]) -> None:
        if entry["key"]["name"] == SHARD:
            entry["key"]["stamp"].update(times)

    edit(folder, follow)


def state_home(folder: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(folder.parent / "state")}


def first_line(folder: Path, *options: str) -> str:
    return succeed("verify", folder, *options, **state_home(folder)).stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (90, "1 minute"),
        (7_300, "2 hours"),
        (DAY + 10, "1 day"),
        (3 * DAY + 10, "3 days"),
    ],
)
def test_the_first_line_says_what_was_not_read(folder: Path, seconds: int, words: str) -> None:
    age(folder, seconds)
    assert first_line(folder).startswith(f"{FILES} of {FILES} files by memory, oldest {words}")
    memory = verify(folder).report["memory"]
    assert (memory["files"], memory["of"]) == (FILES, FILES)
    assert seconds <= memory["oldest_seconds"] < seconds + 60


def test_some_files_by_memory(folder: Path) -> None:
    os.utime(folder / SHARD)
    assert first_line(folder).startswith(f"1 of {FILES} files by memory, oldest ")
    assert first_line(folder, "--fresh").startswith("truth ")


def test_the_hint_reads_what_rotted(folder: Path) -> None:
    rot(folder)
    done = succeed("verify", folder, "--progress", "none", **state_home(folder))
    assert done.stdout.startswith(f"{FILES} of {FILES} files by memory")
    hint = done.stderr.rsplit("`", 2)[1]
    assert hint == f"lingconv verify --fresh {folder} --progress none"
    again = lingconv(*shlex.split(hint)[1:], **state_home(folder))
    assert again.returncode == 3
    assert f"FAIL  checksum        {SHARD}" in again.stdout


def test_a_conversion_never_rests_on_memory(tiny: Path) -> None:
    hub_local(tiny)
    shard = tiny / "model-00006-of-00014.safetensors"
    assert verify(tiny).code == 0
    state = tiny.parent / "state" / "lingconv"
    before = {path: path.read_bytes() for path in state.glob("verify-*")}
    assert before
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size - 1)
        file.write(b"\x01")
    home = {"XDG_STATE_HOME": str(tiny.parent / "state")}
    error = refuse(3, "quantize", "fp8", tiny, "--verify-source", **home)
    assert shard.name in str(error)
    assert before == {path: path.read_bytes() for path in state.glob("verify-*")}


@pytest.mark.parametrize(
    ("days_ago", "options", "variables", "believed"),
    [
        (6.9, (), {}, True),
        (7.1, (), {}, False),
        (7.1, ("--remember-days", "8"), {}, True),
        (7.1, (), {"LINGCONV_REMEMBER_DAYS": "8"}, True),
        (0.6, ("--remember-days", "0.5"), {}, False),
        (1, ("--remember-days", "0.5"), {"LINGCONV_REMEMBER_DAYS": "8"}, False),
        (0, ("--remember-days", "0"), {}, False),
        (0, (), {"LINGCONV_REMEMBER_DAYS": "0"}, False),
        (-1, (), {}, False),
        (-1000, (), {}, False),
    ],
)
def test_memory_ends(
    folder: Path,
    days_ago: float,
    options: tuple[str, ...],
    variables: dict[str, str],
    believed: bool,
) -> None:
    age(folder, days_ago * DAY)
    rot(folder)
    done = lingconv("verify", folder, *options, **state_home(folder), **variables)
    assert done.returncode == (0 if believed else 3)
    assert ("by memory" in done.stdout) == believed


def test_no_memory_is_kept_where_it_lasts_no_time(tmp_path: Path) -> None:
    made = small_checkpoint(tmp_path / "model", [bf16("weight", 16)])
    sums(made)
    for _ in range(2):
        assert verify(made, "--remember-days", "0").report["memory"]["files"] == 0
    assert not (tmp_path / "state").exists()


def test_entries_without_a_time_are_forgotten(folder: Path) -> None:
    edit(folder, lambda entry: entry.pop("at"))
    report = verify(folder).report
    assert (report["memory"]["files"], report["memory"]["problem"]) == (0, None)
    assert verify(folder).report["memory"]["files"] == FILES


def test_the_state_file_does_not_grow(folder: Path) -> None:
    sizes = set()
    for _ in range(4):
        os.utime(folder / SHARD)
        verify(folder)
        verify(folder)
        sizes.add(len(state_of(folder).read_text().splitlines()))
    assert sizes == {FILES}


@pytest.mark.parametrize("text", ["-1", "x", "", " 1", "nan", "inf", "1e3", "4000", "٣"])
def test_what_is_no_number_of_days(folder: Path, text: str) -> None:
    refuse(2, "verify", folder, "--remember-days", text)
    if text:
        error = refuse(2, "verify", folder, LINGCONV_REMEMBER_DAYS=text)
        assert error["message"].startswith("LINGCONV_REMEMBER_DAYS: ")


def test_env_shows_the_setting() -> None:
    shown = succeed("env", LINGCONV_REMEMBER_DAYS="2").stdout
    assert "environment LINGCONV_REMEMBER_DAYS" in shown


# What may lie where the state file should.


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(4096))


def one_bad_line(path: Path) -> None:
    path.write_text(path.read_text() + '{"key": 1}\n')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "\n")


def huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "make", [garbage, zeros, one_bad_line, deep, huge, pipe, link, loop, device, a_folder]
)
def test_a_state_file_that_is_none(folder: Path, make: Callable[[Path], None]) -> None:
    """Everything is read, with one note; what is no file of ours is left as it is."""
    path = state_of(folder)
    make(path)
    kind = path.lstat().st_mode
    outcome = verify(folder)
    memory = outcome.report["memory"]
    assert (outcome.code, memory["files"]) == (0, 0)
    assert memory["problem"]
    assert outcome.stderr.count("memory of what was verified: ") == 1
    assert path.lstat().st_mode == kind
    again = verify(folder).report["memory"]
    begun_anew = make in (garbage, zeros, one_bad_line, deep, huge)
    assert (again["files"], again["problem"] is None) == (FILES * begun_anew, begun_anew)


def test_another_name_of_a_state_file_is_not_written_to(folder: Path) -> None:
    thesis = folder.parent / "thesis"
    thesis.write_text("three years of work")
    state = state_of(folder)
    state.unlink()
    state.hardlink_to(thesis)
    assert verify(folder).code == 0
    assert thesis.read_text() == "three years of work"
    assert "by memory" in first_line(folder)


def test_a_line_that_a_crash_cut(folder: Path) -> None:
    path = state_of(folder)
    path.write_bytes(path.read_bytes()[:-10])
    memory = verify(folder).report["memory"]
    assert (memory["files"], memory["problem"]) == (FILES - 1, None)
    assert verify(folder).report["memory"]["files"] == FILES


def test_two_at_a_time(folder: Path) -> None:
    import fcntl

    with state_of(folder).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        outcome = verify(folder)
    assert (outcome.code, outcome.report["memory"]["files"]) == (0, 0)
    assert "another process holds it" in outcome.report["memory"]["problem"]


# Where there is no home to remember anything in.


def verified_at(folder: Path, **home: str) -> tuple[dict[str, Any], str]:
    """The answer and stderr of a verification with these variables; it ends with 0."""
    done = lingconv("verify", folder, "--json", **home)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["memory"]["files"] == 0
    assert done.stderr.count("memory of what was verified: ") == 1, done.stderr
    return report, done.stderr


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    made = small_checkpoint(tmp_path / "model", [bf16("weight", 16)])
    sums(made)
    return made


@pytest.mark.parametrize("home", ["", ".", "relative", "/dev/null", "/proc/none", "FILE", "MODEL"])
def test_a_home_that_is_none(sound: Path, tmp_path: Path, home: str) -> None:
    (tmp_path / "file").write_text("")
    places = {"FILE": str(tmp_path / "file"), "MODEL": str(sound)}
    before = sorted(sound.iterdir())
    verified_at(sound, HOME=places.get(home, home), XDG_STATE_HOME="")
    assert sorted(sound.iterdir()) == before


def test_no_state_is_kept_in_the_source_or_the_output(tiny: Path, tmp_path: Path) -> None:
    link, out = tmp_path / "link", tmp_path / "out"
    link.symlink_to(tiny)
    before = sorted(tiny.rglob("*"))
    for home in (tiny, link):
        lingconv("verify", tiny, XDG_STATE_HOME=str(home))
        succeed("quantize", "fp8", tiny, "-o", out, XDG_STATE_HOME=str(home))
        assert sorted(tiny.rglob("*")) == before
        shutil.rmtree(out)
    succeed("quantize", "fp8", tiny, "-o", out, XDG_STATE_HOME=str(out))
    assert not (out / "lingconv").exists()


def verified_as_nobody(folder: Path, variables: dict[str, str]) -> str:
    """Stderr of a verification by a user whom no file names; it ends with 0."""
    words = ("setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")
    done = subprocess.run(
        [*words, *COMMAND, "verify", folder],
        env=variables,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@needs("other-user")
def test_a_user_without_a_home(sound: Path, tmp_path: Path) -> None:
    for path in (tmp_path, *list(tmp_path.parents)[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    variables = environment(XDG_STATE_HOME="")
    variables.pop("HOME", None)
    text = verified_as_nobody(sound, variables)
    assert "memory of what was verified: none, there is no home folder" in text
    (tmp_path / "locked").mkdir(mode=0o555)
    text = verified_as_nobody(sound, variables | {"HOME": str(tmp_path / "locked")})
    assert "memory of what was verified: none of this run: cannot create folder" in text


def on_disk(disk: Disk, folder: Path) -> str:
    code, text = disk.run(["verify", folder])
    assert code == 0, text
    return text


@needs("mount")
def test_a_full_disk(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(place))
    with small_disk(place, 1 << 20) as disk:
        balloon = disk.fill()
        text = on_disk(disk, sound)
        assert text.count("memory of what was verified: none of this run: ") == 1
        balloon.unlink()
        assert "memory of what was verified" not in on_disk(disk, sound)
