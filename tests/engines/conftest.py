"""Checkpoints that engines load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import support
from lingconv.reference import Tensor
from lingconv.reference.storage import read_config
from support import rebuilt, succeed

# An engine takes a while to start.
support.TIMEOUT = 900


def widened(tensors: dict[str, Tensor]) -> None:
    """Shared experts of twice the size, so that their FP8 blocks stay whole at TP 4."""
    for name, tensor in tensors.items():
        if ".shared_experts." not in name:
            continue
        data, (rows, cols) = tensor.data.reshape(tensor.shape[0], -1), tensor.shape
        if name.endswith("down_proj.weight"):
            shape, data = (rows, 2 * cols), np.concatenate([data, data[::-1]], axis=1)
        else:
            shape, data = (2 * rows, cols), np.concatenate([data, data[::-1]], axis=0)
        tensors[name] = tensor._replace(shape=shape, data=data.reshape(-1))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small Ling checkpoint in BF16 and in FP8, and a Qwen3-MoE in both."""
    folder = tmp_path_factory.mktemp("sources")
    succeed("synth", "tiny", "-o", folder / "tiny")
    wide = rebuilt(folder / "tiny", folder / "bf16", widened)
    # rope_scaling: vLLM 0.11 wants the key.
    sizes = {"moe_shared_expert_intermediate_size": 512, "rope_scaling": None}
    config = read_config(wide) | sizes
    (wide / "config.json").write_text(json.dumps(config))
    succeed("quantize", "fp8", wide, "-o", folder / "fp8")
    succeed("synth", "tiny-qwen3-moe", "-o", folder / "qwen")
    succeed("quantize", "fp8", folder / "qwen", "-o", folder / "qwen8")
    return {"bf16": wide} | {name: folder / name for name in ("fp8", "qwen", "qwen8")}
