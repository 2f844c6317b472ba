"""`lingconv experts place`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.experts_stats import PARTS, steps_option
from lingconv.cli.options import PATH, Command
from lingconv.cli.room import make_room_for_arrays
from lingconv.cli.session import PROGRAM, Session, command_text
from lingconv.errors import Error, ExitCode, usage_error
from lingconv.outputs import check_file, write_file

if TYPE_CHECKING:
    from lingconv.experts import Loads, Method, Placement, Routing

_KEY = "physical_to_logical_map"
_MARK = f'{{"{_KEY}": [['


@click.command("place", cls=Command)
@click.argument("paths", metavar="LOADS…", type=PATH, nargs=-1, required=True)
@click.option("--ep", type=PARTS, metavar="N", required=True, help="Expert parallel ranks.")
@click.option(
    "--nodes",
    type=PARTS,
    metavar="K",
    default=1,
    help="Nodes of ranks: balance these first, where routing groups divide by them.",
)
@click.option(
    "--method",
    type=click.Choice(["eplb", "greedy"]),
    default="eplb",
    show_default=True,
    help="eplb: groups to nodes, experts to ranks, heaviest first; greedy: straight to ranks, "
    "then exchanges as long as they help.",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["files", "sglang"]),
    default="files",
    show_default=True,
    help="files: a map for `reshard --experts`; sglang: for --init-expert-location.",
)
@click.option("--model", type=PATH, metavar="DIR", help="Take the groups from its config.json.")
@click.option("--groups", type=PARTS, metavar="G", help="Routing groups of the model (n_group).")
@steps_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="MAP",
    help="Write the order as JSON; without, nothing is written.",
)
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    paths: tuple[Path, ...],
    ep: int,
    nodes: int,
    method: Method,
    purpose: str,
    model: Path | None,
    groups: int | None,
    steps: tuple[int, int | None] | None,
    output: Path | None,
) -> None:
    """Shows the balance before and after, and the bound that no order can beat.

    The router knows experts by number and picks among groups of them, so in files only whole
    groups and experts within a group can change places, or the model computes something else. An
    engine that is told the order keeps the router as it is and has no such limit. Redundant
    experts are not offered: the engines refuse them for this model.
    """
    make_room_for_arrays()
    from lingconv import experts

    if output is not None:
        check_file(output, marks=(_MARK,))
    routing = _routing(model, groups, purpose)
    loads = experts.read_loads(paths, steps=steps)
    if routing is not None:
        _check_model(loads, routing, model)
    limit = groups or (routing.groups if routing else 1)
    placement = experts.place(
        loads, ep=ep, nodes=nodes, groups=limit, within_groups=purpose == "files", method=method
    )
    if output is not None:
        text = json.dumps({_KEY: placement.order.tolist()}) + "\n"
        write_file(output, text, marks=(_MARK,))
    head = {"ep": ep, "nodes": nodes, "groups": limit, "method": method, "for": purpose}
    if session.console.json:
        session.console.answer_json(_as_json(head, placement, output))
    else:
        _show(session, head, placement)
    if output is not None:
        session.console.note(f"wrote the map to {output}")
    for note in loads.notes:
        session.console.note(note)
    _next(session, placement, purpose, ep, model, output)


def _routing(model: Path | None, groups: int | None, purpose: str) -> Routing | None:
    from lingconv.experts import read_routing

    if model is not None and groups is not None:
        raise usage_error("--model and --groups both say how many groups there are")
    if model is None and groups is None and purpose == "files":
        raise usage_error(
            "what files may permute depends on the model's routing groups",
            hint="name the model with --model DIR, or its n_group with --groups G",
        )
    return None if model is None else read_routing(model)


def _check_model(loads: Loads, routing: Routing, model: Path | None) -> None:
    found = loads.counts.shape
    if found != (routing.layers, routing.experts):
        text = "{} layers × {} experts in the loads, {} × {} in the model"
        raise Error(
            text.format(*found, routing.layers, routing.experts),
            kind="invalid",
            exit_code=ExitCode.INVALID,
            path=str(model),
        )


def _rows(placement: Placement, nodes: int) -> dict[str, dict[str, Any]]:
    """Before, after and the bound, over all MoE layers; `nodes` is the maximum over their mean."""
    from lingconv.experts import balance, grouped

    of_nodes = [
        balance(grouped(found.loads, nodes)).slowdown
        for found in (placement.before, placement.after)
    ]
    mean = placement.before.mean
    rows = {}
    for name, peaks, node in (
        ("before", placement.before.max, of_nodes[0]),
        ("after", placement.after.max, of_nodes[1]),
        ("bound", placement.bound, None),
    ):
        rows[name] = {
            "balancedness": float((mean / peaks).mean()),
            "max_over_mean": float(peaks.sum() / mean.sum()),
            "worst_max_over_mean": float((peaks / mean).max()),
            "nodes": node,
        }
    return rows


def _as_json(head: dict[str, Any], placement: Placement, output: Path | None) -> dict[str, Any]:
    changed = set(placement.changed.tolist())
    ratios = zip(
        placement.moe_layers.tolist(),
        placement.before.max_over_mean.tolist(),
        placement.after.max_over_mean.tolist(),
        (placement.bound / placement.before.mean).tolist(),
        strict=True,
    )
    return {
        "schema": "lingconv.experts.place/1",
        **head,
        "fixed": placement.fixed,
        "summary": _rows(placement, head["nodes"]),
        "moe_layers": [
            {
                "layer": layer,
                "before": before,
                "after": after,
                "bound": bound,
                "changed": layer in changed,
            }
            for layer, before, after, bound in ratios
        ],
        "output": None if output is None else str(output),
    }


def _show(session: Session, head: dict[str, Any], placement: Placement) -> None:
    console = session.console
    nodes = f" on {head['nodes']} nodes" if head["nodes"] > 1 else ""
    words = f"EP {head['ep']}{nodes} · {head['method']} · for {head['for']}"
    groups = f" · {head['groups']} routing groups" if head["groups"] > 1 else ""
    console.answer(f"Placement · {words}{groups}", style="bold")
    rows = [
        [
            name,
            f"{row['balancedness']:.3f}",
            f"{row['max_over_mean']:.3f}×",
            f"{row['worst_max_over_mean']:.3f}×",
            *([f"{row['nodes']:.3f}×" if row["nodes"] else "–"] if nodes else []),
        ]
        for name, row in _rows(placement, head["nodes"]).items()
    ]
    columns = ("", "balancedness", "max/mean", "worst layer", *(["of nodes"] if nodes else []))
    console.answer_table(columns, rows, right=columns[1:])
    if placement.fixed:
        console.answer(f"  {_fixed_text(head)}")
    total, changed = len(placement.moe_layers), len(placement.changed)
    kept = f", {total - changed} keep their order: a new one would not be better"
    console.answer(f"  {changed} of {total} MoE layers re-ordered{kept * (changed < total)}")


def _fixed_text(head: dict[str, Any]) -> str:
    if head["for"] == "files" and head["groups"] == head["ep"] > 1:
        reason = f"each of the {head['ep']} ranks holds one routing group"
    else:
        reason = "every rank holds one expert, or one rank all of them"
    return f"no legal permutation can change the balance between ranks: {reason}"


def _next(
    session: Session,
    placement: Placement,
    purpose: str,
    ep: int,
    model: Path | None,
    output: Path | None,
) -> None:
    if output is None:
        session.console.hint(f"write the map: `{session.command(without=('--json',))} -o map.json`")
    elif not len(placement.changed):
        session.console.note("the map changes nothing")
    elif purpose == "sglang":
        launch = f"--ep-size {ep} --init-expert-location {output}"
        session.console.hint(f"start it: `python -m sglang.launch_server … {launch}`")
    elif model is not None:
        words = ("reshard", model, "--tp", str(ep), "--ep", str(ep), "--experts", output)
        session.console.hint(f"apply it: `{command_text(*words)}`")
    else:
        session.console.hint(f"apply it: `{PROGRAM} reshard DIR … --experts {output}`")
