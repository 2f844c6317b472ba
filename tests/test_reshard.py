"""Checkpoints cut for ranks: the files, the way back, and one read for all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lingconv.reference import Tensor, open_checkpoint
from lingconv.reference.storage import read_headers
from ordeal import Words, check_sums
from support import (
    MANIFEST,
    answer,
    contents,
    damage_copy,
    lingconv,
    made_of_any,
    rebuilt,
    refuse,
    succeed,
)

QKV = "model.layers.1.attention.query_key_value.weight"
W13 = "model.layers.1.mlp.experts.routed_experts.w13_weight"
OWN = (MANIFEST, "SHA256SUMS", "LINGCONV.md")
LAYOUTS: list[Words] = [
    ("--tp", "2"),
    ("--tp", "2", "--pp", "2"),
    ("--tp", "4", "--ep", "4"),
    ("--tp", "2", "--ep", "2", "--pp", "3", "--shard-size", "200K"),
    ("--tp", "2", "--pp", "2", "--pp-layers", "1,2"),
    ("--tp", "2", "--pp", "2", "--target", "vllm-0.11"),
    ("--pp", "2", "--target", "hf"),
    ("--pp", "3", "--target", "sglang"),
]


def reshard(source: Path, output: Path, *options: str | Path) -> Path:
    succeed("reshard", source, "-o", output, *options)
    check_sums(output)
    return output


def data_of(folder: Path) -> dict[str, bytes]:
    """Files but for what lingconv adds to every output."""
    return {name: data for name, data in contents(folder).items() if name not in OWN}


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_the_original_comes_back_byte_for_byte(tiny: Path, tmp_path: Path, layout: Words) -> None:
    cut = reshard(tiny, tmp_path / "cut", *layout)
    back = reshard(cut, tmp_path / "back", "--target", "hf")
    assert data_of(back) == contents(tiny)


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_cut_again_is_cut_from_the_original(tiny: Path, tmp_path: Path, layout: Words) -> None:
    cut = reshard(tiny, tmp_path / "cut", *layout)
    again = reshard(cut, tmp_path / "again", "--tp", "2", "--ep", "2")
    direct = reshard(tiny, tmp_path / "direct", "--tp", "2", "--ep", "2")
    assert made_of_any(again) == made_of_any(direct)


@pytest.mark.parametrize("options", [("--tp", "2"), ("--tp", "2", "--ep", "2", "--pp", "2")])
@pytest.mark.parametrize("dialect", ["deepseek", "ling"])
@pytest.mark.parametrize("size", ["5GB", "100K"])
def test_encoding_in_the_same_pass_is_encoding_first(
    tiny: Path, tmp_path: Path, options: Words, dialect: str, size: str
) -> None:
    encoded, options = tmp_path / "encoded", (*options, "--shard-size", size)
    succeed("quantize", "fp8", tiny, "-o", encoded, "--dialect", dialect)
    first = reshard(encoded, tmp_path / "first", *options)
    both = reshard(tiny, tmp_path / "both", *options, "--format", "fp8", "--dialect", dialect)
    assert data_of(first) == data_of(both)
    back = reshard(both, tmp_path / "back", "--target", "hf", "--partial")
    assert open_checkpoint(back).keys() == open_checkpoint(encoded).keys()
    shards = {n: d for n, d in contents(back).items() if n.endswith(".safetensors")}
    assert shards.items() <= contents(encoded).items()


def test_fp8_is_cut_with_its_scales(coded: Path, tmp_path: Path) -> None:
    cut = reshard(coded, tmp_path / "cut", "--tp", "2")
    held = tensors_of(cut, "model-rank-1-part-*.safetensors")
    whole = open_checkpoint(coded)

    def second_half(expert: int, name: str, suffix: str) -> bytes:
        path = f"model.layers.1.mlp.experts.{expert}.{name}_proj.weight{suffix}"
        data = whole[path].read().tobytes()
        return data[len(data) // 2 :]

    for suffix in ("", "_scale_inv"):
        stacked = (second_half(e, name, suffix) for e in range(8) for name in ("gate", "up"))
        assert held[W13 + suffix] == b"".join(stacked)


def tensors_of(folder: Path, files: str) -> dict[str, bytes]:
    """Bytes of all tensors of the files that match."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob(files)):
        found |= {name: entry.read().tobytes() for name, entry in read_headers(path).items()}
    return found


def test_every_source_byte_is_read_once_for_all_ranks(tiny: Path, tmp_path: Path) -> None:
    bytes_ = answer("inspect", tiny)["bytes"]
    for options in (("--tp", "2"), ("--tp", "4", "--ep", "4"), ("--tp", "1", "--pp", "3")):
        found = answer("reshard", tiny, "-o", tmp_path / "-".join(options), *options)
        assert found["read"] == bytes_


def test_the_plan_says_what_each_rank_reads(tiny: Path, tmp_path: Path) -> None:
    options = ("--tp", "2", "--pp", "2", "-o", tmp_path / "cut")
    plan = answer("reshard", tiny, *options, "--dry-run")
    succeed("reshard", tiny, *options)
    for rank in plan["ranks"]:
        pattern = f"model-pp-{rank['pp']}-tp-{rank['tp']}-part-*.safetensors"
        sizes = [path.stat().st_size for path in (tmp_path / "cut").glob(pattern)]
        assert (rank["files"], rank["bytes"]) == (len(sizes), sum(sizes))
    assert len(plan["ranks"]) == 4


def test_expert_parallel_ranks_are_told_where_experts_lie(tiny: Path, tmp_path: Path) -> None:
    layout = ("--tp", "2", "--ep", "2", "--target", "vllm-0.11")
    cut = reshard(tiny, tmp_path / "cut", *layout)
    for rank, positions in enumerate(([0, 1, 2, 3] + [-1] * 4, [-1] * 4 + [0, 1, 2, 3])):
        held = tensors_of(cut, f"model-rank-{rank}-part-*.safetensors")
        found = held["model.layers.2.mlp.experts.expert_map"]
        assert found == np.array(positions, "<i4").tobytes()
        assert "model.layers.0.mlp.experts.expert_map" not in held
    back = reshard(cut, tmp_path / "back", "--target", "hf")
    assert data_of(back) == contents(tiny)


@pytest.mark.parametrize("preset", ["tiny-qwen3-moe", "tiny-deepseek-v3"])
def test_other_families_come_back_too(tmp_path: Path, preset: str) -> None:
    source, encoded = tmp_path / "source", tmp_path / "encoded"
    succeed("synth", preset, "-o", source)
    succeed("quantize", "fp8", source, "-o", encoded)
    layouts: list[tuple[Path, Words]] = [
        (source, ("--tp", "4", "--ep", "4")),
        (encoded, ("--tp", "2", "--pp", "3")),
        (source, ("--pp", "2", "--target", "hf")),
    ]
    for number, (original, layout) in enumerate(layouts):
        cut = reshard(original, tmp_path / f"cut-{number}", *layout)
        back = tmp_path / f"back-{number}"
        if preset == "tiny-deepseek-v3" and "hf" not in layout:
            # Its MTP layer is in no rank's files.
            reshard(cut, back, "--target", "hf", "--partial")
            wanted = tensors_of(original, "*.safetensors")
            wanted = {name: data for name, data in wanted.items() if ".layers.3." not in name}
            assert tensors_of(back, "*.safetensors") == wanted
        else:
            assert data_of(reshard(cut, back, "--target", "hf")) == data_of(original)


def test_what_the_engine_computes_is_left_out(tmp_path: Path) -> None:
    succeed("synth", "tiny-deepseek-v3", "-o", tmp_path / "without")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"

    def add(tensors: dict[str, Tensor]) -> None:
        tensors[name] = Tensor(name, "F32", (32,), np.zeros(128, np.uint8))

    source = rebuilt(tmp_path / "without", tmp_path / "source", add)
    cut = tmp_path / "cut"
    done = succeed("reshard", source, "-o", cut, "--tp", "2")
    assert f"1 tensors are left out, from {name} on: vllm computes them" in done.stderr
    manifest = json.loads((cut / MANIFEST).read_text())
    reasons = {entry["tensor"]: entry["reason"] for entry in manifest["dropped"]}
    assert reasons[name] == "the engine computes it"
    assert tensors_of(cut, "*.safetensors").keys().isdisjoint({name})
    error = refuse(5, "reshard", cut, "-o", tmp_path / "back", "--target", "hf")
    assert error["message"].startswith("45 tensors of the original")  # 44 of its MTP layer


def test_whole_heads_and_blocks_of_latent_attention(tmp_path: Path) -> None:
    source = tmp_path / "source"
    succeed("synth", "tiny-deepseek-v3", "-o", source)
    error = refuse(5, "reshard", source, "--tp", "16")
    assert any("q_b_proj" in line and "8 query heads / 16" in line for line in error["details"])
    # Half a block at the end of kv_a_proj_with_mqa is the engine's own layout, so it is no reason.
    error = refuse(5, "reshard", source, "--tp", "8", "--format", "fp8")
    assert [line for line in error["details"] if "kv_a_proj" in line] == []
    assert any("q_b_proj" in line and "FP8 blocks" in line for line in error["details"])


@pytest.mark.parametrize("target", ["vllm", "vllm-0.11", "hf"])
def test_the_files_of_one_rank_are_those_of_all(tiny: Path, tmp_path: Path, target: str) -> None:
    layout = ("--tp", "2", "--pp", "2", "--target", target)
    whole = contents(reshard(tiny, tmp_path / "whole", *layout))
    found: dict[str, bytes] = {}
    for rank in ("pp0", "pp1"):
        found |= contents(reshard(tiny, tmp_path / rank, *layout, "--rank", rank))
    assert data_names(found) == data_names(whole)
    assert all(found[name] == whole[name] for name in data_names(whole))
    if target == "vllm":
        one = answer("reshard", tiny, "-o", tmp_path / "one", *layout, "--rank", "tp1,pp0")
        held = data_names(contents(tmp_path / "one"))
        assert held == {name for name in data_names(whole) if "pp-0-tp-1" in name}
        plan = answer("reshard", tiny, *layout, "--rank", "tp1,pp0", "--dry-run")
        assert one["read"] == plan["read_bytes"] < answer("inspect", tiny)["bytes"]


def data_names(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if name.endswith(".safetensors")}


def test_launch_lines_and_notes(tiny: Path, tmp_path: Path) -> None:
    done = succeed("reshard", tiny, "-o", tmp_path / "cut", "--tp", "4", "--ep", "4")
    line = "--load-format sharded_state --tensor-parallel-size 4 --pipeline-parallel-size 1"
    assert f"vllm serve {tmp_path / 'cut'} {line} --enable-expert-parallel" in done.stderr
    assert line in (tmp_path / "cut" / "LINGCONV.md").read_text()
    plan = answer("reshard", tiny, "--pp", "2", "--pp-layers", "1,2", "--dry-run")
    assert plan["launch"][0].startswith("VLLM_PP_LAYER_PARTITION=1,2 vllm serve {out} ")


def test_the_default_output_is_named_after_the_layout(tiny: Path) -> None:
    names = {
        ("--tp", "2", "--pp", "2"): "tiny-vllm0.32-tp2-pp2",
        ("--tp", "2", "--ep", "2", "--format", "fp8"): "tiny-vllm0.32-tp2-pp1-ep2-fp8",
        ("--pp", "2", "--target", "hf"): "tiny-hf-pp2",
    }
    for options, name in names.items():
        plan = answer("reshard", tiny, *options, "--dry-run")
        assert Path(plan["output"]).name == name


def test_stage_folders_stand_alone(tiny: Path, tmp_path: Path) -> None:
    cut = reshard(tiny, tmp_path / "cut", "--pp", "2", "--target", "sglang")
    whole, found = open_checkpoint(tiny), set()
    for stage in ("pp0", "pp1"):
        index = json.loads((cut / stage / "model.safetensors.index.json").read_text())
        held = open_checkpoint(cut / stage)
        assert held.keys() == index["weight_map"].keys()
        assert all(held[name].read().tobytes() == whole[name].read().tobytes() for name in held)
        assert (cut / stage / "config.json").read_bytes() == (tiny / "config.json").read_bytes()
        assert "lm_head.weight" in held
        found |= held.keys()
    assert found == whole.keys()


def test_inspect_shows_what_was_cut(tiny: Path, tmp_path: Path) -> None:
    cut = reshard(tiny, tmp_path / "cut", "--tp", "4", "--ep", "4")
    before, after = answer("inspect", tiny), answer("inspect", cut)
    assert after["layout"]["words"] == "vllm-0.32, TP 4 × PP 1 × EP 4"
    for key in ("tensors", "parameters", "bytes", "groups", "shards"):
        assert after[key] == before[key]


def test_replicated_heads_are_compared_on_the_way_back(tiny: Path, tmp_path: Path) -> None:
    """Ranks 0 and 1 of 4 share a KV head; a changed copy must not be lost in silence."""
    cut = reshard(tiny, tmp_path / "cut", "--tp", "4", "--ep", "4")
    damage_copy(cut, "model-rank-1-part-*.safetensors", QKV)
    error = refuse(4, "reshard", cut, "-o", tmp_path / "back", "--target", "hf")
    assert error["tensor"] == QKV
    assert "model-rank-1" in error["path"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_a_cut_folder_verifies(tiny: Path, tmp_path: Path, layout: Words) -> None:
    linkable = "hf" in layout or "sglang" in layout
    cut = reshard(tiny, tmp_path / "cut", *layout, *(("--link", "copy") if linkable else ()))
    found = answer("verify", cut, "--level", "content")
    assert (found["verdict"], found["findings"], found["uncovered"]) == ("ok", [], [])
    path = sorted(cut.rglob("*.safetensors"))[-1]
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    done = lingconv("verify", cut, "--json", "--fresh")
    failures = [f for f in json.loads(done.stdout)["findings"] if f["failure"]]
    assert done.returncode == 3
    assert {f["file"] for f in failures} == {str(path.relative_to(cut))}
    path.unlink()
    assert lingconv("verify", cut).returncode == 3
