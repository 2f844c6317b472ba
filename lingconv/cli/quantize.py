"""`lingconv quantize fp8`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from lingconv.cli.options import (
    Command,
    RunOptions,
    arch_option,
    dialect_file_option,
    plan_options,
    run_options,
    source_argument,
)
from lingconv.cli.session import Session


def _complete_dialect(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from lingconv.api import dialects

    found = [d for d in dialects() if d.name.startswith(incomplete)]
    return [CompletionItem(d.name, help=d.description) for d in found]


@click.command("quantize", cls=Command)
@click.argument("number_format", metavar="fp8", type=click.Choice(["fp8"]))
@source_argument
@click.option(
    "--dialect",
    default="deepseek",
    show_default=True,
    metavar="NAME",
    shell_complete=_complete_dialect,
    help="How scales are spelled and computed; `lingconv env` lists the names.",
)
@click.option(
    "--scale",
    type=click.Choice(["f32", "ue8m0"]),
    default="f32",
    show_default=True,
    help="ue8m0: powers of two, as Blackwell engines want them.",
)
@click.option(
    "--scale-arith",
    type=click.Choice(["ieee", "cuda"]),
    default="ieee",
    show_default=True,
    help="cuda: the division of a GPU, to reproduce a checkpoint cast on one.",
)
@click.option("--only", multiple=True, metavar="GLOB", help="Encode only these tensors.")
@click.option("--skip", multiple=True, metavar="GLOB", help="Never encode these tensors.")
@click.option("--experts-only", is_flag=True, help="Encode routed experts alone.")
@click.option(
    "--nonfinite",
    type=click.Choice(["fail", "keep"]),
    default="fail",
    show_default=True,
    help="keep: leave a tensor with NaN or infinity unquantised, and list it.",
)
@click.option("--prove", is_flag=True, help="Check the laws of encoding on every tensor.")
@click.option("--report", is_flag=True, help="Measure the error of every encoded tensor.")
@arch_option
@dialect_file_option
@plan_options
@run_options
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    number_format: str,
    source: Path,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    nonfinite: str,
    save: Path | None,
    explain: str | None,
    **options: Any,
) -> None:
    """DST is by default a sibling of SRC: SRC-fp8, or SRC-fp8-DIALECT.

    --only and --skip match full tensor names, may be repeated, and never select 1-D tensors or
    those that are not float.
    """
    from lingconv.api import Request
    from lingconv.cli.convert import convert, prepare

    del number_format  # there is one so far
    run = RunOptions.take(options)
    request = Request(
        "quantize",
        only=list(only),
        skip=list(skip),
        keep_nonfinite=nonfinite == "keep",
        **options,
    )
    convert(session, prepare(source, request, run), save=save, explain=explain)
