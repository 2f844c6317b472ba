"""`lingconv run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lingconv.cli.options import FILE, Command, Parsed, RunOptions, read_text, run_options
from lingconv.cli.session import Session, command_text
from lingconv.errors import usage_error
from lingconv.units import size_text

# Variables of an own zero-based number and of the number of processes.
_LAUNCHERS = (("SLURM_PROCID", "SLURM_NTASKS"), ("RANK", "WORLD_SIZE"))


def launched_worker(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Worker I of N as Slurm or torchrun say it."""
    for index, count in _LAUNCHERS:
        if index in environment and count in environment:
            try:
                return int(environment[index]) + 1, int(environment[count])
            except ValueError:
                raise usage_error(f"{index} and {count} hold no numbers") from None
    names = ", or ".join(f"{index} and {count}" for index, count in _LAUNCHERS)
    raise usage_error(f"--worker auto needs {names}", hint="name the share: --worker 1/4")


def parse_worker(text: str) -> tuple[int, int]:
    """Worker I of N, from `I/N` or `auto`."""
    if text == "auto":
        return launched_worker()
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal():
        return int(index), int(count)
    raise ValueError(f"{text!r} is neither I/N nor auto")


@click.command("run", cls=Command)
@click.argument("plan_file", metavar="PLAN", type=FILE)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="The checkpoint that was planned for; default: the current folder.",
)
@click.option(
    "--worker",
    type=Parsed("I/N|auto", parse_worker),
    help="Run share I of N, from 1; auto: as Slurm or torchrun say.",
)
@click.option("--finish", is_flag=True, help="Publish once all shares are done, by hand.")
@click.option("--status", is_flag=True, help="Print how far all workers are.")
@run_options
@click.pass_obj
def command(
    session: Session,
    /,
    *,
    plan_file: Path,
    source: Path,
    worker: tuple[int, int] | None,
    finish: bool,
    status: bool,
    **run: Any,
) -> None:
    """Refuses (exit 3) if the source or the plan is not the one that was reviewed.

    Workers share DST on a common file system; whoever finishes last publishes it.
    """
    from lingconv import api
    from lingconv.cli import convert

    if sum((finish, status, worker is not None)) > 1:
        raise usage_error("--worker, --finish and --status exclude one another")
    options = RunOptions(**run)
    catalog = api.Catalog.open(source)
    plan = api.Plan.load(catalog, read_text(plan_file))
    output = options.output or convert.default_output(source, plan.request())
    job = convert.Job(catalog, plan, source, output, options, worker or (1, 1))
    if status:
        _status(session, job)
    elif finish:
        _finish(session, job)
    elif options.dry_run:
        convert.show_plan(session, job, plan_file)
    else:
        convert.run(session, job)


def _status(session: Session, job: Any) -> None:
    from lingconv import api

    console = session.console
    found = api.status(job.catalog, job.plan, job.output)
    if console.json:
        console.answer_json(
            {"schema": "lingconv.status/1", "output": str(job.output)} | asdict(found)
        )
        return
    state = "published" if found.published else f"{found.done:,} of {found.tasks:,} files done"
    bytes_text = f"{size_text(found.bytes_done)} of {size_text(found.bytes)}"
    console.answer(f"{job.output}: {state} · {bytes_text}", style="bold")
    for name in found.running:
        console.answer(f"  unfinished  {name}")


def _finish(session: Session, job: Any) -> None:
    from lingconv import api

    console = session.console
    outcome = api.finish(job.catalog, job.plan, job.output)
    if console.json:
        head = {"schema": "lingconv.finish/1", "output": str(job.output)}
        console.answer_json(head | {"outcome": outcome})
    else:
        console.answer(f"{job.output}: {outcome.replace('_', ' ')}", style="bold")
    console.hint(f"see what it holds: `{command_text('inspect', job.output)}`")
