"""What `experts stats` says of recorded loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingconv.cli import heatmap
from lingconv.cli.room import make_room_for_arrays
from lingconv.cli.session import Session, command_text
from lingconv.errors import ExitCode, usage_error

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.experts import Balance, Loads

NAMED = 5


def judge(
    session: Session,
    paths: tuple[Path, ...],
    *,
    ep: int | None,
    nodes: int | None,
    steps: tuple[int, int | None] | None,
    max_imbalance: float | None,
) -> int:
    """Measure the balance of loads and show it; a layer above `max_imbalance` fails."""
    make_room_for_arrays()
    from lingconv import experts

    if nodes is not None and ep is None:
        raise usage_error("--nodes needs --ep: nodes are made of ranks")
    loads = experts.read_loads(paths, steps=steps)
    moe = loads.counts[loads.moe_layers]
    measured = {"experts": experts.balance(moe)}
    if ep is not None:
        experts.check_parts(moe.shape[1], ep, nodes)
        measured["ranks"] = experts.balance(experts.grouped(moe, ep))
    if nodes is not None:
        measured["nodes"] = experts.balance(experts.grouped(moe, nodes))
    judged = "experts" if ep is None else "ranks"
    over = _above(loads, measured[judged], max_imbalance)
    console = session.console
    if console.json:
        console.answer_json(_as_json(loads, measured, ep, nodes, judged, max_imbalance, over))
    else:
        _show(console, loads, measured, ep, nodes)
    for note in loads.notes:
        console.note(note)
    if over:
        worst = max(over, key=lambda row: row[1])
        text = f"{len(over)} layers above --max-imbalance {max_imbalance:g}"
        console.warn(f"{text}; worst: layer {worst[0]}, {judged} {worst[1]:.3f}× their mean")
    if ep is not None and ep > 1:
        cut = ["--ep", str(ep)] + ([] if nodes is None else ["--nodes", str(nodes)])
        place = command_text("experts", "place", *paths, *cut, "-o", "map.json")
        console.hint(f"balance it: `{place} --model DIR`")
    return ExitCode.CHECK if over else ExitCode.DONE


def _above(loads: Loads, judged: Balance, limit: float | None) -> list[tuple[int, float]]:
    """Layers whose maximum is more than `limit` times their mean."""
    if limit is None:
        return []
    pairs = zip(loads.moe_layers.tolist(), judged.max_over_mean.tolist(), strict=True)
    return [(layer, ratio) for layer, ratio in pairs if ratio > limit]


def _as_json(
    loads: Loads,
    measured: dict[str, Balance],
    ep: int | None,
    nodes: int | None,
    judged: str,
    limit: float | None,
    over: list[tuple[int, float]],
) -> dict[str, Any]:
    layers = [
        {"layer": layer}
        | _extremes(loads.counts[layer].tolist())
        | {part: _row(found, row) for part, found in measured.items()}
        for row, layer in enumerate(loads.moe_layers.tolist())
    ]
    return {
        "schema": "lingconv.experts.loads/1",
        "files": loads.files,
        "steps": loads.steps,
        "idle_steps": loads.idle_steps,
        "layers": loads.counts.shape[0],
        "experts": loads.counts.shape[1],
        "dense_layers": loads.dense_layers.tolist(),
        "ep": ep,
        "nodes": nodes,
        "summary": {part: _summary(loads, found) for part, found in measured.items()},
        "moe_layers": layers,
        "check": None
        if limit is None
        else {
            "of": judged,
            "max_imbalance": limit,
            "passed": not over,
            "above": [{"layer": layer, "max_over_mean": ratio} for layer, ratio in over],
        },
        "notes": loads.notes,
    }


def _extremes(counts: list[float]) -> dict[str, Any]:
    """The hottest and coldest experts with their counts, and those never used."""
    order = sorted(range(len(counts)), key=lambda expert: (-counts[expert], expert))
    return {
        "hottest": [{"expert": e, "count": counts[e]} for e in order[:NAMED]],
        "coldest": [{"expert": e, "count": counts[e]} for e in order[: -NAMED - 1 : -1]],
        "unused": [expert for expert in sorted(order) if counts[expert] == 0],
    }


_MEASURES = ("mean", "max", "balancedness", "max_over_mean", "cv", "gini")


def _row(found: Balance, row: int) -> dict[str, Any]:
    return {name: float(getattr(found, name)[row]) for name in _MEASURES}


def _summary(loads: Loads, found: Balance) -> dict[str, Any]:
    worst = int(found.max_over_mean.argmax())
    means = {name: float(getattr(found, name).mean()) for name in _MEASURES[2:]}
    return means | {
        "slowdown": found.slowdown,
        "worst_layer": int(loads.moe_layers[worst]),
        "worst_max_over_mean": float(found.max_over_mean[worst]),
    }


def _show(
    console: Console,
    loads: Loads,
    measured: dict[str, Balance],
    ep: int | None,
    nodes: int | None,
) -> None:
    _show_head(console, loads)
    _show_map(console, loads, measured["experts"])
    console.answer("")
    if console.verbose:
        _show_layers(console, loads, measured)
        console.answer("")
    rows = []
    names = {"experts": "experts", "ranks": f"EP {ep} ranks", "nodes": f"{nodes} nodes"}
    for part, found in measured.items():
        summary = _summary(loads, found)
        rows.append(
            [
                names[part],
                f"{summary['balancedness']:.3f}",
                f"{found.slowdown:.2f}×",
                f"{summary['worst_max_over_mean']:.2f}× in layer {summary['worst_layer']}",
                f"{summary['cv']:.3f}",
                f"{summary['gini']:.3f}",
            ]
        )
    columns = ("", "balancedness", "max/mean", "worst", "CV", "Gini")
    console.answer_table(columns, rows, right=columns[1:3] + columns[4:])
    console.answer(
        "  balancedness = mean/max; all are means over layers, max/mean is Σ max / Σ mean"
    )


def _show_layers(console: Console, loads: Loads, measured: dict[str, Balance]) -> None:
    """All measures of every layer, and its hottest and coldest experts."""
    found = measured["experts"]
    parts = [part for part in measured if part != "experts"]
    columns = ["layer", "mean", "max", "×mean", "CV", "Gini", *(f"{p} ×mean" for p in parts)]
    rows = []
    for row, layer in enumerate(loads.moe_layers.tolist()):
        extremes = _extremes(loads.counts[layer].tolist())
        cells = [f"{found.mean[row]:,.6g}", f"{found.max[row]:,.6g}"]
        cells += [f"{found.max_over_mean[row]:.2f}", f"{found.cv[row]:.3f}"]
        cells += [f"{found.gini[row]:.3f}"]
        cells += [f"{measured[part].max_over_mean[row]:.2f}" for part in parts]
        ends = [" ".join(str(e["expert"]) for e in extremes[k]) for k in ("hottest", "coldest")]
        rows.append([str(layer), *cells, *ends])
    console.answer_table([*columns, "hottest", "coldest"], rows, right=columns)


def _show_head(console: Console, loads: Loads) -> None:
    layers, experts = loads.counts.shape
    dense = len(loads.dense_layers)
    kinds = f"{layers} layers ({dense} dense, {layers - dense} MoE)"
    total = loads.counts.sum()
    steps = "1 step" if loads.steps == 1 else f"{loads.steps:,} steps"
    steps += f" ({loads.idle_steps:,} idle)" if loads.idle_steps else ""
    console.answer(f"{kinds} · {experts} experts · {steps} · {total:,} choices", style="bold")


def _show_map(console: Console, loads: Loads, found: Balance) -> None:
    experts = loads.counts.shape[1]
    width = heatmap.columns_of(experts)
    columns = -(-experts // width)
    shared = "a column an expert" if width == 1 else f"hottest of {width} experts a column"
    console.answer(f"{'':4}{shared:<{columns}}{'×mean':>6}{'none':>6}", style="dim")
    rows = zip(loads.moe_layers.tolist(), found.loads.tolist(), strict=True)
    for row, (layer, counts) in enumerate(rows):
        tail = f"{found.max_over_mean[row]:6.2f}{counts.count(0) or '':>6}".rstrip()
        console.answer_spans([(f"L{layer:02} ", "dim"), *heatmap.spans(counts), (tail, "")])
    console.answer(f"    {heatmap.LEGEND}", style="dim")
