"""What the core is asked for, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Reshard:
    """How many ranks of each kind, and for which engine; `target` is that of `target()`."""

    target: str
    target_file: str | None = None
    tp: int = 1
    pp: int = 1
    ep: int = 1
    pp_layers: list[int] = field(default_factory=list)
    shard_size: int = 5_000_000_000
    format: Literal["fp8"] | None = None
    keep_mtp: bool = False
    rank: dict[str, int] | None = None
    partial: bool = False
    link: Literal["auto", "reflink", "hardlink", "symlink", "copy"] = "auto"
    experts: str | None = None


@dataclass(frozen=True)
class Request:
    """What is asked for. Files of the user are given as text: plans hold no paths."""

    verb: Literal["quantize", "dequantize", "reshard"]
    reshard: Reshard | None = None
    dialect: str = "deepseek"
    dialect_file: str | None = None
    arch_file: str | None = None
    scale: Literal["f32", "ue8m0"] = "f32"
    scale_arith: Literal["ieee", "cuda"] = "ieee"
    only: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)
    experts_only: bool = False
    keep_nonfinite: bool = False
    drop_mtp: bool = False
    rope_yarn: float | None = None
    prove: bool = False
    report: bool = False
