"""Dealing out items of different load to parts that hold equally many."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from lingconv.experts.balance import Floats

Parts = list[list[int]]


def pack(loads: Sequence[float], parts: int) -> Parts:
    """Heaviest first, each item to the lightest part with room.

    Of equal loads the lower item comes first, of equal parts the lower one is taken. The items of
    a part are in ascending order.
    """
    room = len(loads) // parts
    packed: Parts = [[] for _ in range(parts)]
    open_parts = [(0.0, part) for part in range(parts)]
    for item in sorted(range(len(loads)), key=lambda i: (-loads[i], i)):
        load, part = heapq.heappop(open_parts)
        packed[part].append(item)
        if len(packed[part]) < room:
            heapq.heappush(open_parts, (load + loads[item], part))
    return [sorted(part) for part in packed]


def swap_down(loads: Floats, packed: Parts) -> Parts:
    """Exchange items of the heaviest part with lighter ones as long as that lowers its load.

    Each time the exchange is taken after which the heavier of the two parts is lightest; there
    are at most as many exchanges as items.
    """
    room, parts = len(packed[0]), len(packed)
    items = np.array(packed)
    values = loads[items]
    for _ in range(len(loads) if parts > 1 else 0):
        sums = values.sum(axis=1)
        heaviest = int(sums.argmax())
        others = np.delete(np.arange(parts), heaviest)
        # [items of the heaviest, parts, their items]: by how much the heaviest gets lighter.
        less = values[heaviest][:, np.newaxis, np.newaxis] - values[others]
        after = np.maximum(sums[heaviest] - less, sums[others][:, np.newaxis] + less)
        best = int(after.argmin())
        if not after.flat[best] < sums[heaviest]:
            break
        mine, other, theirs = np.unravel_index(best, (room, parts - 1, room))
        here, there = (heaviest, int(mine)), (int(others[other]), int(theirs))
        for array in (items, values):
            array[here], array[there] = array[there], array[here]
    return [sorted(part) for part in items.tolist()]


def least_peak(loads: Sequence[float], parts: int) -> float:
    """A load that the heaviest part reaches, however items are dealt out equally many a part.

    One part has at least the mean. And of the j · parts + 1 heaviest items, one part has at least
    j + 1; those weigh no less than the lightest j + 1 among them, and what fills the part no less
    than the lightest items of all.
    """
    room = len(loads) // parts
    ascending = np.sort(np.asarray(loads, np.float64))
    below = np.concatenate([[0.0], ascending.cumsum()])
    bound = below[-1] / parts
    for more in range(room):
        first = len(loads) - (more * parts + 1)
        crowded = below[first + more + 1] - below[first]
        bound = max(bound, crowded + below[room - more - 1])
    return float(bound)
