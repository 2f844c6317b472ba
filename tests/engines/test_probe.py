"""`probe` against vLLM itself: what it wants of each rank, without loading a weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import PYTHON, VERSION
from support import lingconv, refuse, succeed

OLD = VERSION.startswith("0.11.")
KINDS = ("missing", "unknown", "other")


@pytest.fixture
def cut(sources: dict[str, Path], tmp_path: Path) -> Path:
    """Cut for the other version of vLLM."""
    target = "vllm-0.32" if OLD else "vllm-0.11"
    layout = ("--tp", "2", "--pp", "2", "--ep", "2")
    succeed("reshard", sources["bf16"], "-o", tmp_path / "cut", *layout, "--target", target)
    return tmp_path / "cut"


def test_a_plan_is_what_the_engine_wants(sources: dict[str, Path], tmp_path: Path) -> None:
    layout = ("--tp", "2", "--ep", "2", "--pp", "3", "--target", f"vllm@{VERSION}")
    encoded = () if OLD else ("--format", "fp8")
    words = ("reshard", sources["bf16"], "-o", tmp_path / "out", *layout, *encoded, "--dry-run")
    done = succeed(*words, "--probe", PYTHON)
    assert f"vllm {VERSION} (cpu) wants" in done.stderr
    assert ("choice of kernels was replaced" in done.stderr) == bool(encoded)
    assert not (tmp_path / "out").exists()


def test_files_for_another_version_are_told_apart(cut: Path) -> None:
    done = lingconv("probe", cut, "--python", PYTHON, "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert (found["schema"], found["version"]) == ("lingconv.probe/1", VERSION)
    kinds = {kind: {d["name"] for d in found["differences"] if d["kind"] == kind} for kind in KINDS}
    new, old = kinds["unknown" if OLD else "missing"], kinds["missing" if OLD else "unknown"]
    assert "model.layers.{layer}.mlp.experts.routed_experts.w13_weight" in new
    assert "model.layers.{layer}.attention.attn._k_scale" in new
    assert "model.layers.{layer}.mlp.experts.expert_map" in old
    assert kinds["other"] == set()
    assert f'name = "vllm-{VERSION.rsplit(".", 1)[0]}"' in found["profile"]


def test_an_architecture_that_the_engine_does_not_know(cut: Path) -> None:
    for path in cut.rglob("config.json"):
        text = path.read_text().replace("BailingMoeV2ForCausalLM", "UnheardOfForCausalLM")
        path.write_text(text)
    error = refuse(5, "probe", cut, "--python", PYTHON)
    assert "UnheardOfForCausalLM" in error["message"]
