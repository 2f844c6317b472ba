"""What `experts stats` says of a checkpoint."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lingconv.cli.session import Session
from lingconv.errors import ExitCode, Interrupted, cancelled
from lingconv.units import size_text

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.expert_records import ExpertLayer, ExpertWeights, Projection

NAMED = 20


def examine(
    session: Session, source: Path, *, against: Path | None, arch_file: str | None
) -> ExitCode:
    """Look at all experts and say what they are like; findings fail."""
    from lingconv import api

    catalog = api.Catalog.open(source, arch_file=arch_file)
    other = None if against is None else api.Catalog.open(against, arch_file=arch_file)
    try:
        with session.reporting() as reporter:
            found = api.expert_weights(
                catalog,
                against=other,
                jobs=session.settings.jobs.value,
                kernel=session.settings.kernel.value,
                on_progress=reporter,
            )
    except Interrupted as stop:
        raise cancelled(
            stop.number,
            "nothing was written",
            path=str(source),
            hint=f"begin anew with `{session.command()}`",
        ) from stop
    if session.console.json:
        session.console.answer_json(asdict(found))
    else:
        show(session.console, found, source)
        _judge(session.console, found)
    return ExitCode.CHECK if found.findings else ExitCode.DONE


def show(console: Console, found: ExpertWeights, source: Path) -> None:
    """The figures, a row a layer."""
    read = size_text(found.bytes)
    layers = f"{len(found.layers)} layers of {found.experts} experts"
    console.answer(f"{source} · {found.architecture} · {layers} · {read} read", style="bold")
    columns = [name for name, cell in COLUMNS.items() if any(map(cell, found.layers))]
    rows = [[COLUMNS[name](layer) or "–" for name in columns] for layer in found.layers]
    console.answer_table(columns, rows, right=columns[1:])
    console.answer(
        "  medians and extremes over experts; spread = largest/smallest RMS; bias pressure = "
        "router bias less its mean, no load",
        style="dim",
    )


def _judge(console: Console, found: ExpertWeights) -> None:
    for finding in found.findings[:NAMED]:
        console.answer(
            f"FAIL  {finding.kind:<9} layer {finding.layer} expert {finding.expert} "
            f"{finding.tensor}: {finding.message}"
        )
    if len(found.findings) > NAMED:
        console.answer(f"…     and {len(found.findings) - NAMED} more; --json lists all")
    kinds = Counter(finding.kind for finding in found.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    verdict = f"{len(found.findings)} findings: {counts}" if counts else "nothing unsound found"
    console.answer(verdict, style="bold")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median_of(role: str) -> Callable[[ExpertLayer], str]:
    """Median RMS of one projection."""

    def cell(layer: ExpertLayer) -> str:
        of_role = (p for p in layer.projections if p.role == role)
        known = [value for p in of_role for value in _known(p.rms)]
        return f"{statistics.median(known):.2e}" if known else ""

    return cell


def _spread(layer: ExpertLayer) -> str:
    positive = ([v for v in _known(p.rms) if v > 0] for p in layer.projections)
    ratios = [max(known) / min(known) for known in positive if known]
    return f"{max(ratios):.2f}×" if ratios else ""


def _extreme(
    values: Callable[[Projection], Iterable[float | None]],
    choose: Callable[[list[float]], float],
    text: str,
) -> Callable[[ExpertLayer], str]:
    """One figure of all projections and experts of a layer."""

    def cell(layer: ExpertLayer) -> str:
        known = [value for p in layer.projections for value in _known(values(p))]
        return format(choose(known), text) if known else ""

    return cell


def _of_scales(name: str) -> Callable[[Projection], list[float | None]]:
    return lambda projection: (projection.scales or {}).get(name, [])


def _sqnr(projection: Projection) -> list[float | None]:
    return (projection.error or {}).get("sqnr_db", [])


def _likeness(layer: ExpertLayer) -> str:
    router = layer.router
    return f"{statistics.median(router.likeness):.3f}" if router else ""


def _closest(layer: ExpertLayer) -> str:
    return f"{max(layer.router.closest_cosine):.3f}" if layer.router else ""


def _mean_bias(layer: ExpertLayer) -> str:
    if layer.bias is None:
        return ""
    return "all zero" if layer.bias.all_zero else f"{layer.bias.mean:+.1e}"


def _pressure(layer: ExpertLayer) -> str:
    bias = layer.bias
    return f"{min(bias.pressure):+.3f} … {max(bias.pressure):+.3f}" if bias else ""


COLUMNS: dict[str, Callable[[ExpertLayer], str]] = {
    "": lambda layer: f"L{layer.layer:02}{' MTP' if layer.mtp else ''}",
    "RMS gate": _median_of("expert.gate"),
    "up": _median_of("expert.up"),
    "down": _median_of("expert.down"),
    "spread": _spread,
    "absmax": _extreme(lambda p: p.absmax, max, ".2e"),
    "kurtosis": _extreme(lambda p: p.kurtosis, max, ".1f"),
    "least scale": _extreme(_of_scales("smallest"), min, ".1e"),
    "largest": _extreme(_of_scales("largest"), max, ".1e"),
    "least SQNR": _extreme(_sqnr, min, ".1f"),
    "likeness": _likeness,
    "closest": _closest,
    "bias": _mean_bias,
    "bias pressure": _pressure,
}
