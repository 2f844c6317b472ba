"""Tensor names as a tree whose numbers are folded into ranges."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingconv.records import Tensor

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Pattern:
    """Tensors whose names differ in numbers alone, of one dtype and shape."""

    name: str
    tensors: int
    dtype: str
    shape: list[int]


def _ranges(numbers: Iterable[int]) -> str:
    """`{0..3,5}`; a single number as it is."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    if len(runs) == 1 and runs[0][0] == runs[0][1]:
        return str(runs[0][0])
    texts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return "{" + ",".join(texts) + "}"


def fold(tensors: Iterable[Tensor]) -> list[Pattern]:
    """The patterns of the names, in the order in which they first appear."""
    kinds: dict[tuple[str, str, tuple[int, ...]], list[list[int]]] = defaultdict(list)
    for tensor in tensors:
        parts = tensor.name.split(".")
        numbers = [int(part) for part in parts if _NUMBER.fullmatch(part)]
        template = ".".join("*" if _NUMBER.fullmatch(part) else part for part in parts)
        kinds[template, tensor.dtype, tuple(tensor.shape)].append(numbers)
    patterns = []
    for (template, dtype, shape), rows in kinds.items():
        places = iter([_ranges(column) for column in zip(*rows, strict=True)])
        name = ".".join(next(places) if part == "*" else part for part in template.split("."))
        patterns.append(Pattern(name, len(rows), dtype, list(shape)))
    return patterns


def tree_lines(patterns: Iterable[Pattern]) -> list[tuple[str, str]]:
    """Lines of the tree: the branch, and what lies at its end."""
    root: _Node = _Node()
    for pattern in patterns:
        node = root
        for part in re.split(r"\.(?![^{]*\})", pattern.name):
            node = node.children.setdefault(part, _Node())
        node.leaves.append(pattern)
    return _lines(root, "")


class _Node:
    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.leaves: list[Pattern] = []


def _lines(node: _Node, indent: str) -> list[tuple[str, str]]:
    lines = []
    for number, (name, child) in enumerate(node.children.items(), 1):
        last = number == len(node.children)
        while not child.leaves and len(child.children) == 1:
            (step, child) = next(iter(child.children.items()))
            name = f"{name}.{step}"
        leaves = " · ".join(f"{p.tensors:,} × {p.dtype} {p.shape}" for p in child.leaves)
        lines.append((f"{indent}{'└─' if last else '├─'} {name}", leaves))
        lines += _lines(child, indent + ("   " if last else "│  "))
    return lines
