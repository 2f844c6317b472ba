"""Made-up checkpoints whose experts and routers look trained, and faults planted in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lingconv.reference import Tensor
from lingconv.reference.codec import f32_to_bf16
from lingconv.reference.storage import bytes_of, values_of
from support import rebuilt, succeed

F64 = NDArray[np.float64]
Change = Callable[[dict[str, Tensor]], None]
EXPERTS, HIDDEN, LAYERS = 16, 320, (1, 2)
GATE = "model.layers.{}.mlp.gate.weight"


def expert(layer: int, index: int, part: str) -> str:
    return f"model.layers.{layer}.mlp.experts.{index}.{part}_proj.weight"


def bf16(tensor: Tensor, values: F64) -> Tensor:
    return tensor._replace(data=bytes_of(f32_to_bf16(values.astype(np.float32))))


def synthetic(folder: Path) -> Path:
    """A checkpoint of several shards."""
    succeed("synth", "tiny", "-o", folder, "--experts", str(EXPERTS))
    return folder


def trained(source: Path, folder: Path) -> Path:
    """The same in one file, with gate rows that have something in common, as those of trained
    routers have.

    Rows of made-up routers are next to orthogonal, and a shuffled one is then as good as any.
    """
    rng = np.random.default_rng(3)

    def change(tensors: dict[str, Tensor]) -> None:
        for layer in LAYERS:
            common = rng.normal(0, 0.02, HIDDEN) * rng.choice([1, 1, 1, 9], HIDDEN)
            rows = common + rng.normal(0, 0.03, (EXPERTS, HIDDEN))
            tensors[GATE.format(layer)] = bf16(tensors[GATE.format(layer)], rows)

    return rebuilt(source, folder, change)


def zeroed(tensors: dict[str, Tensor]) -> None:
    for part in ("gate", "up", "down"):
        tensor = tensors[expert(1, 3, part)]
        tensors[tensor.name] = tensor._replace(data=np.zeros_like(tensor.data))


def duplicated(tensors: dict[str, Tensor]) -> None:
    for part in ("gate", "up", "down"):
        name = expert(2, 9, part)
        tensors[name] = tensors[name]._replace(data=tensors[expert(2, 4, part)].data)


def enlarged(tensors: dict[str, Tensor]) -> None:
    for part in ("gate", "up", "down"):
        tensor = tensors[expert(2, 0, part)]
        tensors[tensor.name] = bf16(tensor, values_of("BF16", tensor.data).astype(np.float64) * 100)


def with_nan(tensors: dict[str, Tensor]) -> None:
    tensor = tensors[expert(1, 15, "down")]
    data = np.array(tensor.data)
    data[2 * 1234 : 2 * 1234 + 2] = (0xC0, 0x7F)
    tensors[tensor.name] = tensor._replace(data=data)


def shuffled(tensors: dict[str, Tensor]) -> None:
    tensor = tensors[GATE.format(2)]
    rows = np.array(tensor.data).view(np.uint16).reshape(EXPERTS, HIDDEN)
    rows[11] = np.random.default_rng(5).permutation(rows[11])
    tensors[tensor.name] = tensor._replace(data=bytes_of(rows))


def twin_row(tensors: dict[str, Tensor]) -> None:
    tensor = tensors[GATE.format(1)]
    rows = np.array(tensor.data).reshape(EXPERTS, -1)
    rows[8] = rows[2]
    tensors[tensor.name] = tensor._replace(data=rows.reshape(-1))


def nan_row(tensors: dict[str, Tensor]) -> None:
    tensor = tensors[GATE.format(1)]
    rows = np.array(tensor.data).view(np.uint16).reshape(EXPERTS, -1)
    rows[6, 5] = 0xFF80
    tensors[tensor.name] = tensor._replace(data=bytes_of(rows))


def infinite_bias(tensors: dict[str, Tensor]) -> None:
    tensor = tensors["model.layers.2.mlp.gate.expert_bias"]
    bias = np.array(tensor.data).view(np.float32)
    bias[5] = np.inf
    tensors[tensor.name] = tensor._replace(data=bytes_of(bias))


PARTS = ("down", "gate", "up")
FAULTS: list[tuple[Change, str, list[tuple[int, int, str]], str]] = [
    (zeroed, "zero", [(1, 3, expert(1, 3, part)) for part in PARTS], "values are zero"),
    (duplicated, "duplicate", [(2, 9, expert(2, 9, p)) for p in PARTS], "experts.4."),
    (enlarged, "outlier", [(2, 0, expert(2, 0, part)) for part in PARTS], "times larger"),
    (with_nan, "nonfinite", [(1, 15, expert(1, 15, "down"))], "element 1234"),
    (shuffled, "gate_row", [(2, 11, GATE.format(2))], "mean cosine"),
    (twin_row, "gate_row", [(1, 8, GATE.format(1))], "as expert 2"),
    (nan_row, "nonfinite", [(1, 6, GATE.format(1))], "gate row"),
    (infinite_bias, "nonfinite", [(2, 5, "model.layers.2.mlp.gate.expert_bias")], "bias"),
]
