"""`lingconv report`."""

from __future__ import annotations

from pathlib import Path

import click

from lingconv.cli.options import PATH, Command, source_argument
from lingconv.cli.room import make_room_for_arrays
from lingconv.cli.session import Session
from lingconv.config import state_folder
from lingconv.outputs import check_file, write_file


@click.command("report", cls=Command)
@source_argument
@click.option(
    "--loads",
    type=PATH,
    multiple=True,
    metavar="LOADS",
    help="Recorded expert loads, as `experts stats` reads them; may be repeated.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FILE",
    help="Default: SRC-report.html, beside SRC.",
)
@click.pass_obj
def command(
    session: Session, /, *, source: Path, loads: tuple[Path, ...], output: Path | None
) -> None:
    """Model, plan, digests, error of quantisation, expert load and its balance.

    Reads headers, the manifest, the routers' biases and LOADS. The page fetches nothing and runs no
    script.
    """
    make_room_for_arrays()
    from lingconv import experts, report
    from lingconv.cli.convert import sibling

    output = output or sibling(source, "-report.html")
    check_file(output, marks=(report.MARK,))
    recorded = experts.read_loads(loads) if loads else None
    page = report.render(source, recorded, state=state_folder())
    write_file(output, page, marks=(report.MARK,))
    if session.console.json:
        answer = {"schema": "lingconv.report/1", "source": str(source), "output": str(output)}
        session.console.answer_json(answer)
    else:
        session.console.answer(f"{output}: {len(page.encode()):,} bytes", style="bold")
