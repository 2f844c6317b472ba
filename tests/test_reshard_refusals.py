"""Layouts and checkpoints that `reshard` refuses before it writes anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ordeal import Words
from support import EXPERT, answer, rebuilt, refuse, succeed


def refused(code: int, source: Path, *options: str | Path) -> dict[str, Any]:
    out = source.parent / "out"
    error = refuse(code, "reshard", source, "-o", out, *options)
    assert not out.exists()
    return error


def configure(source: Path, **changes: object) -> None:
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


IMPOSSIBLE: list[tuple[Words, str]] = [
    (("--target", "vllm@0.12.0"), "vllm 0.12.0"),
    (("--target", "vllm@99.0"), "vllm 99.0"),
    (("--tp", "2", "--ep", "4"), "--ep 4 with --tp 2"),
    (("--tp", "3"), "roles cannot be cut for TP 3"),
    (("--pp", "4"), "4 pipeline stages for 3 layers"),
    (("--pp", "2", "--pp-layers", "1,1"), "stages of 2 layers"),
    (("--pp", "2", "--pp-layers", "3"), "1 stages"),
    (("--pp", "2", "--pp-layers", "3,0"), "stage 1 has no layer"),
    (("--keep-mtp",), "--keep-mtp"),
    (("--format", "fp8", "--dialect", "compressed-tensors"), "compressed-tensors"),
]
MEANINGLESS: list[tuple[Words, str]] = [
    (("--target", "trt"), "trt"),
    (("--target", "vllm@newest"), "newest"),
    (("--tp", "0"), "--tp"),
    (("--tp", "5000"), "4096"),
    (("--pp-layers", "a,b"), "a,b"),
    (("--dialect", "ling"), "--format fp8"),
    (("--only", "*"), "--format fp8"),
    (("--keep-mtp", "--drop-mtp"), "contradict"),
    (("--format", "fp8", "--only", "nothing.*"), "select nothing"),
]


@pytest.mark.parametrize(("options", "named"), IMPOSSIBLE, ids=lambda v: " ".join(v)[:40])
def test_impossible_layouts(tiny: Path, options: Words, named: str) -> None:
    assert named in refused(5, tiny, *options)["message"]


@pytest.mark.parametrize(("options", "named"), MEANINGLESS, ids=lambda v: " ".join(v)[:40])
def test_requests_that_make_no_sense(tiny: Path, options: Words, named: str) -> None:
    error = refused(2, tiny, *options)
    assert named in error["message"] + str(error["hint"])


def test_what_only_an_older_engine_cannot_do(tiny: Path) -> None:
    """vLLM 0.11 asserts that its Bailing class has a KV head for each rank."""
    error = refused(5, tiny, "--tp", "4", "--ep", "4", "--target", "vllm-0.11")
    assert any("the engine does not replicate" in reason for reason in error["details"])
    assert "--tp 2" in error["hint"]


def test_every_reason_and_a_layout_that_works(tiny: Path) -> None:
    error = refused(5, tiny, "--tp", "4", "--format", "fp8")
    reasons = "\n".join(error["details"])
    assert "mlp.experts.*.gate_proj.weight  256 rows / 4 = 64" in reasons
    assert "mlp.shared_experts.down_proj.weight  256 columns / 4 = 64" in reasons
    words = error["hint"].split("`")[1].split()[3:]
    assert answer("reshard", tiny, *words, "--dry-run")["write_files"] > 0


def test_a_trillion_parameters_for_32_ranks(tmp_path: Path) -> None:
    source = tmp_path / "ling-1t"
    succeed("synth", "ling-1t", "--sparse", "-o", source)
    encoded = refused(5, source, "--tp", "32", "--format", "fp8")
    for size in ("18432 rows / 32 = 576", "2048 rows / 32 = 64", "2048 columns / 32 = 64"):
        assert any(size in reason for reason in encoded["details"])
    plain = refused(5, source, "--tp", "32")
    assert len(plain["details"]) == 3
    assert "--ep 32" in plain["hint"]
    plan = answer("reshard", source, "--tp", "8", "--pp", "4", "--dry-run")
    small = plan["write_bytes"] - sum(rank["bytes"] for rank in plan["ranks"])
    assert 0 < small < 1_000_000
    assert plan["read_bytes"] == 1_999_410_696_192
    assert len(plan["ranks"]) == 32


def _drop(name: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        del tensors[name]

    return change


@pytest.mark.parametrize("name", [EXPERT, "lm_head.weight", "model.layers.2.mlp.gate.expert_bias"])
def test_missing_tensors(tiny: Path, tmp_path: Path, name: str) -> None:
    source = rebuilt(tiny, tmp_path / "without", _drop(name))
    assert any(name in line for line in refused(4, source, "--tp", "2")["details"])


def test_a_tensor_that_the_architecture_does_not_know(tiny: Path, tmp_path: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.surprise"] = tensors["model.norm.weight"]._replace(name="model.surprise")

    source = rebuilt(tiny, tmp_path / "with", add)
    assert refused(5, source, "--tp", "2")["tensor"] == "model.surprise"


def test_tied_embeddings(tiny: Path) -> None:
    configure(tiny, tie_word_embeddings=True)
    assert "tie_word_embeddings" in refused(5, tiny, "--tp", "2")["message"]


def test_a_normalised_head(tiny: Path) -> None:
    configure(tiny, norm_head=True)
    assert "norm_head" in refused(5, tiny, "--tp", "2")["message"]


def test_prediction_layers_that_are_to_be_kept(tiny_mtp: Path) -> None:
    error = refused(5, tiny_mtp, "--tp", "2", "--keep-mtp")
    assert "--keep-mtp" in error["message"]
    assert "--target hf" in error["hint"]


@pytest.mark.parametrize("options", [("--tp", "8"), ("--tp", "4", "--pp", "2"), ("--tp", "6")])
@pytest.mark.parametrize("encoded", [(), ("--format", "fp8")])
def test_what_is_suggested_works(tiny: Path, options: Words, encoded: Words) -> None:
    hint = refused(5, tiny, *options, *encoded)["hint"]
    if "`" in str(hint):
        words = hint.split("`")[1].split()[3:]
        assert answer("reshard", tiny, *words, "--dry-run")["write_files"] > 0


def test_an_unknown_architecture(tiny: Path) -> None:
    configure(tiny, architectures=["MambaForCausalLM"])
    assert "--arch" in refused(5, tiny, "--tp", "2")["hint"]


def test_fp8_of_compressed_tensors(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "encoded"
    succeed("quantize", "fp8", tiny, "-o", source, "--dialect", "compressed-tensors")
    assert "dequantize" in refused(5, source, "--tp", "2")["hint"]


def test_fp8_twice(coded: Path) -> None:
    assert "already FP8" in refused(5, coded, "--tp", "2", "--format", "fp8")["message"]


def test_a_folder_that_is_cut_already(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    succeed("reshard", tiny, "-o", cut, "--tp", "2")
    for verb in (("quantize", "fp8"), ("dequantize",)):
        error = refuse(5, *verb, cut, "-o", tmp_path / "out")
        assert "--target hf" in error["hint"]


def test_what_was_left_out_or_encoded_is_listed(tiny_mtp: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    succeed("reshard", tiny_mtp, "-o", cut, "--tp", "2")
    error = refused(5, cut, "--target", "hf")
    assert "model.layers.3.input_layernorm.weight: left out" in error["details"]
    assert "--partial" in error["hint"]
    succeed("reshard", cut, "-o", tmp_path / "back", "--target", "hf", "--partial")


@pytest.mark.parametrize("damage", ["file", "header", "manifest", "request", "digest"])
def test_damaged_cut_folders(tiny: Path, tmp_path: Path, damage: str) -> None:
    cut = tmp_path / "cut"
    succeed("reshard", tiny, "-o", cut, "--tp", "2", "--pp", "2")
    part, manifest = cut / "model-pp-1-tp-0-part-0.safetensors", cut / "lingconv.manifest.json"
    told = json.loads(manifest.read_text())
    if damage == "file":
        part.unlink()
    elif damage == "header":
        (cut / "model-pp-1-tp-1-part-1.safetensors").rename(part)
        succeed("synth", "tiny", "-o", tmp_path / "other")
        (tmp_path / "other" / "model-00001-of-00014.safetensors").rename(part)
    elif damage == "manifest":
        told["source"]["shards"][0]["header"] = "eJw="
    elif damage == "request":
        told["request"]["reshard"]["pp_layers"] = [1, 2]
    elif damage == "digest":
        told["tensors"] = "0" * 64
    manifest.write_text(json.dumps(told))
    error = refused(4, cut, "--target", "hf")
    assert error["hint"]
