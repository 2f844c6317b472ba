"""`lingconv experts stats`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli import heatmap
from lingconv.cli.options import FOLDER, Command, Parsed, arch_option, jobs_option
from lingconv.cli.session import Session, command_text
from lingconv.errors import ExitCode, usage_error

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.experts import Balance, Loads

PARTS = click.IntRange(min=1, max=4096)
NAMED = 5


def _steps(text: str) -> tuple[int, int | None]:
    """A half-open range `A:B` of steps; either end may be left out."""
    first, colon, last = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, last)):
        raise ValueError(f"{text!r} is no range of steps such as 100:200")
    return int(first or 0), int(last) if last else None


steps_option = click.option(
    "--steps",
    type=Parsed("range", _steps),
    metavar="A:B",
    help="Only the recorded steps from A up to B, counted from 0.",
)


def _threshold(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise ValueError(f"{text} is below 1, and no maximum is below its mean")
    return value


@click.command("stats", cls=Command)
@click.argument("paths", metavar="[SRC|LOADS]…", type=FOLDER, nargs=-1)
@click.option("--ep", type=PARTS, metavar="N", help="Balance between N expert parallel ranks.")
@click.option("--nodes", type=PARTS, metavar="K", help="Balance between K nodes of ranks, too.")
@steps_option
@click.option(
    "--max-imbalance",
    type=Parsed("ratio", _threshold),
    metavar="X",
    help="Fail if a layer's maximum is more than X times its mean: of ranks with --ep, else "
    "of experts.",
)
@click.option(
    "--against",
    type=FOLDER,
    metavar="DIR",
    help="Of a checkpoint: the same in the other format, FP8 or BF16; measures the error.",
)
@arch_option
@jobs_option
@click.pass_obj
def command(session: Session, /, *, paths: tuple[Path, ...], **options: Any) -> int:
    """A folder of safetensors is looked into; anything else holds recorded loads.

    Of a checkpoint, every expert is read once: experts of zeros, twins, those far larger or
    smaller than the others of their layer, NaN, and gate rows unlike the others fail. The router
    bias tells how much correction training needed. Weights never tell load.

    LOADS are recorder dumps of SGLang (.pt; files of several ranks, or their folder), or
    logical_count [layers, experts] or [steps, layers, experts] in .json, .npy or .npz, or .csv
    with layer,expert,count.
    """
    paths = paths or (Path(),)
    of_weights = {name: options.pop(name) for name in ("against", "arch_file")}
    if not _is_checkpoint(paths[0]):
        _refuse(of_weights, "a checkpoint, not recorded loads")
        return _of_loads(session, paths, **options)
    _refuse(options, "recorded loads, not a checkpoint")
    if len(paths) > 1:
        raise usage_error("one checkpoint at a time", path=str(paths[1]))
    from lingconv.cli.expert_weights import examine

    return examine(session, paths[0], **of_weights)


def _refuse(options: dict[str, Any], needed: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        name = given[0].removesuffix("_file").replace("_", "-")
        raise usage_error(f"--{name} needs {needed}")


def _is_checkpoint(path: Path) -> bool:
    if not path.is_dir():
        return False
    from lingconv.experts import PATTERN

    return any(path.glob("*.safetensors*")) or not any(path.glob(PATTERN))


def _of_loads(
    session: Session,
    paths: tuple[Path, ...],
    *,
    ep: int | None,
    nodes: int | None,
    steps: tuple[int, int | None] | None,
    max_imbalance: float | None,
) -> int:
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
