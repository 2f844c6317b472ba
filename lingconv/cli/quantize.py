"""`lingconv quantize fp8`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lingconv.cli.encoding import encoding_options, take_encoding
from lingconv.cli.options import (
    Command,
    RunOptions,
    arch_option,
    plan_options,
    run_options,
    source_argument,
)
from lingconv.cli.session import Session


@click.command("quantize", cls=Command)
@click.argument("number_format", metavar="fp8", type=click.Choice(["fp8"]))
@source_argument
@encoding_options
@arch_option
@plan_options
@run_options
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    number_format: str,
    source: Path,
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
    request = Request("quantize", **take_encoding(options), **options)
    convert(session, prepare(source, request, run), save=save, explain=explain)
