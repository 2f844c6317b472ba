"""Expert loads, from recordings to placement, as numpy arrays and dataclasses.

>>> from lingconv import experts
>>> loads = experts.read_loads("loads.npy")
>>> moe = loads.counts[loads.moe_layers]
>>> experts.balance(experts.grouped(moe, 32)).slowdown
"""

from __future__ import annotations

from lingconv.experts.balance import Balance, balance, check_parts, grouped
from lingconv.experts.loads import SUFFIXES, Loads, read_loads
from lingconv.experts.placement import Method, Placement, judged, place
from lingconv.experts.recorder import PATTERN
from lingconv.experts.routing import Routing, read_routing

__all__ = [
    "PATTERN",
    "SUFFIXES",
    "Balance",
    "Loads",
    "Method",
    "Placement",
    "Routing",
    "balance",
    "check_parts",
    "grouped",
    "judged",
    "place",
    "read_loads",
    "read_routing",
]
