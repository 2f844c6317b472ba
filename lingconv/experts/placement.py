"""Orders of experts that balance recorded loads between ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import Error, ExitCode
from lingconv.experts.balance import Balance, Floats, balance, check_parts, grouped
from lingconv.experts.loads import Loads
from lingconv.experts.packing import Parts, least_peak, pack, swap_down

Method = Literal["eplb", "greedy"]
Deal = Callable[[Sequence[float], int], Parts]


@dataclass(frozen=True)
class Placement:
    """An order of the experts for every layer, and what it is good for.

    `order` is [layers, experts]: position q holds the old expert order[l, q]; ranks hold equal
    contiguous parts of the positions. `changed` numbers the layers that get another order. With
    `fixed`, no allowed order changes the balance between ranks. `before`, `after` are balances of
    the MoE layers between ranks; `bound` [MoE layers] is a maximum over ranks that no allowed
    order goes below.
    """

    order: NDArray[np.int64]
    moe_layers: NDArray[np.int64]
    changed: NDArray[np.int64]
    fixed: bool
    before: Balance
    after: Balance
    bound: Floats


@dataclass(frozen=True)
class _Cut:
    """Into what the experts of a layer are dealt out, and what may be moved."""

    ep: int
    nodes: int
    groups: int
    within_groups: bool
    deal: Deal

    def order(self, loads: Floats) -> list[int]:
        """The new order of one layer."""
        if self.within_groups and self.groups > 1:
            return self._by_groups(loads)
        experts = list(range(len(loads)))
        if self.groups % self.nodes or self.nodes == 1:
            return _joined(self._dealt(experts, loads, self.ep))
        nodes = self._groups_of_nodes(loads)
        ranks = self.ep // self.nodes
        return _joined([_joined(self._dealt(node, loads, ranks)) for node in nodes])

    def _dealt(self, experts: list[int], loads: Floats, parts: int) -> Parts:
        """Some experts into parts."""
        packed = self.deal(loads[experts].tolist(), parts)
        return [[experts[item] for item in part] for part in packed]

    def _groups(self, loads: Floats) -> tuple[Parts, Floats]:
        members = np.arange(len(loads)).reshape(self.groups, -1)
        return members.tolist(), loads[members].sum(axis=1)

    def _groups_of_nodes(self, loads: Floats) -> Parts:
        """The experts of each node, whole groups."""
        members, weights = self._groups(loads)
        packed = self.deal(weights.tolist(), self.nodes)
        return [_joined([members[group] for group in node]) for node in packed]

    def _by_groups(self, loads: Floats) -> list[int]:
        members, weights = self._groups(loads)
        nodes = self.nodes if self.groups % self.nodes == 0 else 1
        chosen = self.deal(weights.tolist(), nodes)
        if self.ep < self.groups:
            ranks = self.ep // nodes
            chosen = [
                _joined(
                    [[node[i] for i in part] for part in self.deal(weights[node].tolist(), ranks)]
                )
                for node in chosen
            ]
            return _joined([members[group] for group in _joined(chosen)])
        ranks = self.ep // self.groups
        return _joined(
            [_joined(self._dealt(members[group], loads, ranks)) for group in _joined(chosen)]
        )


def _joined(parts: Parts) -> list[int]:
    return [item for part in parts for item in part]


def _greedy(loads: Sequence[float], parts: int) -> Parts:
    return swap_down(np.asarray(loads, np.float64), pack(loads, parts))


def place(
    loads: Loads,
    *,
    ep: int,
    nodes: int = 1,
    groups: int = 1,
    within_groups: bool = True,
    method: Method = "eplb",
) -> Placement:
    """Order the experts of every layer so that the busiest of `ep` ranks has less to do.

    With `within_groups`, an order keeps each of `groups` contiguous routing groups together, as
    files must; else groups only say which experts should share a node. `eplb` packs groups to
    nodes, where `groups` is a multiple of `nodes`, and then experts to ranks, as DeepSeek's
    balancer does without redundant experts; `greedy` packs straight to ranks and then exchanges
    experts of the busiest rank while that helps. A layer keeps its order unless the new one
    is better. The same loads give the same order anywhere.

    Raises `Error` 5 where experts, ranks, groups and nodes do not divide.
    """
    layers, experts = loads.counts.shape
    check_parts(experts, ep, nodes)
    _check_groups(experts, ep, groups, within_groups=within_groups)
    limited = within_groups and groups > 1
    cut = _Cut(ep, nodes if method == "eplb" else 1, groups, within_groups, _DEALS[method])
    moe = loads.moe_layers
    counts = loads.counts[moe].astype(np.float64)
    order = np.tile(np.arange(experts), (layers, 1))
    for layer, row in zip(moe.tolist(), counts, strict=True):
        new = np.array(cut.order(row))
        if _peaks(row[new], ep, nodes) < _peaks(row, ep, nodes):
            order[layer] = new
    return judged(loads, order, ep=ep, groups=groups if limited else 1)


def judged(loads: Loads, order: NDArray[np.int64], *, ep: int, groups: int = 1) -> Placement:
    """What an order [layers, experts] is good for; `groups` limit what others there could be."""
    experts, moe = loads.counts.shape[1], loads.moe_layers
    check_parts(experts, ep)
    counts = loads.counts[moe].astype(np.float64)
    moved = np.take_along_axis(counts, order[moe], axis=1)
    return Placement(
        order=order,
        moe_layers=moe,
        changed=np.flatnonzero((order != np.arange(experts)).any(axis=1)),
        fixed=ep in (1, experts) or (groups > 1 and ep == groups),
        before=balance(grouped(counts, ep)),
        after=balance(grouped(moved, ep)),
        bound=np.array([_bound(row, ep, groups) for row in counts]),
    )


_DEALS: dict[Method, Deal] = {"eplb": pack, "greedy": _greedy}


def _peaks(loads: Floats, ep: int, nodes: int) -> tuple[float, float]:
    """The busiest rank, and between equals the busiest node."""
    ranks = loads.reshape(ep, -1).sum(axis=1)
    return float(ranks.max()), float(ranks.reshape(nodes, -1).sum(axis=1).max())


def _bound(loads: Floats, ep: int, groups: int) -> float:
    """A load that the busiest rank reaches in every allowed order."""
    by_group = loads.reshape(groups, -1)
    if groups == 1:
        return least_peak(loads.tolist(), ep)
    if ep <= groups:
        return least_peak(by_group.sum(axis=1).tolist(), ep)
    return max(least_peak(group, ep // groups) for group in by_group.tolist())


def _check_groups(experts: int, ep: int, groups: int, *, within_groups: bool) -> None:
    reason = None
    if experts % groups:
        reason = f"{experts:,} experts do not divide into {groups:,} groups"
    elif within_groups and ep % groups and groups % ep:
        reason = f"EP {ep:,} and {groups:,} routing groups: ranks would hold parts of groups"
    if reason:
        raise Error(reason, kind="impossible", exit_code=ExitCode.IMPOSSIBLE)
