"""What a model's router allows to permute, from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingconv import foreign
from lingconv.errors import invalid_error
from lingconv.experts.bounds import MAX_EXPERTS, MAX_LAYERS

_MAX_CONFIG = 16 * 2**20
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")


@dataclass(frozen=True)
class Routing:
    """Layers, experts and routing groups of a model.

    The router splits the expert indices into `groups` equal contiguous groups and masks some of
    them, so files may be re-ordered only within groups and by whole groups. Where
    nothing is masked, there is one group.
    """

    layers: int
    experts: int
    groups: int


def read_routing(model: Path) -> Routing:
    """Read `model/config.json`; no weights need be there. Raises `Error` 4 if it makes no sense."""
    path = model / "config.json"
    found = foreign.resolve_inside(model, path.name, refuse=invalid_error)
    text = foreign.read_bytes(found, _MAX_CONFIG, refuse=invalid_error)
    data = foreign.parse_json(text, str(path), refuse=invalid_error)
    if not isinstance(data, dict):
        raise invalid_error("no JSON object", str(path))
    key = next((key for key in _EXPERTS if data.get(key) is not None), None)
    if key is None:
        raise invalid_error(f"none of {', '.join(_EXPERTS)}: the model has no experts", str(path))
    layers = _number(data, "num_hidden_layers", MAX_LAYERS, path)
    experts = _number(data, key, MAX_EXPERTS, path)
    groups = _number(data, "n_group", experts, path, default=1)
    # A model that has groups and does not say how many it keeps is taken to mask some.
    masked = groups > 1 and _number(data, "topk_group", groups, path, default=1) < groups
    if experts % groups:
        raise invalid_error(f"{experts} experts do not divide into {groups} groups", str(path))
    return Routing(layers, experts, groups if masked else 1)


def _number(
    data: dict[str, Any], key: str, most: int, path: Path, *, default: int | None = None
) -> int:
    value = data.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise invalid_error(f"{key} is {str(value)[:50]}, not a number from 1 to {most}", str(path))
    return value
