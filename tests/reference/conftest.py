"""A tiny Bailing V2 checkpoint, written without the converter."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingconv.reference import Tensor, write_safetensors
from lingconv.reference.codec import f32_to_bf16
from lingconv.reference.storage import INDEX, bytes_of

CONFIG: dict[str, Any] = {
    "architectures": ["BailingMoeV2ForCausalLM"],
    "model_type": "bailing_moe",
    "hidden_size": 200,
    "num_hidden_layers": 2,
}
MATRICES = {
    "model.word_embeddings.weight": (320, 200),
    "lm_head.weight": (320, 200),
    "model.layers.0.attention.query_key_value.weight": (300, 200),
    "model.layers.0.attention.dense.weight": (200, 128),
    "model.layers.0.mlp.gate_proj.weight": (260, 200),
    "model.layers.0.mlp.up_proj.weight": (260, 200),
    "model.layers.0.mlp.down_proj.weight": (200, 260),
    "model.layers.1.mlp.gate.weight": (2, 200),
    "model.layers.1.mlp.experts.0.gate_proj.weight": (130, 200),
    "model.layers.1.mlp.experts.0.down_proj.weight": (200, 130),
    "model.layers.1.mlp.experts.1.gate_proj.weight": (130, 200),
    "model.layers.1.mlp.experts.1.down_proj.weight": (200, 130),
    "model.layers.1.mlp.shared_experts.up_proj.weight": (130, 200),
    "model.layers.2.eh_proj.weight": (200, 400),
    "model.layers.2.mlp.experts.0.up_proj.weight": (130, 200),
}
VECTORS = {"model.norm.weight": (200,), "model.layers.2.enorm.weight": (200,)}


def write_folder(
    folder: Path, tensors: Iterable[Tensor], config: dict[str, Any], files: int = 1
) -> Path:
    """A checkpoint of one file, or of several with an index."""
    folder.mkdir()
    held = list(tensors)
    placed = {}
    for number in range(files):
        name = f"part-{number}.safetensors"
        write_safetensors(folder / name, held[number::files])
        placed |= {tensor.name: name for tensor in held[number::files]}
    if files > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def write():
    """`write_folder`."""
    return write_folder


@pytest.fixture
def bailing(tmp_path: Path) -> Path:
    """Three files, two decoder layers and a prediction layer, shapes with edge blocks."""
    rng = np.random.default_rng(20)
    tensors = [
        Tensor(
            name,
            "BF16",
            shape,
            bytes_of(f32_to_bf16((rng.standard_normal(shape) * 0.02).astype(np.float32))),
        )
        for name, shape in (MATRICES | VECTORS).items()
    ]
    bias = rng.standard_normal(2).astype(np.float32)
    tensors.append(Tensor("model.layers.1.mlp.gate.expert_bias", "F32", (2,), bytes_of(bias)))
    return write_folder(tmp_path / "bailing", tensors, CONFIG, files=3)
