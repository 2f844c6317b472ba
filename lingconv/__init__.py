"""lingconv: streams Mixture-of-Experts checkpoints between BF16 and FP8.

    >>> import lingconv
    >>> catalog = lingconv.Catalog.open("Ling-1T")
    >>> plan = lingconv.Plan.build(catalog, lingconv.Request("quantize", experts_only=True))
    >>> plan.summary().encode.tensors
    >>> lingconv.run(catalog, plan, "Ling-1T-fp8")

Names are imported when they are first used, so that `import lingconv` costs nothing.
"""

from __future__ import annotations

# `typing` would be half of what it takes until the command line can handle a signal.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lingconv import experts
    from lingconv.api import (
        Catalog,
        Plan,
        Request,
        __version__,
        dialects,
        expert_weights,
        finish,
        fit,
        kernels,
        presets,
        run,
        status,
        synth,
    )
    from lingconv.errors import Error
    from lingconv.records import Sample

__all__ = [
    "Catalog",
    "Error",
    "Plan",
    "Request",
    "Sample",
    "__version__",
    "dialects",
    "expert_weights",
    "experts",
    "finish",
    "fit",
    "kernels",
    "presets",
    "run",
    "status",
    "synth",
]
_MODULES = ("experts",)
_HOMES = {"Error": "lingconv.errors", "Sample": "lingconv.records"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"lingconv.{name}")
    home = _HOMES.get(name, "lingconv.api")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
