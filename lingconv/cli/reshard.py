"""`lingconv reshard`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.encoding import encoding_options, refuse_encoding, take_encoding
from lingconv.cli.options import (
    PATH,
    RANK,
    SIZE,
    Command,
    Parsed,
    RunOptions,
    arch_option,
    map_of,
    plan_options,
    run_options,
    source_argument,
)
from lingconv.cli.probe import check, probe_options
from lingconv.cli.session import Session
from lingconv.cli.targets import take_target, target_options
from lingconv.errors import usage_error

if TYPE_CHECKING:
    from lingconv.cli.convert import Job

RANKS = click.IntRange(min=1)


def _layers(text: str) -> list[int]:
    """Layers of each stage, as in `20,20,20,20`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is no list of layers such as 20,20,20,20") from None


@click.command("reshard", cls=Command)
@source_argument
@click.option("--tp", type=RANKS, default=1, show_default=True, help="Tensor parallel size.")
@click.option("--pp", type=RANKS, default=1, show_default=True, help="Pipeline parallel size.")
@click.option(
    "--ep",
    type=RANKS,
    default=1,
    show_default=True,
    help="Expert parallel size; 1: experts are cut like everything else.",
)
@click.option(
    "--pp-layers",
    type=Parsed("layers", _layers),
    default=[],
    metavar="N,N,…",
    help="Layers of each stage; default: as the engine deals them out.",
)
@target_options
@click.option(
    "--format", "number_format", type=click.Choice(["fp8"]), help="Encode in the same pass."
)
@click.option(
    "--shard-size",
    type=SIZE,
    default="5GB",
    show_default=True,
    help="Bytes at which a file ends, at the next boundary of a tensor or layer.",
)
@click.option(
    "--rank",
    type=RANK,
    metavar="RANK",
    help="Write only these files: pp1, or tp3,pp1; ranks count from 0.",
)
@click.option(
    "--link",
    type=click.Choice(["auto", "reflink", "hardlink", "symlink", "copy"]),
    default="auto",
    show_default=True,
    help="How files that lie in one stage are taken over by --target hf and sglang; auto: reflink, "
    "else hard link, else copy.",
)
@click.option(
    "--list-files",
    type=RANK,
    metavar="RANK",
    help="Print the files that this rank needs, one a line, and write nothing.",
)
@click.option("--keep-mtp", is_flag=True, help="Keep the MTP layers.")
@click.option(
    "--partial",
    is_flag=True,
    help="Restore what there is, where something was left out or encoded.",
)
@click.option(
    "--experts",
    type=PATH,
    callback=map_of,
    metavar="MAP",
    help="Reorder each layer's experts: a map as `lingconv experts place` writes it.",
)
@probe_options
@encoding_options
@arch_option
@plan_options
@run_options
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    source: Path,
    number_format: str | None,
    drop_mtp: bool,
    save: Path | None,
    explain: str | None,
    probe: Path | None,
    trust_remote_code: bool,
    timeout: float,
    **options: Any,
) -> None:
    """Cuts a checkpoint so that every rank reads only its own bytes; each source byte is read once.

    DST is by default a sibling of SRC named after target and layout. The options from --dialect to
    --report are those of quantize and need --format fp8.

    --experts moves experts, their scales, router rows and bias together, so that the model computes
    the same; a map that would let the router reach other experts is refused. MAP counts experts as
    the original does. Cutting such a folder again keeps the order, and only the same map can be
    given again; --target hf with one stage puts the original together.

    --probe asks the engine itself whether it wants what will be written, as `lingconv probe` does;
    if not, nothing is written and the exit code is 3.
    """
    from lingconv.api import Request, Reshard
    from lingconv.cli.convert import convert, prepare

    session = context.ensure_object(Session)
    if number_format is None:
        refuse_encoding(context)
    if drop_mtp and options["keep_mtp"]:
        raise usage_error("--drop-mtp and --keep-mtp contradict one another")
    listed = options.pop("list_files")
    if listed is not None:
        options["rank"] = listed
    names = (
        "tp",
        "pp",
        "ep",
        "pp_layers",
        "shard_size",
        "keep_mtp",
        "partial",
        "rank",
        "experts",
        "link",
    )
    layout = Reshard(
        **take_target(options),
        format="fp8" if number_format else None,
        **{name: options.pop(name) for name in names},
    )
    run = RunOptions.take(options)
    encoding = take_encoding(options)
    request = Request("reshard", layout, drop_mtp=drop_mtp, **encoding, **options)
    job = prepare(source, request, run)
    if probe is not None:
        engine = {"trust_remote_code": trust_remote_code, "timeout": timeout}
        check(session, job, probe, **engine)
    if listed is not None:
        _list_files(session, job)
    else:
        convert(session, job, save=save, explain=explain)


def _list_files(session: Session, job: Job) -> None:
    """For rsync: paths relative to the output."""
    files = job.plan.files()
    if session.console.json:
        session.console.answer_json({"schema": "lingconv.files/1", "files": files})
    else:
        session.console.answer("\n".join(files))
