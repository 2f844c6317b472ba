"""From a request to a published folder: what all converting commands share."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lingconv import api, runs
from lingconv.cli import show
from lingconv.cli.options import RunOptions
from lingconv.cli.session import Session, command_text
from lingconv.config import state_folder
from lingconv.errors import Error, ExitCode, Interrupted, cancelled, usage_error
from lingconv.outputs import SAVED_PLAN, write_file
from lingconv.records import PlanSummary, RunResult, Space
from lingconv.units import duration_text, size_text
from lingconv.workers import WHOLE, Share

DEFAULT_DIALECT = "deepseek"


@dataclass(frozen=True)
class Job:
    """A plan about to be shown or run."""

    catalog: api.Catalog
    plan: api.Plan
    source: Path
    output: Path
    options: RunOptions
    worker: Share = WHOLE


def prepare(source: Path, request: api.Request, options: RunOptions) -> Job:
    """Open the source and plan the request."""
    catalog = api.Catalog.open(source, arch_file=request.arch_file)
    plan = api.Plan.build(catalog, request)
    # Named after the request, which is known to make sense once there is a plan.
    output = options.output or default_output(source, request)
    return Job(catalog, plan, source, output, options)


def default_output(source: Path, request: api.Request) -> Path:
    """A sibling of the source, named after the change."""
    suffix = "-bf16"
    if request.verb == "quantize":
        dialect = "custom" if request.dialect_file else request.dialect
        suffix = "-fp8" if dialect == DEFAULT_DIALECT else f"-fp8-{dialect}"
    elif request.reshard is not None:
        suffix = _layout_suffix(request.reshard)
    return sibling(source, suffix)


def sibling(source: Path, suffix: str) -> Path:
    """Beside the source, and named after it."""
    resolved = Path(os.path.realpath(source))
    if any(part.startswith("models--") for part in resolved.parts):
        raise usage_error(
            "the source lies inside a Hugging Face cache, where nothing else belongs",
            path=str(source),
            hint="name an output with -o",
        )
    named = source if source.name not in ("", "..") else resolved
    if not named.name:
        raise usage_error("the root folder has no sibling", hint="name an output with -o")
    return named.with_name(named.name + suffix)


def _layout_suffix(layout: api.Reshard) -> str:
    expert = f"-ep{layout.ep}" if layout.ep > 1 else ""
    encoded = f"-{layout.format}" if layout.format else ""
    target = layout.target.replace("-", "", 1)
    cut = "" if target in ("hf", "sglang") else f"-tp{layout.tp}"
    rank = "".join(f"-only-{name}{n}" for name, n in (layout.rank or {}).items())
    order = "-reordered" if layout.experts else ""
    return f"-{target}{cut}-pp{layout.pp}{expert}{encoded}{order}{rank}"


def convert(session: Session, job: Job, *, save: Path | None, explain: str | None) -> None:
    """Do what the options ask for with the plan: explain, save, show or run it."""
    if explain is not None:
        _explain(session, job.plan.explain(explain))
        return
    if save is not None:
        _save(job.plan, save)
        session.console.note(f"saved the plan to {save}")
    if job.options.dry_run:
        show_plan(session, job, save)
    else:
        run(session, job)


def _save(plan: api.Plan, path: Path) -> None:
    write_file(path, plan.save() + "\n", marks=SAVED_PLAN)


def _explain(session: Session, found: dict[str, Any]) -> None:
    console = session.console
    if console.json:
        console.answer_json({"schema": "lingconv.explain/1"} | found)
        return
    places = ("name", "dtype", "shape", "file", "offset", "bytes")
    sources = found.get("sources") or [found["source"]]
    rows = [["from", *(str(place[key]) for key in places)] for place in sources]
    rows += [["to", *(str(place[key]) for key in places)] for place in found.get("targets", [])]
    dropped = found.get("dropped")
    what = f"dropped: {dropped}" if dropped else found["operation"]
    console.answer(f"{found['tensor']} · {what}", style="bold")
    console.answer_table(("", *places), rows, right=("offset", "bytes"))


def _space(session: Session, job: Job) -> Space:
    settings = session.settings
    return job.plan.space(job.output, memory=settings.memory.value, jobs=settings.jobs.value)


def show_plan(session: Session, job: Job, saved: Path | None = None) -> None:
    """Print the plan, and the command that executes it."""
    console, summary, space = session.console, job.plan.summary(), _space(session, job)
    if console.json:
        head = {"schema": "lingconv.plan/1", "source": str(job.source), "output": str(job.output)}
        console.answer_json(head | asdict(summary) | {"space": asdict(space)})
    else:
        console.answer(show.plan_text(summary, space))
        console.answer("Nothing written.")
    for warning in summary.warnings:
        console.warn(warning)
    _note_reading(session, job, summary, space)
    if space.needed > space.free:
        missing = size_text(space.needed - space.free)
        console.warn(f"{missing} too little space at {job.output}")
    if summary.ranks and not console.json:
        console.answer_table(*show.ranks_table(summary.ranks), right=("files", "bytes"))
    if saved is not None:
        command = command_text("run", saved, "--source", job.source, "-o", job.output)
    else:
        command = session.command(without=("plan", "--dry-run", "--json"))
    console.hint(f"to do it: `{command}`")


def _note_reading(session: Session, job: Job, summary: PlanSummary, space: Space) -> None:
    """What is read twice: for rows too wide for the memory, and for digests of the source."""
    if space.read_twice:
        session.console.note(
            f"{size_text(space.read_twice)} are read twice, first for their scales: rows of "
            "blocks wider than an eighth of --memory are encoded in columns"
        )
    if job.options.verify_source and summary.verb == "reshard":
        session.console.note(
            "--verify-source may read parts of the source twice: digests need the order of the "
            "files, ranks that of layers and experts"
        )


def run(session: Session, job: Job) -> None:
    """Run the plan and say how it went."""
    console, summary = session.console, job.plan.summary()
    for warning in summary.warnings:
        console.warn(warning)
    space = _space(session, job)
    console.note(show.plan_text(summary, space))
    _note_reading(session, job, summary, space)
    kernel = session.settings.kernel
    console.detail(f"kernel {kernel.value or api.kernels().detected} ({kernel.origin})")
    start = time.monotonic()
    result = _execute(session, job)
    seconds = time.monotonic() - start
    _remember(session, job, result, seconds)
    if console.json:
        places = {"source": str(job.source), "output": str(job.output)}
        head = {"schema": "lingconv.run/1", "verb": summary.verb, "seconds": round(seconds, 3)}
        share = {"worker": asdict(job.worker)}
        console.answer_json(head | places | share | asdict(result))
    else:
        console.answer(_outcome_text(job, summary, result, seconds), style="bold")
        if result.reports:
            show.show_reports(console, result.reports)
    show.warn_of_results(console, result)
    if job.options.verify_source and result.outcome == "already_complete":
        verify = command_text("verify", job.source)
        console.warn(f"nothing was read, so the source was not verified; do it with `{verify}`")
    if result.outcome != "share_complete" and summary.launch:
        lines = [line.replace("{out}", str(job.output)) for line in summary.launch]
        console.hint("start it: " + "\n      ".join(f"`{line}`" for line in lines))
    elif result.outcome != "share_complete":
        console.hint(f"see what it holds: `{command_text('inspect', job.output)}`")


def _remember(session: Session, job: Job, result: RunResult, seconds: float) -> None:
    """For `report`: how fast a whole run was."""
    state = state_folder()
    if state and result.outcome == "complete" and job.worker.is_whole:
        done = result.read, result.written - result.resumed, _space(session, job).jobs
        pace = runs.Pace(seconds, *done)
        runs.remember(state, job.output, result.plan, pace, source=job.source)


def _execute(session: Session, job: Job) -> RunResult:
    options, settings = job.options, session.settings
    again = session.command(without=("--no-resume",))
    try:
        with session.reporting() as reporter:
            return api.run(
                job.catalog,
                job.plan,
                job.output,
                jobs=settings.jobs.value,
                memory=settings.memory.value,
                io=options.io,
                kernel=settings.kernel.value,
                paranoid=options.paranoid,
                verify_source=options.verify_source,
                worker=(job.worker.index, job.worker.count),
                resume=not options.no_resume,
                force=options.force,
                on_progress=reporter,
            )
    except Interrupted as stop:
        raise cancelled(
            stop.number,
            _kept(job),
            path=str(job.output),
            hint=f"go on with `{again}`",
        ) from stop
    except Error as error:
        if error.exit_code in (ExitCode.IO, ExitCode.SPACE) and not error.hint:
            error.hint = f"what is done is kept; go on with `{again}`"
        raise


def _kept(job: Job) -> str:
    """What a stopped run leaves to go on with."""
    try:
        status = api.status(job.catalog, job.plan, job.output)
    except Error:
        return "nothing was written"
    done = f"{status.done} of {show.files_text(status.tasks)}"
    return f"kept: {done} whole, {size_text(status.bytes_done)} of {size_text(status.bytes)}"


def _outcome_text(job: Job, summary: PlanSummary, result: RunResult, seconds: float) -> str:
    if result.outcome == "already_complete":
        return f"{job.output}: complete already, nothing read"
    written = result.written - result.resumed
    figures = f"{size_text(written)} written in {duration_text(seconds)}"
    if seconds > 0:
        figures += f" · {size_text(written / seconds)}/s"
    if linked := show.linked_text(result):
        figures += f" · {linked}"
    if result.resumed:
        figures += f" · {size_text(result.resumed)} kept from an earlier run"
    if job.options.verify_source:
        again, once = size_text(result.reread), size_text(result.read - result.reread)
        figures += f" · source verified, {again} of {once} read again for that"
    if result.outcome == "share_complete":
        return f"{job.output}: share {job.worker} complete, other shares are not · {figures}"
    return f"{job.output}: complete · {show.files_text(summary.write_files)} · {figures}"
