"""Which tensors are encoded, stated by their published names.

Regular expressions over names, one set an architecture. They repeat what the declarative data of
the converter says in another form, so that a slip in either shows up as a difference.
"""

from __future__ import annotations

import re

from lingconv.reference.codec import Dialect, Role

_ATTENTION = {
    "BailingMoeV2ForCausalLM": r"attention\.query_key_value",
    "DeepseekV3ForCausalLM": (
        r"self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj)"
    ),
    "Qwen3MoeForCausalLM": r"self_attn\.(q_proj|k_proj|v_proj)",
}
_ATTENTION_OUTPUT = {
    "BailingMoeV2ForCausalLM": r"attention\.dense",
    "DeepseekV3ForCausalLM": r"self_attn\.o_proj",
    "Qwen3MoeForCausalLM": r"self_attn\.o_proj",
}
_MLP: tuple[tuple[Role, str], ...] = (
    ("mlp", r"mlp\.(gate_proj|up_proj|down_proj)"),
    ("expert_gate_up", r"mlp\.experts\.\d+\.(gate_proj|up_proj)"),
    ("expert_down", r"mlp\.experts\.\d+\.down_proj"),
    ("shared_expert", r"mlp\.shared_experts\.(gate_proj|up_proj|down_proj)"),
)
_EMBEDDING = re.compile(r"model\.(layers\.\d+\.)?(word_embeddings|embed_tokens)")

ARCHITECTURES = tuple(_ATTENTION)


def role_of(name: str, architecture: str) -> Role | None:
    """Role of a tensor that is encoded, None for one that is kept.

    Layers after the last decoder layer (multi-token prediction) carry the same names and are
    encoded alike; their own projection `eh_proj`, head and embedding are kept.
    """
    if architecture not in _ATTENTION:
        raise ValueError(f"no rules for architecture {architecture}")
    rules: tuple[tuple[Role, str], ...] = (
        ("attention", _ATTENTION[architecture]),
        ("attention_output", _ATTENTION_OUTPUT[architecture]),
        *_MLP,
    )
    for role, pattern in rules:
        if re.fullmatch(rf"model\.layers\.\d+\.{pattern}\.weight", name):
            return role
    return None


def is_projection(name: str) -> bool:
    """Whether any of the architectures encodes a tensor of this name."""
    return any(role_of(name, architecture) is not None for architecture in ARCHITECTURES)


def is_expert(role: Role | None) -> bool:
    """Whether a role is that of a routed expert's projection."""
    return role in ("expert_gate_up", "expert_down")


def is_embedding(module: str) -> bool:
    """Whether a module path is an embedding: skip lists may or may not name those."""
    return _EMBEDDING.fullmatch(module) is not None


def scale_suffix(dialect: Dialect) -> str:
    """What follows `X.weight` in the name of its scale tensor."""
    return "_scale" if dialect.startswith("compressed-tensors") else "_scale_inv"
