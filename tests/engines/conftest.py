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


def full_rank(tensors: dict[str, Tensor]) -> None:
    """DeepSeek-V3 as Moonlight has it: queries straight from the hidden state, and frequencies."""
    for name in [name for name in tensors if ".self_attn.q_b_proj." in name]:
        layer = name.split("q_b_proj")[0]
        gone = [tensors.pop(layer + part) for part in Q_LORA]
        hidden, rows = gone[0].shape[1], gone[2].shape[0]
        query = layer + "q_proj.weight"
        data = np.resize(gone[2].data, 2 * rows * hidden)
        tensors[query] = Tensor(query, gone[2].dtype, (rows, hidden), data)
        frequencies = layer + "rotary_emb.inv_freq"
        tensors[frequencies] = Tensor(frequencies, "F32", (32,), np.zeros(32 * 4, np.uint8))


Q_LORA = ("q_a_proj.weight", "q_a_layernorm.weight", "q_b_proj.weight")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small checkpoints, each in BF16 and in FP8: a Ling, a Qwen3-MoE, two DeepSeek-V3.

    `moon` is the DeepSeek-V3 without low-rank queries.
    """
    folder = tmp_path_factory.mktemp("sources")
    succeed("synth", "tiny", "-o", folder / "tiny")
    wide = rebuilt(folder / "tiny", folder / "bf16", widened)
    # rope_scaling: vLLM 0.11 wants the key.
    sizes = {"moe_shared_expert_intermediate_size": 512, "rope_scaling": None}
    configure(wide, sizes)
    succeed("quantize", "fp8", wide, "-o", folder / "fp8")
    succeed("synth", "tiny-qwen3-moe", "-o", folder / "qwen")
    succeed("synth", "tiny-deepseek-v3", "-o", folder / "deepseek")
    moon = rebuilt(folder / "deepseek", folder / "moon", full_rank)
    configure(moon, {"q_lora_rank": None})
    found = {"bf16": wide, "fp8": folder / "fp8"}
    for name in ("qwen", "deepseek", "moon"):
        succeed("quantize", "fp8", folder / name, "-o", folder / f"{name}8")
        found |= {kind: folder / kind for kind in (name, f"{name}8")}
    return found


def configure(checkpoint: Path, changes: dict[str, object]) -> None:
    """Change config.json."""
    config = read_config(checkpoint) | changes
    (checkpoint / "config.json").write_text(json.dumps(config))
