"""What config.json of a converted checkpoint says, and how far one may differ from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lingconv.reference import names
from lingconv.reference.codec import Dialect, ScaleKind, check_options


def skip_list(shapes: Mapping[str, tuple[int, ...]], encoded: Iterable[str]) -> list[str]:
    """Sorted paths of the modules whose 2-D `.weight` is kept, embeddings included."""
    kept = set(shapes) - set(encoded)
    return sorted(
        name.removesuffix(".weight")
        for name in kept
        if name.endswith(".weight") and len(shapes[name]) == 2
    )


def quantization_config(dialect: Dialect, scale: ScaleKind, skipped: list[str]) -> dict[str, Any]:
    """The `quantization_config` block that describes a checkpoint of a dialect."""
    check_options(dialect, scale)
    if not dialect.startswith("compressed-tensors"):
        block: dict[str, Any] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": skipped,
        }
        return block | ({"scale_fmt": "ue8m0"} if scale == "ue8m0" else {})
    number = {"num_bits": 8, "type": "float"}
    if dialect == "compressed-tensors-channel":
        weights: dict[str, Any] = number | {"strategy": "channel"}
        activations: dict[str, Any] = number | {"strategy": "token", "dynamic": True}
    else:
        weights = number | {"strategy": "block", "block_structure": [128, 128]}
        activations = number | {"strategy": "group", "group_size": 128, "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": skipped,
    }


def expected_config(
    source: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    encoded: Iterable[str],
    dialect: Dialect,
    scale: ScaleKind = "f32",
) -> dict[str, Any]:
    """config.json of the encoded checkpoint: the source's keys and a new `quantization_config`."""
    block = quantization_config(dialect, scale, skip_list(shapes, encoded))
    return dict(source) | {"quantization_config": block}


def config_differences(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Differences of two config.json files, as sentences; empty means equal.

    Skip lists are compared without embeddings, which may be listed. Within a compressed-tensors
    block, keys beyond the expected ones (version, observer, empty defaults) are allowed.
    """
    found = [
        f"config.json: {key} is {actual.get(key)!r}, expected {expected.get(key)!r}"
        for key in sorted(set(expected) | set(actual))
        if key != "quantization_config" and expected.get(key) != actual.get(key)
    ]
    want, have = (_comparable(c.get("quantization_config")) for c in (expected, actual))
    open_ended = want is not None and want["quant_method"] == "compressed-tensors"
    if not (_contains(have, want) if open_ended else have == want):
        found.append(f"config.json: quantization_config is {have!r}, expected {want!r}")
    return found


def _comparable(block: Any) -> Any:
    """A `quantization_config` without embeddings in its skip list."""
    if not isinstance(block, dict):
        return block
    lists = {
        key: [module for module in block[key] if not names.is_embedding(module)]
        for key in ("modules_to_not_convert", "ignore")
        if key in block
    }
    return block | lists


def _contains(have: Any, want: Any) -> bool:
    """Whether `have` equals `want`, except that its mappings may hold more keys."""
    if isinstance(want, dict):
        return isinstance(have, dict) and all(
            key in have and _contains(have[key], value) for key, value in want.items()
        )
    return bool(have == want)
