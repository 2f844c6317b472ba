"""Stage folders made of the source's own files: links, expert files, what a node needs."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from downloads import hub_cache, sums, verify
from lingconv.reference import open_checkpoint
from lingconv.reference.storage import INDEX
from ordeal import check_sums, digests, killed, stamps
from requirements import MEMORY, needs
from support import MANIFEST, answer, contents, overwrite, refuse, succeed

STAGES = ("--target", "hf", "--pp", "2")


def linked(folder: Path) -> dict[str, Any]:
    """What the manifest says of the files that were linked."""
    manifest = json.loads((folder / MANIFEST).read_text())
    return {file["path"]: file for file in manifest["files"] if "linked" in file}


def data_of(folder: Path) -> dict[str, bytes]:
    return {n: data for n, data in contents(folder).items() if n.endswith((".safetensors", INDEX))}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the checkpoints."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


@pytest.mark.parametrize("target", ["hf", "sglang"])
def test_whole_shards_are_linked_and_mixed_ones_rewritten(tmp_path: Path, target: str) -> None:
    tiny = tmp_path / "tiny"
    succeed("synth", "tiny", "-o", tiny, "--shard-size", "1500K")
    before, layout = stamps(tiny), ("--target", target, "--pp", "2")
    plan = answer("reshard", tiny, *layout, "--dry-run")
    done = answer("reshard", tiny, "-o", tmp_path / "out", *layout, "--link", "hardlink")
    succeed("reshard", tiny, "-o", tmp_path / "copy", *layout, "--link", "copy")
    assert data_of(tmp_path / "out") == data_of(tmp_path / "copy")
    links = linked(tmp_path / "out")
    assert done["linked"] == {"files": {"hardlink": len(links)}, "undigested": len(links)}
    assert plan["link_files"] == len(links) > 0 < plan["write_files"]
    assert plan["link_bytes"] == sum(file["size"] for file in links.values())
    assert plan["space"]["needed"] == plan["write_bytes"]
    assert done["read"] == plan["read_bytes"] < answer("inspect", tiny)["bytes"]
    for name in links:
        assert (tmp_path / "out" / name).samefile(tiny / Path(name).name)
    # A link changes the change time of the file that it is made of, and nothing else.
    assert {n: s[:2] for n, s in stamps(tiny).items()} == {n: s[:2] for n, s in before.items()}


def test_what_nobody_read_has_no_digest(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = succeed("reshard", tiny, "-o", out, *STAGES, "--link", "hardlink")
    links = linked(out)
    assert f"{len(links)} files were linked unread" in done.stderr
    assert not any("sha256" in file for file in links.values())
    assert not any(name in (out / "SHA256SUMS").read_text() for name in links)
    check_sums(out)
    found = verify(out)
    assert found.code == 0
    assert set(found.report["uncovered"]) == links.keys()
    # Measured once, the digests hold.
    assert verify(out, "--write-sums", tmp_path / "sums").code == 0
    assert verify(out, "--against", tmp_path / "sums").report["uncovered"] == []


def test_digests_known_of_the_source_are_told(tiny: Path, tmp_path: Path) -> None:
    sums(tiny)
    out = tmp_path / "out"
    succeed("reshard", tiny, "-o", out, *STAGES, "--link", "hardlink")
    assert all("sha256_by" in file for file in linked(out).values())
    check_sums(out)
    assert verify(out).report["uncovered"] == []
    assert digests(out) | {name: f["sha256"] for name, f in linked(out).items()} == digests(out)
    name = sorted(linked(out))[0]
    with (out / name).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert verify(out, "--fresh").code == 3


def test_linked_sources_are_verified_on_request(tiny: Path, tmp_path: Path) -> None:
    sums(tiny)
    layout = (*STAGES, "--link", "hardlink", "--verify-source")
    done = answer("reshard", tiny, "-o", tmp_path / "out", *layout)
    assert done["linked"]["undigested"] == 0
    overwrite(tiny, "model.layers.0.mlp.up_proj.weight", b"\x7b")
    error = refuse(3, "reshard", tiny, "-o", tmp_path / "bad", *layout)
    assert "SHA-256" in error["message"]
    assert not (tmp_path / "bad" / MANIFEST).exists()


def test_the_way_back_from_links(tiny: Path, tmp_path: Path) -> None:
    original = contents(tiny)
    succeed("reshard", tiny, "-o", tmp_path / "out", *STAGES)
    succeed("reshard", tmp_path / "out", "-o", tmp_path / "back", "--target", "hf")
    back = contents(tmp_path / "back")
    assert {name: back[name] for name in original} == original


def test_replacing_links_leaves_the_source_alone(tiny: Path, tmp_path: Path) -> None:
    before, out = contents(tiny), tmp_path / "out"
    for options in (("--link", "hardlink"), ("--link", "copy", "--force"), ("--force",)):
        succeed("reshard", tiny, "-o", out, *STAGES, *options)
    refuse(7, "reshard", tiny, "-o", out, *STAGES, "--link", "copy")
    assert "complete already" in succeed("reshard", tiny, "-o", out, *STAGES).stdout
    assert contents(tiny) == before


def test_killed_runs_go_on(tiny: Path, tmp_path: Path) -> None:
    words = ("reshard", tiny, *STAGES, "--link", "hardlink", "-o")
    succeed(*words, tmp_path / "whole")
    for attempt in range(4):
        out = tmp_path / f"out{attempt}"
        killed((*words, out), out, 0.01 * attempt)
        succeed(*words, out)
        assert contents(out) == contents(tmp_path / "whole")
        assert not list(out.rglob("*.part"))


def test_links_out_of_a_hub_cache(tiny: Path, tmp_path: Path) -> None:
    """The blobs are linked, not the links to them; their names are their digests."""
    snapshot = hub_cache(tiny, tmp_path / "cache")
    out = tmp_path / "out"
    succeed("reshard", snapshot, "-o", out, *STAGES, "--link", "hardlink")
    assert linked(out)
    for name in linked(out):
        assert not (out / name).is_symlink()
        assert (out / name).samefile(snapshot / Path(name).name)
    assert verify(out).report["uncovered"] == []


@needs("second-file-system")
def test_another_file_system(tiny: Path, elsewhere: Path) -> None:
    plan = answer("reshard", tiny, "-o", elsewhere / "auto", *STAGES, "--dry-run")
    assert plan["space"]["needed"] > plan["link_bytes"]
    done = answer("reshard", tiny, "-o", elsewhere / "auto", *STAGES)
    assert done["linked"]["files"] == {}
    assert linked(elsewhere / "auto") == {}
    assert verify(elsewhere / "auto").report["uncovered"] == []
    for kind in ("hardlink", "reflink"):
        error = refuse(5, "reshard", tiny, "-o", elsewhere / kind, *STAGES, "--link", kind)
        assert kind in error["message"]
        assert not (elsewhere / kind).exists()
        assert "--link" in error["hint"]
    done = answer("reshard", tiny, "-o", elsewhere / "names", *STAGES, "--link", "symlink")
    assert list(done["linked"]["files"]) == ["symlink"]


def test_symbolic_links_are_for_engines(tiny: Path, tmp_path: Path) -> None:
    """lingconv itself follows no link out of a folder."""
    out = tmp_path / "out"
    done = succeed("reshard", tiny, "-o", out, *STAGES, "--link", "symlink")
    assert "lead out of the folder" in done.stderr
    name = sorted(linked(out))[0]
    assert (out / name).readlink() == (tiny / Path(name).name).resolve()
    assert open_checkpoint(out / "pp0").keys() | open_checkpoint(out / "pp1").keys()
    for folder in (out, out / "pp0"):
        assert "leads outside" in refuse(4, "inspect", folder)["message"]


def test_links_are_for_targets_that_keep_files(tiny: Path, tmp_path: Path) -> None:
    assert "--link" in refuse(2, "reshard", tiny, "--tp", "2", "--link", "symlink")["message"]
    cut = tmp_path / "cut"
    succeed("reshard", tiny, "-o", cut, "--tp", "2")
    plan = answer("reshard", cut, "-o", tmp_path / "out", *STAGES, "--dry-run")
    assert plan["link_files"] == 0


@pytest.mark.parametrize("pp", ["1", "2"])
def test_expert_files_end_where_ranks_do(tiny: Path, tmp_path: Path, pp: str) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    succeed("reshard", tiny, "-o", out, "--target", "hf", "--pp", pp, "--ep", "4")
    held: dict[str, set[int]] = {}
    for folder in (out,) if pp == "1" else (out / "pp0", out / "pp1"):
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        assert open_checkpoint(folder).keys() == index.keys()
        for tensor, file in index.items():
            if ".experts." in tensor:
                held.setdefault(Path(file).name, set()).add(int(tensor.split(".")[5]) // 2)
            else:
                assert not file.startswith("ep")
    assert held
    assert all(name.startswith(f"ep{min(ranks)}-") for name, ranks in held.items())
    assert all(len(ranks) == 1 for ranks in held.values())
    launch = answer("reshard", tiny, "--target", "hf", "--ep", "4", "--dry-run")["launch"]
    assert "--enable-expert-parallel --enable-ep-weight-filter" in launch[-1]
    shutil.copytree(tiny, tmp_path / "original")
    succeed("reshard", out, "-o", back, "--target", "hf")
    original, found = contents(tiny), contents(back)
    assert {name: found[name] for name in original} == original


@pytest.mark.parametrize("target", ["hf", "sglang", "vllm-0.11", "vllm-0.32"])
def test_the_files_that_a_node_needs(tiny: Path, tmp_path: Path, target: str) -> None:
    layout = ("--tp", "2", "--pp", "2", "--target", target)
    succeed("reshard", tiny, "-o", tmp_path / "out", *layout)
    all_of_them: set[str] = set()
    for stage in ("pp0", "pp1"):
        listed = succeed("reshard", tiny, *layout, "--list-files", stage).stdout.split()
        assert all((tmp_path / "out" / name).is_file() for name in listed)
        assert f"{stage}/config.json" in listed or "config.json" in listed
        all_of_them |= set(listed)
    data = {n for n in contents(tmp_path / "out") if n.endswith(".safetensors")}
    assert {name for name in all_of_them if name.endswith(".safetensors")} == data
    assert not (tmp_path / "tiny-out").exists()
    one = succeed("reshard", tiny, *layout, "--list-files", "tp1,pp0", "--json").stdout
    assert json.loads(one)["schema"] == "lingconv.files/1"


def test_launch_lines_of_stage_folders(tiny: Path, tmp_path: Path) -> None:
    for target, lines in (("vllm-0.11", 3), ("hf", 3), ("sglang", 2), ("vllm-0.32", 1)):
        layout = ("--tp", "2", "--pp", "2", "--pp-layers", "1,2", "--target", target)
        done = succeed("reshard", tiny, "-o", tmp_path / target, *layout)
        plan = answer("reshard", tiny, *layout, "--dry-run")
        assert len(plan["launch"]) == lines
        assert "PP_LAYER_PARTITION=1,2" in plan["launch"][-1]
        notes = (tmp_path / target / "LINGCONV.md").read_text()
        for line in plan["launch"]:
            assert line.replace("{out}", str(tmp_path / target)) in done.stderr
            assert line.replace("{out}", ".") in notes
        one = answer("reshard", tiny, *layout, "--rank", "pp1", "--dry-run")["launch"]
        assert not any("pp0" in line for line in one)


def test_a_trillion_parameters_in_four_stages(tmp_path: Path) -> None:
    source = tmp_path / "ling-1t"
    succeed("synth", "ling-1t", "--sparse", "-o", source)
    plan = answer("reshard", source, "--target", "hf", "--pp", "4", "--dry-run")
    assert plan["link_files"] >= 150
    assert plan["write_bytes"] < 60e9
    assert plan["link_bytes"] + plan["write_bytes"] > 1.999e12
