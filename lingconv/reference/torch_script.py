"""The usual way to cast a shard to FP8 with PyTorch: the yardstick for results and speed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lingconv.reference import names
from lingconv.reference.codec import BLOCK


def torch_encode(weight: Any) -> tuple[Any, Any]:
    """Dialect `deepseek` of a matrix [rows, columns]: float8_e4m3fn codes and float32 scales.

    The matrix is padded with zeros to whole blocks; the floor 1e-12 is applied in its own dtype.
    """
    # Not an import statement: type checks then need no PyTorch.
    torch = importlib.import_module("torch")
    largest = torch.finfo(torch.float8_e4m3fn).max
    rows, columns = weight.shape
    padding = (0, -columns % BLOCK, 0, -rows % BLOCK)
    padded = torch.nn.functional.pad(weight, padding)
    blocks = padded.view(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
    amax = blocks.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-12)
    scales = amax.float() / largest
    quotients = (blocks.float() / scales).clamp(-largest, largest)
    codes = quotients.to(torch.float8_e4m3fn).view(padded.shape)
    return codes[:rows, :columns].contiguous(), scales[:, 0, :, 0].contiguous()


def torch_quantize_deepseek(path_in: Path, path_out: Path) -> None:
    """Cast the projections of one safetensors file, whole file in memory, as such scripts do."""
    from safetensors.torch import load_file, save_file

    result: dict[str, Any] = {}
    for name, tensor in load_file(path_in).items():
        if tensor.dim() == 2 and names.is_projection(name):
            result[name], result[name + "_scale_inv"] = torch_encode(tensor)
        else:
            result[name] = tensor
    save_file(result, path_out, metadata={"format": "pt"})
