"""How evenly loads are spread over experts, ranks and nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import Error, ExitCode
from lingconv.experts.bounds import Numbers

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Balance:
    """Measures of loads [layers, parts], one of each a layer; parts are experts, ranks or nodes.

    - `balancedness`: mean / max, as vLLM and SGLang define it; 1 is even
    - `max_over_mean`: its inverse; how many times longer the slowest part takes than the mean
    - `cv`: population standard deviation / mean
    - `gini`: Σ|xi − xj| / (2 n² mean); 0 is even, (n − 1) / n one part with everything
    """

    loads: Floats
    mean: Floats
    max: Floats
    balancedness: Floats
    max_over_mean: Floats
    cv: Floats
    gini: Floats

    @property
    def slowdown(self) -> float:
        """Σ max / Σ mean: how much longer all layers take than evenly spread, one after another."""
        return float(self.max.sum() / self.mean.sum())


def balance(loads: Numbers) -> Balance:
    """Measure loads [layers, parts], none of whose layers is all zero."""
    values = np.asarray(loads, np.float64)
    parts = values.shape[1]
    mean, peak = values.mean(axis=1), values.max(axis=1)
    # In ascending order, Σ over pairs of |xi − xj| is 2 Σ (2 i − n − 1) x_i, with i from 1.
    weights = 2 * np.arange(1, parts + 1) - parts - 1
    gini = (np.sort(values, axis=1) * weights).sum(axis=1) / (parts**2 * mean)
    return Balance(
        loads=values,
        mean=mean,
        max=peak,
        balancedness=mean / peak,
        max_over_mean=peak / mean,
        cv=values.std(axis=1) / mean,
        gini=gini,
    )


def grouped(counts: Numbers, parts: int) -> Numbers:
    """Loads [layers, parts] of equal contiguous parts of experts, as ranks and nodes hold them."""
    layers, experts = counts.shape
    summed: Numbers = counts.reshape(layers, parts, experts // parts).sum(axis=2)
    return summed


def check_parts(experts: int, ep: int, nodes: int | None = None) -> None:
    """Refuse ranks that would hold unequally many experts, and nodes unequally many ranks."""
    if experts % ep:
        raise _uneven(f"{experts:,} experts do not divide by EP {ep:,}")
    if nodes is not None and ep % nodes:
        raise _uneven(f"EP {ep:,} does not divide by {nodes:,} nodes")


def _uneven(message: str) -> Error:
    return Error(message, kind="impossible", exit_code=ExitCode.IMPOSSIBLE)
