"""`lingconv synth`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from lingconv.cli.options import PATH, SIZE, Command, jobs_option
from lingconv.cli.session import Session, command_text
from lingconv.units import size_text


def _complete_preset(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from lingconv.api import presets

    return [CompletionItem(name) for name in presets() if name.startswith(incomplete)]


@click.command("synth", cls=Command)
@click.argument("preset", shell_complete=_complete_preset)
@click.option("-o", "--output", type=PATH, metavar="DST", required=True, help="A new folder.")
@click.option("--layers", type=click.IntRange(min=1), help="Layers instead of the preset's.")
@click.option("--experts", type=click.IntRange(min=1), help="Experts instead of the preset's.")
@click.option("--seed", type=click.IntRange(min=0, max=2**64 - 1), default=0, show_default=True)
@click.option("--shard-size", type=SIZE, help="About how many bytes a file holds, as 5G.")
@click.option("--mtp", is_flag=True, help="Add an MTP layer.")
@click.option("--fp8", is_flag=True, help="FP8 with 128x128 blocks instead of BF16.")
@click.option("--sparse", is_flag=True, help="True headers and sizes, but holes for data.")
@jobs_option
@click.pass_obj
def command(session: Session, /, *, preset: str, output: Path, **options: Any) -> None:
    """PRESET is ling-1t, ling-flash-2.0, ling-mini-2.0 or tiny.

    The same options and seed give the same bytes anywhere. With --sparse a checkpoint of full
    size takes next to no space, for rehearsing plans.
    """
    from lingconv import api

    console = session.console
    with session.reporting() as reporter:
        result = api.synth(
            preset, output, jobs=session.settings.jobs.value, on_progress=reporter, **options
        )
    if console.json:
        head = {"schema": "lingconv.synth/1", "preset": preset, "output": str(output)}
        console.answer_json(head | asdict(result))
    else:
        figures = f"{result.tensors:,} tensors · {size_text(result.bytes)}"
        console.answer(f"{output}: {result.files:,} files · {figures}", style="bold")
    console.hint(f"see what it holds: `{command_text('inspect', output)}`")
