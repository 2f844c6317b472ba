"""A quantised checkpoint in transformers gives the logits of its decoded copy, bit for bit.

transformers dequantises FP8 on a CPU by itself; the copy is decoded by the reference and loaded as
plain BF16. Sizes are multiples of 128 or below it: transformers 5.23 divides the weight's shape by
the scale's to find the block size, so it misreads 192 rows (as blocks of 96) and refuses 576.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lingconv.reference import (
    compare_checkpoint,
    dequantize_checkpoint,
    expected_config,
    open_checkpoint,
    quantize_checkpoint,
    read_config,
    role_of,
    write_safetensors,
)

torch = pytest.importorskip("torch", minversion="2.1")
transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("accelerate")

COMMON = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MODELS = {
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {"head_dim": 64, "num_experts": 4, "mlp_only_layers": [0]},
    ),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "q_lora_rank": 128,
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
        },
    ),
}
OPTIONS = {
    "deepseek": {},
    "deepseek-cuda": {"arith": "cuda"},
    "deepseek-ue8m0": {"scale": "ue8m0"},
}
COMMAND_OPTION = {"arith": "--scale-arith", "scale": "--scale"}


@pytest.fixture(scope="module", params=MODELS)
def source(request, tmp_path_factory) -> Path:
    """A random BF16 model, saved in the names under which the hub publishes its kind."""
    model_class, config_class, sizes = MODELS[request.param]
    torch.manual_seed(7)
    config = getattr(transformers, config_class)(**COMMON, **sizes, dtype="bfloat16")
    model = getattr(transformers, model_class)(config).to(torch.bfloat16).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return folder


def encode_by_reference(source: Path, output: Path, options: dict[str, str]) -> None:
    """The quantised folder, written by the reference."""
    output.mkdir()
    tensors = list(quantize_checkpoint(source, **options))
    write_safetensors(output / "model.safetensors", tensors)
    shapes = {name: entry.shape for name, entry in open_checkpoint(source).items()}
    encoded = [tensor.name for tensor in tensors if tensor.dtype == "F8_E4M3"]
    config = expected_config(
        read_config(source), shapes, encoded, "deepseek", options.get("scale", "f32")
    )
    (output / "config.json").write_text(json.dumps(config))


def encode_by_command(source: Path, output: Path, options: dict[str, str]) -> None:
    """The quantised folder, written by the command line."""
    command = [sys.executable, "-m", "lingconv", "quantize", "fp8", str(source), "-o", str(output)]
    for key, value in options.items():
        command += [COMMAND_OPTION[key], value]
    pytest.importorskip("lingconv.__main__", reason="the command line is not built")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def decoded_copy(encoded: Path, folder: Path) -> Path:
    """The same model as plain BF16, decoded by the reference."""
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", dequantize_checkpoint(encoded))
    config = read_config(encoded)
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def load(folder: Path, **options):
    """A model in BF16 on the CPU, all of whose tensors were in the folder."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, **options
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def logits(model) -> torch.Tensor:
    """Logits [1, 48, vocabulary] of fixed tokens."""
    tokens = torch.arange(48).mul(37).remainder(320)[None]
    with torch.no_grad():
        return model(tokens).logits


def test_names_are_the_published_ones(source: Path) -> None:
    entries = open_checkpoint(source)
    architecture = read_config(source)["architectures"][0]
    experts = [name for name in entries if ".experts." in name]
    assert experts
    assert all(role_of(name, architecture) is not None for name in experts)
    assert all(len(entries[name].shape) == 2 for name in experts)
    assert all(entry.dtype in ("BF16", "F32") for entry in entries.values())


@pytest.mark.parametrize("encoder", [encode_by_reference, encode_by_command])
@pytest.mark.parametrize("name", OPTIONS)
def test_logits_equal_those_of_the_decoded_copy(source, tmp_path, encoder, name) -> None:
    encoded = tmp_path / "fp8"
    encoder(source, encoded, OPTIONS[name])
    assert compare_checkpoint(source, encoded, **OPTIONS[name]) == []
    dequantize = transformers.FineGrainedFP8Config(dequantize=True)
    in_fp8 = load(encoded, quantization_config=dequantize)
    in_bf16 = load(decoded_copy(encoded, tmp_path / "bf16"))
    states = in_fp8.state_dict(), in_bf16.state_dict()
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[1].items():
        assert states[0][key].dtype == tensor.dtype
        assert torch.equal(states[0][key], tensor), key
    expected = logits(in_bf16)
    assert torch.isfinite(expected).all()
    assert torch.equal(logits(in_fp8), expected)
    assert not torch.equal(logits(load(source)), expected)
