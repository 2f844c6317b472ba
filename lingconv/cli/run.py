"""`lingconv run`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lingconv.cli.options import MAX_PLAN, PATH, Command, Parsed, RunOptions, read_text, run_options
from lingconv.cli.session import Session, command_text
from lingconv.errors import usage_error
from lingconv.units import size_text
from lingconv.workers import WHOLE, Share, parse_share


@click.command("run", cls=Command)
@click.argument("plan_file", metavar="PLAN", type=PATH)
@click.option(
    "--source",
    type=PATH,
    default=Path(),
    metavar="DIR",
    help="The checkpoint that was planned for; default: the current folder.",
)
@click.option(
    "--worker",
    type=Parsed("I/N|auto|auto/N", parse_share),
    help="Run share I of N, from 1; auto: as the launcher's variables say; auto/N: where they say "
    "only I.",
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
    worker: Share | None,
    finish: bool,
    status: bool,
    **run: Any,
) -> None:
    """Refuses (exit 3) if the source or the plan is not the one that was reviewed.

    Workers share DST on a common file system; whoever finishes last publishes it.

    --worker auto reads SLURM_ARRAY_TASK_ID, _MIN, _MAX, _STEP and _COUNT, times the tasks that srun
    starts in each element; SLURM_PROCID and SLURM_NTASKS; OMPI_COMM_WORLD_RANK and _SIZE; PMI_RANK
    and PMI_SIZE; RANK and WORLD_SIZE; with auto/N also one of these numbers alone, or
    JOB_COMPLETION_INDEX. A batch script that runs it without srun is task 0 of SLURM_NTASKS: then
    only share 1 is run.
    """
    from lingconv import api
    from lingconv.cli import convert

    if sum((finish, status, worker is not None)) > 1:
        raise usage_error("--worker, --finish and --status exclude one another")
    options = RunOptions(**run)
    worker = worker or WHOLE
    if worker.by:
        session.console.note(f"worker {worker} by {worker.origin}")
    text = read_text(plan_file, MAX_PLAN)
    catalog = api.Catalog.open(source)
    plan = api.Plan.load(catalog, text)
    output = options.output or convert.default_output(source, plan.request())
    job = convert.Job(catalog, plan, source, output, options, worker)
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
