"""What a verification found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lingconv.expert_records import ExpertWeights, build_expert_weights
from lingconv.records import build, build_all


@dataclass(frozen=True)
class Finding:
    """One thing that a verification found; a note unless it is a failure."""

    category: str
    file: str
    tensor: str | None
    message: str
    failure: bool


@dataclass(frozen=True)
class Truth:
    """A source of truth and how many files of the folder it covers."""

    kind: str
    origin: str
    commit: str | None
    repository: str | None
    covers: int
    self_attested: bool
    notes: list[str]


@dataclass(frozen=True)
class FromMemory:
    """How many of the files that were to be read were not, because an earlier run had read them.

    `problem` is why what this run read is not remembered, or what was is forgotten.
    """

    files: int
    of: int
    oldest_seconds: int | None
    problem: str | None


@dataclass(frozen=True)
class LeftOut:
    """How many findings of a kind are counted only."""

    category: str
    failure: bool
    count: int


@dataclass(frozen=True)
class Verification:
    """What a verification found; `verdict` is ok, failed or unverifiable.

    `experts` is what their weights tell, where that was asked and could be told.
    """

    schema: str
    verdict: str
    level: str
    truths: list[Truth]
    files: int
    verified: int
    resumed: int
    memory: FromMemory
    bytes: int
    uncovered: list[str]
    findings: list[Finding]
    left_out: list[LeftOut]
    experts: ExpertWeights | None


def build_verification(data: Mapping[str, Any]) -> Verification:
    """Findings of their JSON."""
    return build(
        Verification,
        data,
        truths=build_all(Truth, data["truths"]),
        memory=build(FromMemory, data["memory"]),
        findings=build_all(Finding, data["findings"]),
        left_out=build_all(LeftOut, data["left_out"]),
        experts=build_expert_weights(data["experts"]) if data["experts"] else None,
    )
