"""`probe` without an engine: what it refuses, and how answers are compared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lingconv import api, probing
from support import refuse, succeed

W13 = "model.layers.1.mlp.experts.routed_experts.w13_weight"


@pytest.fixture(scope="module")
def cut(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, cut for two ranks."""
    folder = tmp_path_factory.mktemp("probe") / "cut"
    succeed("reshard", shared / "tiny", "-o", folder, "--tp", "2")
    return folder


def interpreter(folder: Path, script: str) -> Path:
    """A program in the place of a Python interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_what_is_no_python(cut: Path, tmp_path: Path) -> None:
    error = refuse(2, "probe", cut, "--python", tmp_path / "none")
    assert "cannot run it" in error["message"]
    error = refuse(2, "probe", cut, "--python", interpreter(tmp_path, "exit 7"))
    assert "no Python" in error["message"]
    assert "7" in error["message"]


def test_a_python_without_vllm(cut: Path) -> None:
    error = refuse(2, "probe", cut, "--python", sys.executable)
    assert "no vLLM there" in error["message"]


def test_an_engine_that_dies(cut: Path, tmp_path: Path) -> None:
    """A package that ends the process when it is imported stands in for one that crashes."""
    (tmp_path / "vllm.py").write_text("import os\nos._exit(9)\n")
    (tmp_path / "transformers.py").write_text(
        "class PretrainedConfig: pass\n"
        "class AutoConfig:\n"
        "    register = staticmethod(lambda *_, **__: None)\n"
    )
    python = interpreter(tmp_path, f'PYTHONPATH={tmp_path} exec {sys.executable} "$@"')
    error = refuse(9, "probe", cut, "--python", python)
    assert "ended with 9" in error["message"]


def test_an_engine_that_does_not_answer(cut: Path, tmp_path: Path) -> None:
    python = interpreter(tmp_path, "exec sleep 100")
    error = refuse(9, "probe", cut, "--python", python, "--timeout", "0.2")
    assert "0.2 s" in error["message"]
    assert "--timeout" in error["hint"]


def test_folders_that_hold_no_ranks(shared: Path, tmp_path: Path) -> None:
    refuse(5, "probe", shared / "tiny", "--python", sys.executable)
    succeed("reshard", shared / "tiny", "-o", tmp_path / "hf", "--target", "hf", "--pp", "2")
    refuse(5, "probe", tmp_path / "hf", "--python", sys.executable)


def test_a_plan_is_not_run_without_an_answer(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refuse(2, "reshard", shared / "tiny", "-o", out, "--probe", sys.executable)
    assert not out.exists()


def answer_for(held: dict[str, Any]) -> dict[str, Any]:
    """The answer of an engine that wants just what files hold."""
    head = {"version": "0.33.1", "platform": "cpu", "stand_ins": []}
    return head | {"ranks": json.loads(json.dumps(held["ranks"]))}


def test_files_and_plan_hold_the_same(cut: Path, shared: Path) -> None:
    held = api.held(cut)
    request = api.Request("reshard", api.Reshard(target="vllm-0.32", tp=2))
    catalog = api.Catalog.open(shared / "tiny")
    planned = api.held(api.Plan.build(catalog, request))
    assert planned["ranks"] == held["ranks"]
    assert [(r["pp"], r["tp"]) for r in held["ranks"]] == [(0, 0), (0, 1)]
    assert held["ranks"][0]["tensors"][W13] == ["BF16", [8, 256, 320]]
    found = probing.compare(held, answer_for(held))
    assert (found.differences, found.profile) == ([], None)


def test_differences_and_the_profile_made_of_them(cut: Path, shared: Path, tmp_path: Path) -> None:
    held = api.held(cut)
    answer = answer_for(held)
    for rank in answer["ranks"]:
        wanted = rank["tensors"]
        for layer in (1, 2):
            name = f"model.layers.{layer}.mlp.experts.routed_experts.w13_weight"
            wanted[name.replace("routed_experts", "routed")] = wanted.pop(name)
            wanted[f"model.layers.{layer}.attention.attn._z_scale"] = ["F32", []]
        wanted["model.norm.weight"] = ["F32", [320]]
        del wanted["model.layers.0.mlp.down_proj.weight"]
    found = probing.compare(held, answer)
    assert {(d.kind, d.name.rsplit(".", 2)[-2], d.tensors) for d in found.differences} == {
        ("missing", "attn", 2),
        ("missing", "routed", 2),
        ("unknown", "routed_experts", 2),
        ("unknown", "down_proj", 1),
        ("other", "norm", 1),
    }
    assert found.profile is not None
    assert 'versions = ["0.33.0", "0.34.0"]' in found.profile
    assert "TODO no such tensor: model.layers.{layer}.mlp.down_proj.weight" in found.profile
    assert "TODO other: model.norm.weight  files BF16 [320], engine F32 [320]" in found.profile
    path = tmp_path / "vllm-0.33.toml"
    path.write_text(found.profile)
    out = tmp_path / "out"
    succeed("reshard", shared / "tiny", "-o", out, "--tp", "2", "--target-file", path)
    tensors = api.held(out)["ranks"][0]["tensors"]
    assert tensors[W13.replace("routed_experts", "routed")] == ["BF16", [8, 256, 320]]
    assert tensors["model.layers.2.attention.attn._z_scale"] == ["F32", []]
