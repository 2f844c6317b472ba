"""`lingconv experts stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lingconv.cli.options import PATH, Command, Parsed, arch_option, jobs_option
from lingconv.cli.room import make_room_for_arrays
from lingconv.cli.session import Session
from lingconv.errors import usage_error

PARTS = click.IntRange(min=1, max=4096)


def _steps(text: str) -> tuple[int, int | None]:
    """A half-open range `A:B` of steps; either end may be left out."""
    first, colon, last = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (first, last)):
        raise ValueError(f"{text!r} is no range of steps such as 100:200")
    return int(first or 0), int(last) if last else None


steps_option = click.option(
    "--steps",
    type=Parsed("range", _steps),
    metavar="A:B",
    help="Only the recorded steps from A up to B, counted from 0.",
)


def _threshold(text: str) -> float:
    value = float(text)
    if not 1 <= value < float("inf"):
        raise ValueError(f"{text} is below 1, and no maximum is below its mean")
    return value


@click.command("stats", cls=Command)
@click.argument("paths", metavar="[SRC|LOADS]…", type=PATH, nargs=-1)
@click.option("--ep", type=PARTS, metavar="N", help="Balance between N expert parallel ranks.")
@click.option("--nodes", type=PARTS, metavar="K", help="Balance between K nodes of ranks, too.")
@steps_option
@click.option(
    "--max-imbalance",
    type=Parsed("ratio", _threshold),
    metavar="X",
    help="Fail if a layer's maximum is more than X times its mean: of ranks with --ep, else "
    "of experts.",
)
@click.option(
    "--against",
    type=PATH,
    metavar="DIR",
    help="Of a checkpoint: the same in the other format, FP8 or BF16; measures the error.",
)
@arch_option
@jobs_option
@click.pass_obj
def command(session: Session, /, *, paths: tuple[Path, ...], **options: Any) -> int:
    """A folder of safetensors is looked into; anything else holds recorded loads.

    Of a checkpoint, every expert is read once: experts of zeros, twins, those far larger or
    smaller than the others of their layer, NaN, and gate rows unlike the others fail. The router
    bias tells how much correction training needed. Weights never tell load.

    LOADS are recorder dumps of SGLang (.pt; files of several ranks, or their folder), or
    logical_count [layers, experts] or [steps, layers, experts] in .json, .npy or .npz, or .csv
    with layer,expert,count.
    """
    paths = paths or (Path(),)
    of_weights = {name: options.pop(name) for name in ("against", "arch_file")}
    if not _is_checkpoint(paths[0]):
        _refuse(of_weights, "a checkpoint, not recorded loads")
        from lingconv.cli.expert_loads import judge

        return judge(session, paths, **options)
    _refuse(options, "recorded loads, not a checkpoint")
    if len(paths) > 1:
        raise usage_error("one checkpoint at a time", path=str(paths[1]))
    from lingconv.cli.expert_weights import examine

    return examine(session, paths[0], **of_weights)


def _refuse(options: dict[str, Any], needed: str) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        name = given[0].removesuffix("_file").replace("_", "-")
        raise usage_error(f"--{name} needs {needed}")


def _is_checkpoint(path: Path) -> bool:
    if not path.is_dir():
        return False
    if any(path.glob("*.safetensors*")):
        return True
    make_room_for_arrays()
    from lingconv.experts import PATTERN

    return not any(path.glob(PATTERN))
