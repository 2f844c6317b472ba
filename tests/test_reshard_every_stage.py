"""What an engine builds on every pipeline stage: read once, written to the files of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingconv.reference.storage import Entry, read_headers
from ordeal import Words
from support import answer, contents, damage_copy, refuse, succeed

# vLLM's class for Qwen3-MoE has all three on each of its stages.
EVERYWHERE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
LAYOUT: Words = ("--tp", "2", "--pp", "2", "--target", "vllm-0.32")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "qwen"
    succeed("synth", "tiny-qwen3-moe", "-o", folder)
    return folder


@pytest.fixture(scope="module")
def cut(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut") / "cut"
    found = answer("reshard", source, "-o", folder, *LAYOUT)
    assert found["read"] == answer("inspect", source)["bytes"]
    return folder


def held(cut: Path, stage: int, rank: int) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for path in sorted(cut.glob(f"model-pp-{stage}-tp-{rank}-part-*.safetensors")):
        entries |= read_headers(path)
    return entries


def data_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def test_every_stage_has_them_and_no_other_tensor_twice(cut: Path) -> None:
    for rank in range(2):
        first, second = (held(cut, stage, rank) for stage in range(2))
        assert first.keys() & second.keys() == EVERYWHERE
        for name in EVERYWHERE:
            assert first[name].read().tobytes() == second[name].read().tobytes()


def test_the_ranks_one_after_another_make_the_whole(
    source: Path, cut: Path, tmp_path: Path
) -> None:
    for rank in ("tp1,pp1", "pp0", "tp0"):
        plan = answer("reshard", source, *LAYOUT, "--rank", rank, "--dry-run")
        done = answer("reshard", source, "-o", tmp_path / "out", *LAYOUT, "--rank", rank)
        assert plan["read_bytes"] >= done["read"] > 0
    assert data_files(tmp_path / "out") == data_files(cut)
    back = tmp_path / "back"
    succeed("reshard", tmp_path / "out", "-o", back, "--target", "hf")
    assert data_files(back) == data_files(source)


def test_workers_share_the_tasks(source: Path, cut: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    succeed("reshard", source, "-o", out, *LAYOUT, "--save", plan)
    for worker in range(1, 4):
        succeed("run", plan, "--source", source, "-o", out, "--worker", f"{worker}/3")
    assert data_files(out) == data_files(cut)


@pytest.mark.parametrize("target", ["vllm-0.32", "hf", "sglang"])
def test_fit_counts_them_on_every_stage(source: Path, target: str) -> None:
    for row in answer("fit", source, "--gpus", "2", "--target", target)["rows"]:
        if target != "vllm-0.32" and row["tp"] > 1:
            continue  # files of whole tensors, which the engine cuts
        layout = (word for key in ("tp", "pp", "ep") for word in (f"--{key}", str(row[key])))
        ranks = answer("reshard", source, "--target", target, *layout, "--dry-run")["ranks"]
        assert row["weights"] == max(rank["tensor_bytes"] for rank in ranks)


def test_copies_of_other_stages_are_compared_on_the_way_back(
    source: Path, cut: Path, tmp_path: Path
) -> None:
    name, damaged = "lm_head.weight", tmp_path / "damaged"
    succeed("reshard", source, "-o", damaged, *LAYOUT)
    assert answer("verify", damaged, "--level", "content")["verdict"] == "ok"
    damage_copy(damaged, "model-pp-1-tp-0-part-*.safetensors", name)
    error = refuse(4, "reshard", damaged, "-o", tmp_path / "back", "--target", "hf")
    assert error["tensor"] == name
    assert "model-pp-1-tp-0" in error["path"]
