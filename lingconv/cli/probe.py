"""`lingconv probe`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.options import PATH, Command, combined
from lingconv.cli.session import Session
from lingconv.errors import ExitCode

if TYPE_CHECKING:
    from lingconv.cli.convert import Job
    from lingconv.probing import Answer

SHOWN = 20

_ENGINE = [
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Let the engine that is asked run Python files of the checkpoint.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=1800,
        show_default=True,
        metavar="SECONDS",
        help="How long the engine may take to answer.",
    ),
]
engine_options = combined(_ENGINE)
probe_options = combined(
    [
        click.option(
            "--probe",
            type=PATH,
            metavar="PATH",
            help="First ask the engine whose Python this is.",
        ),
        *_ENGINE,
    ]
)


@click.command("probe", cls=Command)
@click.argument("output", metavar="OUT", type=PATH)
@click.option(
    "--python",
    type=PATH,
    metavar="PATH",
    required=True,
    help="The Python interpreter of the engine's environment.",
)
@engine_options
@click.pass_context
def command(context: click.Context, /, *, output: Path, python: Path, **options: Any) -> None:
    """Asks an installed vLLM which tensors each rank wants, and compares with what OUT holds.

    The engine builds its model without weights and is asked for names, dtypes and shapes; of OUT
    only headers are read. On a machine without GPUs, vLLM builds the model as it does for a CPU,
    which knows no paddings that only some GPU kernels want: run it where the engine will run. Where
    they differ, a profile for --target-file is printed, too.
    """
    from lingconv import api, probing

    session = context.ensure_object(Session)
    found = probing.ask(api.held(output), output, python, **options)
    show(session, found, output)
    if found.differences:
        context.exit(ExitCode.CHECK)


def check(session: Session, job: Job, python: Path, **options: Any) -> None:
    """Ask the engine about a plan; ends the command if it wants something else."""
    from lingconv import api, probing

    found = probing.ask(api.held(job.plan), job.output, python, source=job.source, **options)
    if found.differences:
        show(session, found, job.output)
        raise SystemExit(ExitCode.CHECK)
    session.console.note(_verdict(found))
    _warn(session, found)


def _verdict(found: Answer) -> str:
    verdict = "as the files have them"
    if found.differences:
        verdict = f"{len(found.differences)} differences from the files"
    tensors = f"{found.tensors:,} tensors on {found.ranks} ranks"
    return f"{found.engine} {found.version} ({found.platform}) wants {tensors}, {verdict}"


def _warn(session: Session, found: Answer) -> None:
    if found.stand_ins:
        session.console.warn(
            "no FP8 kernel of vLLM works on this machine, so its choice of kernels was replaced: "
            "what only some GPU kernels want was not seen"
        )


def show(session: Session, found: Answer, output: Path) -> None:
    """Print an answer."""
    console = session.console
    if console.json:
        head = {"schema": "lingconv.probe/1", "output": str(output)}
        console.answer_json(head | asdict(found))
    else:
        console.answer(_verdict(found), style="bold")
        rows = [
            [d.kind, d.name, d.files or "–", d.engine or "–", str(d.tensors), str(len(d.ranks))]
            for d in found.differences[:SHOWN]
        ]
        if rows:
            columns = ("", "tensor", "files", "engine", "layers", "ranks")
            console.answer_table(columns, rows, right=("layers", "ranks"))
        if found.profile:
            console.answer(found.profile)
    _warn(session, found)
