"""`--force` and the end of a run touch what lingconv wrote, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from invariants import Kept, violations
from ordeal import digests, quantize
from support import MANIFEST, contents, lingconv, published, refuse, succeed

# Puts something of somebody's into or beside an output; what must stay as it is.
Plant = Callable[[Path], list[Path]]
SHARD = "model-00001-of-00014.safetensors"
TEXT = "three years of work"


def planted(*names: str) -> Plant:
    def plant(out: Path) -> list[Path]:
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(TEXT)
        return [out / name for name in names]

    return plant


def listed(path: str) -> Plant:
    """A manifest that lists a file of somebody's, of just its size."""

    def plant(out: Path) -> list[Path]:
        manifest = json.loads((out / MANIFEST).read_text())
        manifest["files"].append(manifest["files"][0] | {"path": path, "size": len(TEXT)})
        (out / MANIFEST).write_text(json.dumps(manifest))
        return planted(path)(out)

    return plant


def listed_behind_a_link(out: Path) -> list[Path]:
    home = out.with_name("home")
    home.mkdir()
    (out / "sub").symlink_to(home)
    return [path.resolve() for path in listed("sub/thesis")(out)]


def in_place(make: Callable[[Path, Path], None]) -> Plant:
    """Another name of somebody's file in place of one of ours."""

    def plant(out: Path) -> list[Path]:
        thesis = out.with_name("thesis")
        thesis.write_text(TEXT)
        (out / SHARD).unlink()
        make(out / SHARD, thesis)
        return [thesis]

    return plant


STAYS: dict[str, Plant] = {
    "a note": planted("NOTES.txt"),
    "downloads": planted("big.iso.part", "mine/deep/film.part", f"{SHARD}.part.old"),
    "records": planted(".lingconv/mine.txt", ".lingconv/sub/mine.txt"),
    "copies of records": planted(".lingconv/journal.1-of-1.bak", ".lingconv/journal.old"),
    "listed by a manifest": listed("thesis"),
    "listed behind a link": listed_behind_a_link,
    "a link in place": in_place(lambda path, thesis: path.symlink_to(thesis)),
    "a hard link in place": in_place(lambda path, thesis: path.hardlink_to(thesis)),
}
REFUSED: dict[str, tuple[int, Plant]] = {
    "an unfinished file": (7, planted(f"{SHARD}.part")),
    "a small unfinished file": (7, planted("config.json.part")),
    "listed outside": (4, listed("../thesis")),
}


@pytest.fixture
def out(clean: dict[str, Path], tmp_path: Path) -> Path:
    """A complete output of one's own."""
    return Path(shutil.copytree(clean["output"], tmp_path / "out"))


@pytest.fixture
def other(shared: Path, out: Path) -> tuple[str | Path, ...]:
    """Another conversion into it."""
    return (*quantize(shared / "tiny", out), "--dialect", "ling", "--force")


@pytest.mark.parametrize("plant", STAYS)
def test_what_is_not_ours_stays(
    out: Path, other: tuple[str | Path, ...], plant: str, shared: Path, tmp_path: Path
) -> None:
    kept = Kept.of(*STAYS[plant](out))
    succeed(*other)
    assert kept.violations() == []
    calm = tmp_path / "calm"
    succeed(*quantize(shared / "tiny", calm), "--dialect", "ling")
    assert violations(out, digests(calm)) == []
    assert published(out)
    succeed(*other)
    assert kept.violations() == []


@pytest.mark.parametrize("plant", REFUSED)
def test_what_is_in_the_way_is_refused_before_anything_goes(
    out: Path, other: tuple[str | Path, ...], plant: str
) -> None:
    code, make = REFUSED[plant]
    make(out)
    before = contents(out)
    refuse(code, *other)
    assert contents(out) | before == before
    assert {n for n in before if n not in contents(out)} == set()


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(
    out: Path, other: tuple[str | Path, ...], make: Callable[[Path], None]
) -> None:
    (out / SHARD).unlink()
    make(out / SHARD)
    assert refuse(7, *other)["path"] == str(out / SHARD)
    assert (out / SHARD).exists()


def test_a_journal_with_another_name_is_not_written_to(tiny: Path, tmp_path: Path) -> None:
    """Backups of hard links share every file with what they are of."""
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    succeed(*quantize(tiny, out, "--dry-run", "--save", plan))
    run = ("run", plan, "--source", tiny, "-o", out)
    succeed(*run, "--worker", "1/2")
    backup = Path(shutil.copytree(out, tmp_path / "backup", copy_function=os.link))
    diary = tmp_path / "diary"
    diary.write_text("not a line of JSON")
    (out / ".lingconv" / "journal.1-of-1").hardlink_to(diary)
    kept = Kept.of(backup, diary)
    succeed(*run)
    assert published(out)
    assert kept.violations() == []
    done = lingconv("run", plan, "--source", tiny, "-o", backup)
    assert done.returncode == 0, done.stderr
    assert contents(backup) == contents(out)


@pytest.mark.parametrize("link", ["copy", "symlink", "hardlink"])
def test_a_link_in_place_of_an_unfinished_file_is_not_ours(
    tiny: Path, tmp_path: Path, link: str
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    layout = ("--pp", "2", "--target", "hf", "--link", link)
    succeed("reshard", tiny, "-o", out, *layout, "--dry-run", "--save", plan)
    run = ("run", plan, "--source", tiny, "-o", out)
    succeed(*run, "--worker", "1/2")
    file = next(path for path in sorted(out.rglob("*.safetensors")))
    part = file.with_name(f"{file.name}.part")
    file.unlink()
    part.symlink_to(tmp_path / "nowhere")
    assert refuse(7, *run)["path"] == str(part)
    assert part.is_symlink()


def test_an_output_that_is_a_link_to_nowhere(tiny: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "is not a folder" in refuse(7, *quantize(tiny, link))["message"]
    assert link.is_symlink()
    assert not (tmp_path / "nowhere").exists()
