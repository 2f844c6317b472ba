"""The slow, obvious, independent definition of every transform, in numpy.

Nothing here is shared with the converter. Tests and demonstrations hold its output against this:

- `codec`: number formats, scale rules of the dialects, encode and decode of a matrix
- `names`: which tensors are encoded, by name
- `config`: what config.json of the result says
- `storage`: a small safetensors reader and writer
- `checkpoint`: the expected tensors of a whole checkpoint, and the comparison with a folder
- `torch_script`: the same cast as PyTorch scripts do it

`python -m lingconv.reference SRC OUT --dialect NAME` compares two folders.
"""

from __future__ import annotations

from lingconv.reference.checkpoint import (
    compare_checkpoint,
    compare_dequantized,
    dequantize_checkpoint,
    quantize_checkpoint,
)
from lingconv.reference.codec import DIALECTS, decode, encode, scale_of
from lingconv.reference.config import config_differences, expected_config, quantization_config
from lingconv.reference.names import role_of
from lingconv.reference.storage import (
    Tensor,
    open_checkpoint,
    read_config,
    write_safetensors,
)
from lingconv.reference.torch_script import torch_quantize_deepseek

__all__ = [
    "DIALECTS",
    "Tensor",
    "compare_checkpoint",
    "compare_dequantized",
    "config_differences",
    "decode",
    "dequantize_checkpoint",
    "encode",
    "expected_config",
    "open_checkpoint",
    "quantization_config",
    "quantize_checkpoint",
    "read_config",
    "role_of",
    "scale_of",
    "torch_quantize_deepseek",
    "write_safetensors",
]
