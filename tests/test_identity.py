"""Two sources with the same headers: one output is made of one of them, whoever notices it how."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from invariants import Kept
from lingconv.reference import open_checkpoint
from ordeal import quantize
from support import EXPERT, MANIFEST, answer, contents, overwrite, published, refuse, succeed

Edit = Callable[[Path], None]
NAN = b"\xc0\x7f"
DENSE = "model.layers.1.attention.dense.weight"


def one_value(folder: Path) -> None:
    """A single weight of a single expert."""
    overwrite(folder, EXPERT, b"\x12\x3e")


def quietly(folder: Path) -> None:
    """The same, and the times set back."""
    path = open_checkpoint(folder)[EXPERT].path
    before = path.stat()
    one_value(folder)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def through_a_link(folder: Path) -> None:
    """The same, in a file that has two names."""
    path = open_checkpoint(folder)[EXPERT].path
    folder.with_name("link").hardlink_to(path)
    quietly(folder)


EDITS: dict[str, Edit] = {
    "one value": one_value,
    "times kept": quietly,
    "a hard link": through_a_link,
}


@pytest.fixture
def other(shared: Path, tmp_path: Path) -> Path:
    """A fine-tune of `tiny`: one expert differs, the headers do not."""
    folder = Path(shutil.copytree(shared / "tiny", tmp_path / "other"))
    one_value(folder)
    return folder


@pytest.mark.parametrize("edit", EDITS)
def test_a_complete_output_is_not_that_of_an_edited_source(
    tiny: Path, tmp_path: Path, edit: str
) -> None:
    out = tmp_path / "out"
    succeed(*quantize(tiny, out))
    kept = Kept.of(out)
    assert answer(*quantize(tiny, out))["outcome"] == "already_complete"
    EDITS[edit](tiny)
    error = refuse(7, *quantize(tiny, out))
    assert "another source" in error["message"]
    assert error["details"] == [open_checkpoint(tiny)[EXPERT].path.name]
    assert kept.violations() == []


def test_a_complete_output_is_not_that_of_a_fine_tune(
    tiny: Path, other: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    succeed(*quantize(tiny, out))
    assert "another source" in refuse(7, *quantize(other, out))["message"]
    succeed(*quantize(other, out, "--force"))
    succeed(*quantize(other, again))
    assert contents(out) == contents(again)


def test_a_copy_elsewhere_is_the_same_source(tiny: Path, tmp_path: Path) -> None:
    succeed(*quantize(tiny, tmp_path / "out"))
    copy = Path(shutil.copytree(tiny, tmp_path / "elsewhere" / "copy"))
    found = answer(*quantize(copy, tmp_path / "out"))
    assert found["outcome"] == "already_complete"


@pytest.mark.parametrize("order", [("1/2", "2/2"), ("2/2", "1/2")])
def test_shares_of_two_sources_are_not_put_together(
    tiny: Path, other: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    succeed(*quantize(tiny, out, "--dry-run", "--save", plan))
    run = ("run", plan, "-o", out, "--source")
    # The expert lies in one of the shares: whoever comes second, with the other source, is told.
    for first, second in ((tiny, other), (other, tiny)):
        succeed(*run, first, "--worker", order[0])
        written = {path.name for path in out.glob("*.safetensors")}
        if open_checkpoint(tiny)[EXPERT].path.name in written:
            error = refuse(7, *run, second, "--worker", order[1])
            assert "made of another source" in error["message"]
            assert not published(out)
        else:
            succeed(*run, second, "--worker", order[1])
        shutil.rmtree(out)


@pytest.mark.parametrize("layout", [("--tp", "2", "--pp", "2"), ("--pp", "2", "--target", "hf")])
def test_ranks_of_two_sources_are_not_joined(
    tiny: Path, other: Path, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    succeed("reshard", tiny, "-o", out, *layout, "--rank", "pp0")
    kept = Kept.of(out)
    error = refuse(7, "reshard", other, "-o", out, *layout, "--rank", "pp1")
    assert "another source" in error["message"]
    assert kept.violations() == []
    succeed("reshard", tiny, "-o", out, *layout, "--rank", "pp1")


def test_what_one_source_kept_is_not_kept_of_another(tiny: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(tiny, tmp_path / "damaged"))
    overwrite(damaged, DENSE, NAN)
    plan, out, calm = tmp_path / "plan.json", tmp_path / "out", tmp_path / "calm"
    keep = ("--nonfinite", "keep")
    succeed(*quantize(tiny, calm, *keep))
    succeed(*quantize(tiny, out, *keep, "--dry-run", "--save", plan))
    run = ("run", plan, "-o", out, "--source")
    shares = [(*run, damaged, "--worker", f"{i}/14") for i in range(1, 15)]
    for share in shares:
        succeed(*share)
        journals = (out / ".lingconv").glob("journal.*")
        if any(DENSE in path.read_text() for path in journals):
            break
    assert not published(out)
    shutil.rmtree(out / ".lingconv" / "lock", ignore_errors=True)
    succeed(*run, tiny)
    request = json.loads((out / MANIFEST).read_text())["request"]
    assert request.get("nonfinite", []) == []
    assert contents(out) == contents(calm)
