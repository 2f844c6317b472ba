"""Nodes that prepare their own ranks: one folder, one rank after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lingconv.reference.storage import INDEX
from ordeal import Words, check_sums, killed
from support import MANIFEST, answer, contents, lingconv, refuse, succeed

OWN = (MANIFEST, "SHA256SUMS", "LINGCONV.md")
LAYOUTS: list[tuple[Words, list[str]]] = [
    (("--tp", "2", "--pp", "2"), ["pp1", "pp0"]),
    (("--tp", "2", "--pp", "2"), ["tp1", "pp0", "tp0,pp1"]),
    (("--tp", "2", "--pp", "2", "--target", "vllm-0.11"), ["pp0", "pp1"]),
    (("--tp", "2", "--ep", "2", "--format", "fp8"), ["tp0", "tp1"]),
    (("--pp", "2", "--target", "hf"), ["pp1", "pp0"]),
    (("--pp", "3", "--target", "sglang", "--link", "copy"), ["pp2", "pp0", "pp1"]),
]


def data_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name not in OWN}


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text())


@pytest.mark.parametrize(("layout", "ranks"), LAYOUTS, ids=lambda v: " ".join(v))
def test_rank_after_rank_makes_the_whole(
    tiny: Path, tmp_path: Path, layout: Words, ranks: list[str]
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    succeed("reshard", tiny, "-o", whole, *layout)
    sizes = {p: len(d) for p, d in contents(whole).items() if p.endswith(".safetensors")}
    written = 0
    for rank in ranks:
        done = answer("reshard", tiny, "-o", out, *layout, "--rank", rank)
        written += done["written"] - done["resumed"]
        manifest = manifest_of(out)
        expected = {file["path"]: file["size"] for file in manifest.get("expected", [])}
        held = {file["path"]: file["size"] for file in manifest["files"]}
        assert held | expected == sizes
        assert not held.keys() & expected.keys()
        assert done["expected"] == len(expected)
        check_sums(out)
        again = answer("reshard", tiny, "-o", out, *layout, "--rank", rank)
        assert (again["outcome"], again["read"]) == ("already_complete", 0)
        if rank != ranks[-1]:
            error = refuse(4, "inspect", out)
            assert f"{len(expected)} files are still expected" in error["message"]
    assert data_of(out) == data_of(whole)
    assert written == sum(f["size"] for f in manifest_of(out)["files"] if "linked" not in f)
    assert not (out / ".lingconv").exists()
    assert lingconv("verify", out).returncode == 0
    if "--format" not in layout:
        succeed("reshard", out, "-o", tmp_path / "back", "--target", "hf")
        back, original = contents(tmp_path / "back"), contents(tiny)
        assert {name: back[name] for name in original} == original


def test_a_run_that_adds_goes_on_after_a_kill(tiny: Path, tmp_path: Path) -> None:
    layout = ("reshard", tiny, "--tp", "2", "--pp", "2", "--rank")
    succeed(*layout, "pp0", "-o", tmp_path / "whole")
    succeed(*layout, "pp1", "-o", tmp_path / "whole")
    for attempt in range(4):
        out = tmp_path / f"out{attempt}"
        succeed(*layout, "pp0", "-o", out)
        killed((*layout, "pp1", "-o", out), out, 0.15 + 0.05 * attempt)
        succeed(*layout, "pp1", "-o", out)
        assert contents(out) == contents(tmp_path / "whole")


def test_other_layouts_and_sources_are_no_part_of_it(
    tiny: Path, coded: Path, tmp_path: Path
) -> None:
    out, layout = tmp_path / "out", ("--tp", "2", "--pp", "2")
    succeed("reshard", tiny, "-o", out, *layout, "--rank", "pp0")
    for source, options in (
        (tiny, ("--tp", "1", "--pp", "2", "--rank", "pp1")),
        (tiny, ("--tp", "2", "--pp", "2", "--shard-size", "1M", "--rank", "pp1")),
        (tiny, ("--tp", "2", "--pp", "2", "--format", "fp8", "--rank", "pp1")),
        (coded, ("--tp", "2", "--pp", "2", "--rank", "pp1")),
    ):
        before = contents(out)
        assert "another plan" in refuse(7, "reshard", source, "-o", out, *options)["message"]
        assert contents(out) == before


def test_files_that_went_missing_are_written_again(tiny: Path, tmp_path: Path) -> None:
    out, layout = tmp_path / "out", ("--tp", "2", "--pp", "2", "--rank")
    succeed("reshard", tiny, "-o", out, *layout, "pp0")
    before = data_of(out)
    next(out.glob("model-pp-0-tp-1-*.safetensors")).unlink()
    succeed("reshard", tiny, "-o", out, *layout, "pp1")
    assert before.items() <= data_of(out).items()
    check_sums(out)


def test_stage_folders_have_their_own_index(tiny: Path, tmp_path: Path) -> None:
    out, layout = tmp_path / "out", ("--target", "hf", "--pp", "2", "--rank")
    succeed("reshard", tiny, "-o", out, *layout, "pp1")
    assert not (out / "pp0").exists()
    succeed("reshard", tiny, "-o", out, *layout, "pp0")
    assert all((out / stage / INDEX).is_file() for stage in ("pp0", "pp1"))
