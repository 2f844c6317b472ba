"""Folded names of tensors as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingconv.records import TensorPattern


def tree_lines(patterns: Iterable[TensorPattern]) -> list[tuple[str, str]]:
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
        self.leaves: list[TensorPattern] = []


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
