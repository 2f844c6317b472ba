"""`lingconv fit`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.options import SIZE, Command, arch_option, source_argument
from lingconv.cli.session import Session, command_text
from lingconv.cli.targets import take_target, target_options
from lingconv.units import size_text

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.records import Fit, Split

AT_LEAST_ONE = click.IntRange(min=1)


@click.command("fit", cls=Command)
@source_argument
@click.option("--gpus", type=AT_LEAST_ONE, default=8, show_default=True, help="GPUs: TP × PP.")
@click.option("--gpu-memory", type=SIZE, default="80G", show_default=True, help="Bytes of one GPU.")
@click.option(
    "--gpu-memory-utilization",
    "utilization",
    type=click.FloatRange(min=0, max=1, min_open=True),
    default=0.85,
    show_default=True,
    help="Share that weights and KV cache may take; the rest is for activations and the engine.",
)
@click.option(
    "--max-model-len",
    type=AT_LEAST_ONE,
    metavar="TOKENS",
    help="Longest sequence; default: what config.json says that the model can take.",
)
@click.option(
    "--max-num-seqs",
    type=AT_LEAST_ONE,
    default=1,
    show_default=True,
    metavar="N",
    help="Sequences of that length at a time.",
)
@click.option(
    "--format", "number_format", type=click.Choice(["fp8"]), help="As if encoded to this."
)
@target_options
@arch_option
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    source: Path,
    number_format: str | None,
    arch_file: str | None,
    **options: Any,
) -> None:
    """Shows what the fullest rank of every split holds, and why a split cannot work.

    Reads headers only. The KV cache is counted in BF16, with the copies that ranks hold where there
    are more of them than KV heads.
    """
    from lingconv import api

    layout = api.Reshard(**take_target(options), format="fp8" if number_format else None)
    request = api.Request("reshard", layout, arch_file=arch_file)
    catalog = api.Catalog.open(source, arch_file=arch_file)
    found = api.fit(catalog, request, **options)
    console = session.console
    if console.json:
        console.answer_json({"schema": "lingconv.fit/1", "source": str(source)} | asdict(found))
    else:
        _show(console, found)
    for warning in found.warnings:
        console.warn(warning)
    best = _best(found)
    if best is None:
        console.warn(f"no split of {found.gpus} GPUs fits")
    else:
        console.hint(f"cut it so: `{_command(source, layout, best)}`")


def _show(console: Console, found: Fit) -> None:
    tokens = f"{found.max_num_seqs:,} × {found.max_model_len:,} tokens"
    each = "unknown" if found.kv_bytes_per_token is None else f"{found.kv_bytes_per_token:,} bytes"
    console.answer(
        f"{found.target} · {found.gpus} GPUs, {size_text(found.usable)} usable of each · "
        f"KV cache of {tokens}, {each} a token over all ranks",
        style="bold",
    )
    columns = ("TP", "PP", "EP", "cuts", "KV copies", "weights", "KV cache", "fullest rank", "fits")
    right = ("TP", "PP", "EP", "KV copies", "weights", "KV cache", "fullest rank")
    console.answer_table(columns, [_row(row) for row in found.rows], right=right)
    for row in found.rows:
        if row.problems:
            console.answer(f"  TP {row.tp} × PP {row.pp} × EP {row.ep} cannot work:")
            console.answer("\n".join(f"    {problem}" for problem in row.problems))


def _row(row: Split) -> list[str]:
    sizes = [str(row.tp), str(row.pp), str(row.ep)]
    if row.problems:
        return [*sizes, f"{len(row.problems)} not even", "", "", "", "", "no"]
    held = [size_text(size) for size in (row.weights, row.kv_cache, row.bytes)]
    return [*sizes, "even", str(row.kv_copies), *held, "yes" if row.fits else "no"]


def _best(found: Fit) -> Split | None:
    """Of the splits that fit the one with the most room, and of these the one of fewest stages."""
    fitting = [row for row in found.rows if row.fits]
    return min(fitting, key=lambda row: (row.bytes, row.pp), default=None)


def _command(source: Path, layout: Any, row: Split) -> str:
    words = ["--tp", row.tp, "--pp", row.pp, *(["--ep", row.ep] if row.ep > 1 else [])]
    target = [] if layout.target_file else ["--target", layout.target]
    encoded = ["--format", layout.format] if layout.format else []
    return command_text("reshard", source, *map(str, (*words, *target, *encoded)))
