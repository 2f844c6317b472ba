"""`verify` on a node that holds only some ranks of a folder, or only some of its files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from downloads import verify
from ordeal import Words
from support import MANIFEST, succeed

LAYOUTS: dict[str, Words] = {
    "vllm": ("--tp", "2", "--pp", "2"),
    "vllm-0.11": ("--tp", "2", "--pp", "2", "--target", "vllm-0.11"),
    "one-stage": ("--tp", "4", "--ep", "4"),
    # Copies: of files that are linked, the manifest knows no digest.
    "hf": ("--pp", "2", "--target", "hf", "--link", "copy"),
    "sglang": ("--tp", "2", "--pp", "3", "--target", "sglang", "--link", "copy"),
}
# What a node holds, as it is typed, and as a pattern of its files with tensors.
SHARES = [
    ("vllm", "pp1", r"model-pp-1-tp-\d-part-\d+\.safetensors"),
    ("vllm", "tp1,pp0", r"model-pp-0-tp-1-part-\d+\.safetensors"),
    ("vllm-0.11", "pp1", r"pp1/model-rank-\d-part-\d+\.safetensors"),
    ("vllm-0.11", "tp0", r"pp\d/model-rank-0-part-\d+\.safetensors"),
    ("one-stage", "tp3", r"model-rank-3-part-\d+\.safetensors"),
    ("hf", "pp0", r"pp0/.*"),
    ("sglang", "tp1,pp2", r"pp2/.*"),
]


@pytest.fixture(scope="session")
def cut(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each layout."""
    base = tmp_path_factory.mktemp("cut")
    for name, layout in LAYOUTS.items():
        succeed("reshard", shared / "tiny", "-o", base / name, *layout)
    return {name: base / name for name in LAYOUTS}


def share_of(folder: Path, pattern: str, copy: Path) -> Path:
    """What a node gets: its own files with tensors, and the small files."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and (path.suffix != ".safetensors" or re.fullmatch(pattern, name)):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / name)
    return copy


@pytest.mark.parametrize(("layout", "rank", "pattern"), SHARES)
def test_a_node_that_holds_its_share(
    cut: dict[str, Path], shared: Path, tmp_path: Path, layout: str, rank: str, pattern: str
) -> None:
    node = share_of(cut[layout], pattern, tmp_path / "node")
    shards = list(node.rglob("*.safetensors"))
    assert 0 < len(shards) < len(list(cut[layout].rglob("*.safetensors")))
    found = verify(node, "--rank", rank, "--level", "content")
    assert (found.code, found.report["findings"], found.report["uncovered"]) == (0, [], [])
    assert found.report["verified"] >= len(shards)
    against = verify(node, "--rank", rank, "--against", shared / "tiny", "--fresh")
    assert (against.code, against.report["findings"]) == (0, [])
    # Without the rank, what is missing is missed, and nothing else is.
    whole = verify(node)
    assert whole.code == 3
    assert {category for category, _, _ in whole.found()} == {"missing"}

    lost, *rest = sorted(shards)
    lost.unlink()
    name = str(lost.relative_to(node))
    found = verify(node, "--rank", rank)
    assert (found.code, found.found()) == (3, {("missing", name, None)})
    for damaged in rest[:1]:
        data = bytearray(damaged.read_bytes())
        data[-1] ^= 1
        damaged.write_bytes(data)
        wrong = {f for f in verify(node, "--rank", rank).found() if f[0] == "checksum"}
        assert {file for _, file, _ in wrong} == {str(damaged.relative_to(node))}


def test_a_manifest_from_elsewhere(cut: dict[str, Path], tmp_path: Path) -> None:
    """The node holds no manifest; the one that it is given tells how the folder was cut."""
    node = share_of(cut["vllm"], SHARES[0][2], tmp_path / "node")
    manifest = shutil.move(node / MANIFEST, tmp_path / MANIFEST)
    (node / "SHA256SUMS").unlink()
    found = verify(node, "--against", manifest, "--rank", "pp1")
    assert (found.code, found.report["findings"]) == (0, [])
    refused = verify(node, "--rank", "pp1")
    assert refused.code == 2
    assert "--files GLOB" in refused.stderr


def test_a_stage_folder_and_nothing_beside_it(cut: dict[str, Path], tmp_path: Path) -> None:
    for layout in ("hf", "vllm-0.11"):
        node = tmp_path / layout
        shutil.copytree(cut[layout] / "pp1", node / "pp1")
        shutil.copy(cut[layout] / MANIFEST, node / MANIFEST)
        found = verify(node, "--rank", "pp1")
        assert (found.code, found.report["findings"]) == (0, [])
        (node / "pp1" / "config.json").unlink()
        lost = verify(node, "--rank", "pp1")
        assert (lost.code, lost.found()) == (3, {("missing", "pp1/config.json", None)})


def test_an_edited_config_of_a_stage(cut: dict[str, Path], tmp_path: Path) -> None:
    node = Path(shutil.copytree(cut["hf"], tmp_path / "node"))
    config = node / "pp1" / "config.json"
    config.write_text(config.read_text().replace("{", '{"rope_scaling": {"factor": 4},', 1))
    found = verify(node)
    assert (found.code, found.found()) == (3, {("config-edited", "pp1/config.json", None)})
    assert "rope_scaling" in found.report["findings"][0]["message"]
    assert verify(node, "--allow-config-edits").code == 0


def test_ranks_that_there_are_none_of(cut: dict[str, Path], shared: Path) -> None:
    for folder, rank, told in (
        (cut["vllm"], "pp2", "the last is pp1"),
        (cut["one-stage"], "tp4", "the last is tp3"),
        (shared / "tiny", "pp1", "no manifest says how"),
        (cut["vllm"], "rank1", "is no rank"),
    ):
        refused = verify(folder, "--rank", rank)
        assert refused.code == 2
        assert told in refused.stderr


def test_some_files_of_a_folder(cut: dict[str, Path], tmp_path: Path) -> None:
    pattern = SHARES[0][2]
    node = share_of(cut["vllm"], pattern, tmp_path / "node")
    found = verify(node, "--files", "model-pp-1-*.safetensors")
    assert (found.code, found.report["findings"], found.report["uncovered"]) == (0, [], [])
    found = verify(node, "--files", "model-pp-0-*.safetensors")
    assert {category for category, _, _ in found.found()} == {"missing"}
