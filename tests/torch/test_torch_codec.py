"""The reference against PyTorch's own FP8 cast, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from lingconv.reference import (
    Tensor,
    codec,
    decode,
    encode,
    open_checkpoint,
    quantize_checkpoint,
    torch_quantize_deepseek,
    write_safetensors,
)
from lingconv.reference.storage import bytes_of
from lingconv.reference.torch_script import torch_encode

# A version is asked for because a folder named `torch` would import as an empty package.
torch = pytest.importorskip("torch", minversion="2.1")

ALL_BF16 = np.arange(65_536, dtype=np.uint16)
FINITE_BF16 = ALL_BF16[(ALL_BF16 & 0x7F80) != 0x7F80]
SHAPES = [(1, 1), (128, 128), (129, 127), (300, 517), (1, 400), (400, 1), (256, 384)]


def torch_codes(values: np.ndarray) -> np.ndarray:
    """E4M3FN codes by PyTorch of values clamped to its range."""
    tensor = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    return tensor.view(torch.uint8).numpy()


def matrix(shape: tuple[int, int], kind: str) -> np.ndarray:
    """BF16 bits of a random matrix, or of a special one."""
    rng = np.random.default_rng(shape[0] * 1000 + shape[1])
    if kind == "patterns":
        return rng.choice(FINITE_BF16, shape)
    values = rng.standard_normal(shape) if kind != "heavy" else rng.standard_t(1.5, shape)
    values = values * {"normal": 0.02, "heavy": 0.02, "tiny": 1e-38, "zero": 0.0}[kind]
    return codec.f32_to_bf16(values.astype(np.float32))


def as_torch(bits: np.ndarray):
    """A bfloat16 tensor of the given bits."""
    return torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16)


@pytest.mark.parametrize("encode_values", [codec.encode_e4m3, codec.encode_e4m3_fast])
def test_encodes_every_finite_bf16(encode_values) -> None:
    values = codec.bf16_to_f32(FINITE_BF16)
    assert np.array_equal(encode_values(values), torch_codes(values))


@pytest.mark.parametrize("encode_values", [codec.encode_e4m3, codec.encode_e4m3_fast])
def test_encodes_random_f32(encode_values) -> None:
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 500_000, dtype=np.uint32)
    bits = bits[(bits & 0x7F80_0000) != 0x7F80_0000]
    scaled = (rng.standard_normal(500_000) * 50).astype(np.float32)
    values = np.concatenate([bits.view(np.float32), scaled])
    assert np.array_equal(encode_values(values), torch_codes(values))


def test_decodes_all_codes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    outside = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(codec.E4M3_VALUES, outside, equal_nan=True)


def test_rounds_to_bf16() -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, 500_000, dtype=np.uint32)
    values = bits[(bits & 0x7F80_0000) != 0x7F80_0000].view(np.float32)
    outside = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(codec.f32_to_bf16(values), outside)


@pytest.mark.parametrize("kind", ["normal", "heavy", "tiny", "zero", "patterns"])
@pytest.mark.parametrize("shape", SHAPES)
def test_deepseek_is_the_script(shape, kind) -> None:
    bits = matrix(shape, kind)
    codes, scales = encode(codec.bf16_to_f32(bits), "deepseek")
    script_codes, script_scales = torch_encode(as_torch(bits))
    assert np.array_equal(scales, script_scales.numpy())
    assert np.array_equal(codes, script_codes.view(torch.uint8).numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_decode_is_the_product_in_torch(shape) -> None:
    codes, scales = encode(codec.bf16_to_f32(matrix(shape, "heavy")), "deepseek")
    spread = torch.from_numpy(scales).repeat_interleave(128, 0).repeat_interleave(128, 1)
    values = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
    product = (values * spread[: shape[0], : shape[1]]).bfloat16()
    expected = product.view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(decode(codes, scales, "block"), expected)


def test_script_writes_the_expected_file(tmp_path) -> None:
    shapes = {
        "lm_head.weight": (64, 200),
        "model.layers.0.attention.dense.weight": (200, 300),
        "model.layers.1.mlp.experts.3.down_proj.weight": (129, 128),
    }
    tensors = [
        Tensor(name, "BF16", shape, bytes_of(matrix(shape, "heavy")))
        for name, shape in shapes.items()
    ]
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["BailingMoeV2ForCausalLM"]}')
    write_safetensors(source / "model.safetensors", tensors)
    output = tmp_path / "output"
    output.mkdir()
    torch_quantize_deepseek(source / "model.safetensors", output / "model.safetensors")
    written = open_checkpoint(output)
    expected = {tensor.name: tensor for tensor in quantize_checkpoint(source)}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(written[name].read(), tensor.data)
