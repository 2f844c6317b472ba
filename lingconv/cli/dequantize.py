"""`lingconv dequantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lingconv.cli.options import (
    Command,
    RunOptions,
    arch_option,
    plan_options,
    run_options,
    source_argument,
)
from lingconv.cli.session import Session


@click.command("dequantize", cls=Command)
@source_argument
@arch_option
@plan_options
@run_options
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    source: Path,
    arch_file: str | None,
    drop_mtp: bool,
    rope_yarn: float | None,
    save: Path | None,
    explain: str | None,
    **options: Any,
) -> None:
    """Fails, and never skips, when a scale is missing or malformed.

    DST is by default a sibling of SRC: SRC-bf16.
    """
    from lingconv.api import Request
    from lingconv.cli.convert import convert, prepare

    request = Request("dequantize", arch_file=arch_file, drop_mtp=drop_mtp, rope_yarn=rope_yarn)
    job = prepare(source, request, RunOptions(**options))
    convert(session, job, save=save, explain=explain)
