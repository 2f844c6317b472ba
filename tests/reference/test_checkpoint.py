"""Whole folders: what is expected of them, and that a difference is found and named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors

from lingconv.reference import (
    DIALECTS,
    Tensor,
    compare_checkpoint,
    compare_dequantized,
    config_differences,
    dequantize_checkpoint,
    expected_config,
    open_checkpoint,
    quantization_config,
    quantize_checkpoint,
    read_config,
    role_of,
)
from lingconv.reference.__main__ import main
from lingconv.reference.checkpoint import sample_of

EXPERT = "model.layers.1.mlp.experts.0.gate_proj.weight"
KEPT = {
    "model.word_embeddings",
    "lm_head",
    "model.layers.1.mlp.gate",
    "model.layers.2.eh_proj",
}


@pytest.fixture
def quantized(bailing: Path, tmp_path: Path, write):
    """A function that writes the expected output of a dialect."""

    def build(dialect: str = "deepseek", **options) -> Path:
        tensors = list(quantize_checkpoint(bailing, dialect, **options))
        shapes = {name: entry.shape for name, entry in open_checkpoint(bailing).items()}
        encoded = [tensor.name for tensor in tensors if tensor.dtype == "F8_E4M3"]
        scale = options.get("scale", "f32")
        config = expected_config(read_config(bailing), shapes, encoded, dialect, scale)
        return write(tmp_path / "out", tensors, config, files=2)

    return build


def test_every_encoded_tensor_has_its_scale(bailing: Path) -> None:
    tensors = {tensor.name: tensor for tensor in quantize_checkpoint(bailing)}
    encoded = {name for name, tensor in tensors.items() if tensor.dtype == "F8_E4M3"}
    assert len(encoded) == 11
    assert {name + "_scale_inv" for name in encoded} == {
        name for name in tensors if name.endswith("_scale_inv")
    }
    scale = tensors[EXPERT + "_scale_inv"]
    assert (scale.dtype, scale.shape, scale.data.size) == ("F32", (2, 2), 16)
    assert len(tensors) == len(open_checkpoint(bailing)) + len(encoded)


@pytest.mark.parametrize(
    ("dialect", "shape"), [("compressed-tensors", (2, 2)), ("compressed-tensors-channel", (130, 1))]
)
def test_compressed_tensors_scales_are_bf16(bailing: Path, dialect: str, shape) -> None:
    tensors = {tensor.name: tensor for tensor in quantize_checkpoint(bailing, dialect)}
    scale = tensors[EXPERT + "_scale"]
    assert (scale.dtype, scale.shape, scale.data.size) == ("BF16", shape, 2 * np.prod(shape))


def test_experts_only(bailing: Path) -> None:
    tensors = quantize_checkpoint(bailing, experts_only=True)
    encoded = {tensor.name for tensor in tensors if tensor.dtype == "F8_E4M3"}
    assert len(encoded) == 5
    assert all(".mlp.experts." in name for name in encoded)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_comparison_accepts_the_expected_output(quantized, bailing: Path, dialect: str) -> None:
    assert compare_checkpoint(bailing, quantized(dialect), dialect) == []


def test_dialects_are_told_apart(quantized, bailing: Path) -> None:
    output = quantized("ling")
    found = compare_checkpoint(bailing, output, "deepseek")
    differing = {line.split(":")[0].removesuffix("_scale_inv") for line in found}
    assert differing == {
        name
        for name in open_checkpoint(bailing)
        if role_of(name, "BailingMoeV2ForCausalLM") in ("attention_output", "expert_gate_up")
    }
    assert compare_checkpoint(bailing, output, "ling", arith="cuda")


def test_one_flipped_bit_is_found(quantized, bailing: Path) -> None:
    output = quantized()
    entry = open_checkpoint(output)[EXPERT]
    with entry.path.open("r+b") as file:
        file.seek(entry.start + 77)
        byte = file.read(1)[0]
        file.seek(entry.start + 77)
        file.write(bytes([byte ^ 1]))
    (line,) = compare_checkpoint(bailing, output)
    assert line.startswith(f"{EXPERT}: 1 of 26000 bytes differ, the first at 77: 0x{byte ^ 1:02x}")


def test_missing_extra_and_misshapen_tensors_are_found(bailing: Path, tmp_path, write) -> None:
    tensors = list(quantize_checkpoint(bailing))
    missing = tensors.pop(0)
    wrong = tensors.pop()
    tensors.append(Tensor(wrong.name, "U8", (wrong.data.size,), wrong.data))
    tensors.append(Tensor("extra", "U8", (0,), wrong.data[:0]))
    output = write(tmp_path / "out", tensors, read_config(bailing))
    found = [line for line in compare_checkpoint(bailing, output) if "config" not in line]
    assert f"{missing.name}: missing" in found
    assert "extra: not expected" in found
    assert any(line.startswith(f"{wrong.name}: U8 [") for line in found)
    assert len(found) == 3


def test_index_that_disagrees_with_its_files_is_found(quantized, bailing: Path) -> None:
    output = quantized()
    index = output / "model.safetensors.index.json"
    text = json.loads(index.read_text())
    del text["weight_map"][EXPERT]
    index.write_text(json.dumps(text))
    (line,) = compare_checkpoint(bailing, output)
    assert "does not list" in line


def test_index_that_names_an_absent_file(bailing: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bailing, tmp_path / "copy"))
    (copy / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"part-1\.safetensors"):
        open_checkpoint(copy)


def test_non_finite_weight_is_refused_by_name(bailing: Path, tmp_path: Path) -> None:
    entry = open_checkpoint(bailing)[EXPERT]
    with entry.path.open("r+b") as file:
        file.seek(entry.start + 2 * (200 * 129 + 5))
        file.write(b"\x80\x7f")
    with pytest.raises(ValueError, match=rf"{EXPERT}: inf at index \[129, 5\]"):
        list(quantize_checkpoint(bailing))


def test_stack_of_experts_is_refused(tmp_path: Path, write) -> None:
    stack = Tensor("model.layers.0.mlp.experts.w1", "BF16", (2, 1, 1), np.zeros(4, np.uint8))
    config = {"architectures": ["BailingMoeV2ForCausalLM"]}
    with pytest.raises(ValueError, match="stack"):
        list(quantize_checkpoint(write(tmp_path / "stack", [stack], config)))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dequantized_folder_has_the_source_layout(
    quantized, bailing: Path, tmp_path: Path, write, dialect: str
) -> None:
    encoded = quantized(dialect)
    config = read_config(encoded)
    del config["quantization_config"]
    decoded = write(tmp_path / "back", dequantize_checkpoint(encoded), config)
    layout = {name: (e.dtype, e.shape) for name, e in open_checkpoint(bailing).items()}
    assert layout == {name: (e.dtype, e.shape) for name, e in open_checkpoint(decoded).items()}
    assert compare_dequantized(encoded, decoded) == []
    again = {tensor.name: tensor for tensor in dequantize_checkpoint(encoded)}
    for tensor in dequantize_checkpoint(write(tmp_path / "two", again.values(), config)):
        assert np.array_equal(tensor.data, again[tensor.name].data)
    assert any("bytes differ" in line for line in compare_dequantized(encoded, bailing))


@pytest.mark.parametrize(
    ("dtype", "value", "shape"),
    [
        ("F32", np.float32(0.5).tobytes(), (1, 1)),
        ("BF16", b"\x00\x3f", (1, 1)),
        ("F16", b"\x00\x38", (1, 1)),
        ("F8_E8M0", b"\x7e", (1, 1)),
        ("U8", b"\x7e", (1, 1)),
        ("F32", np.full(3, 0.5, np.float32).tobytes(), (3,)),
        ("F32", np.full(3, 0.5, np.float32).tobytes(), (3, 1)),
    ],
)
def test_dequantize_reads_every_kind_of_scale(tmp_path, write, dtype, value, shape) -> None:
    codes = np.array([0x38, 0xB8, 0x7E, 0, 0x80, 1], dtype=np.uint8)
    tensors = [
        Tensor("a.weight", "F8_E4M3", (3, 2), codes),
        Tensor("a.weight_scale", dtype, shape, np.frombuffer(value, np.uint8)),
    ]
    (tensor,) = dequantize_checkpoint(write(tmp_path / "fp8", tensors, {}))
    expected = [0x3F00, 0xBF00, 0x4360, 0x0000, 0x8000, 0x3A80]
    assert tensor.data.view("<u2").tolist() == expected


def test_dequantize_needs_a_scale_that_fits(tmp_path: Path, write) -> None:
    weight = Tensor("a.weight", "F8_E4M3", (3, 2), np.zeros(6, np.uint8))
    with pytest.raises(ValueError, match="no scale"):
        list(dequantize_checkpoint(write(tmp_path / "none", [weight], {})))
    scale = Tensor("a.weight_scale", "F32", (2, 1), np.zeros(8, np.uint8))
    with pytest.raises(ValueError, match="scale has shape"):
        list(dequantize_checkpoint(write(tmp_path / "wrong", [weight, scale], {})))


def test_files_open_in_safetensors(bailing: Path) -> None:
    for path in bailing.glob("*.safetensors"):
        for name, held in safetensors.deserialize(path.read_bytes()):
            entry = open_checkpoint(bailing)[name]
            assert tuple(held["shape"]) == entry.shape
            assert bytes(held["data"]) == entry.read().tobytes()


def test_sample_takes_every_kind_first(bailing: Path) -> None:
    names = list(open_checkpoint(bailing))
    assert sorted(sample_of(names, None)) == sorted(names)
    assert sample_of(names, 6) == sample_of(reversed(names), 6)
    layers = [f"layer.{n}.{kind}" for n in range(50) for kind in ("a", "b", "c")]
    assert sorted(name[-1] for name in sample_of(layers, 7)) == sorted("abcabca")


@pytest.mark.parametrize(
    ("architecture", "encoded", "kept"),
    [
        (
            "BailingMoeV2ForCausalLM",
            ["attention.dense", "mlp.up_proj", "mlp.experts.255.down_proj"],
            ["mlp.gate", "input_layernorm", "attention.query_layernorm", "eh_proj"],
        ),
        (
            "DeepseekV3ForCausalLM",
            ["self_attn.kv_a_proj_with_mqa", "self_attn.q_b_proj", "mlp.shared_experts.up_proj"],
            ["self_attn.kv_a_layernorm", "mlp.gate", "shared_head.head", "embed_tokens", "eh_proj"],
        ),
        (
            "Qwen3MoeForCausalLM",
            ["self_attn.k_proj", "self_attn.o_proj", "mlp.experts.0.gate_proj"],
            ["self_attn.q_norm", "mlp.gate", "post_attention_layernorm"],
        ),
    ],
)
def test_names(architecture: str, encoded: list[str], kept: list[str]) -> None:
    for module in encoded:
        assert role_of(f"model.layers.61.{module}.weight", architecture) is not None
        assert role_of(f"model.layers.61.{module}.bias", architecture) is None
    for name in [f"model.layers.61.{module}.weight" for module in kept] + ["lm_head.weight"]:
        assert role_of(name, architecture) is None


def test_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="NewForCausalLM"):
        role_of("model.layers.0.mlp.up_proj.weight", "NewForCausalLM")


def test_config_of_blocks(bailing: Path, quantized) -> None:
    config = read_config(quantized("deepseek", scale="ue8m0"))
    assert config.pop("quantization_config") == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "scale_fmt": "ue8m0",
        "modules_to_not_convert": sorted(KEPT),
    }
    assert config == read_config(bailing)


def test_config_comparison_allows_what_is_left_open() -> None:
    kept = ["lm_head", "model.embed_tokens", "model.layers.3.mlp.gate"]
    want = {"a": 1, "quantization_config": quantization_config("deepseek", "f32", kept)}
    have = {"a": 1, "quantization_config": quantization_config("deepseek", "f32", kept[::2])}
    assert config_differences(want, have) == []
    have["quantization_config"]["modules_to_not_convert"] = kept[1:]
    assert len(config_differences(want, have)) == 1
    assert len(config_differences(want, {"b": 2})) == 3
    want = {"quantization_config": quantization_config("compressed-tensors", "f32", kept)}
    have = json.loads(json.dumps(want))
    have["quantization_config"]["version"] = "0.12"
    have["quantization_config"]["config_groups"]["group_0"]["weights"]["observer"] = None
    assert config_differences(want, have) == []
    have["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4
    assert len(config_differences(want, have)) == 1


def test_command_line(quantized, bailing: Path, capsys) -> None:
    output = quantized()
    assert main([str(bailing), str(output), "--sample", "5"]) == 0
    assert capsys.readouterr().out == "identical: a sample of 5 tensors\n"
    assert main([str(bailing), str(output), "--scale", "ue8m0"]) == 3
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert "differences, the first: config.json: quantization_config" in line
    assert main([str(output), str(bailing), "--dequantized"]) == 3
