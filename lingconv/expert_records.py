"""What the core tells of the weights of experts, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lingconv.records import build, build_all


@dataclass(frozen=True)
class Projection:
    """One projection of all experts of a layer, by expert; None where there is no figure.

    `kurtosis` is the mean of x⁴ over the squared mean of x². `scales` are the `smallest` and
    `largest` of FP8, `error` the `sqnr_db` and `max_abs_error` of a comparison.
    """

    role: str
    dtypes: list[str]
    rms: list[float | None]
    absmax: list[float | None]
    kurtosis: list[float | None]
    digest: list[str | None]
    scales: dict[str, list[float | None]] | None
    error: dict[str, list[float | None]] | None


@dataclass(frozen=True)
class Router:
    """Rows of a layer's router, by expert: their lengths, and cosines to the others.

    `likeness` is the mean cosine with every column at the same size over experts.
    """

    norms: list[float]
    mean_cosine: list[float]
    likeness: list[float]
    closest: list[int]
    closest_cosine: list[float]


@dataclass(frozen=True)
class RouterBias:
    """Router bias of a layer; `pressure` is the bias less its mean, and no load."""

    mean: float
    pressure: list[float]
    all_zero: bool


@dataclass(frozen=True)
class ExpertLayer:
    """One layer with experts."""

    layer: int
    mtp: bool
    projections: list[Projection]
    router: Router | None
    bias: RouterBias | None


@dataclass(frozen=True)
class ExpertFinding:
    """Something unsound; `kind` is nonfinite, zero, duplicate, outlier or gate_row."""

    kind: str
    layer: int
    expert: int
    tensor: str
    message: str


@dataclass(frozen=True)
class ExpertWeights:
    """What the weights of experts and routers tell; `experts` is their number in a layer."""

    schema: str
    architecture: str
    experts: int
    bytes: int
    layers: list[ExpertLayer]
    findings: list[ExpertFinding]


def build_expert_weights(data: Mapping[str, Any]) -> ExpertWeights:
    """Statistics of their JSON."""
    layers = [_build_expert_layer(row) for row in data["layers"]]
    return build(
        ExpertWeights, data, layers=layers, findings=build_all(ExpertFinding, data["findings"])
    )


def _build_expert_layer(row: Mapping[str, Any]) -> ExpertLayer:
    """A layer of its JSON."""
    router, bias = row["router"], row["bias"]
    return build(
        ExpertLayer,
        row,
        projections=build_all(Projection, row["projections"]),
        router=build(Router, router) if router else None,
        bias=build(RouterBias, bias) if bias else None,
    )
