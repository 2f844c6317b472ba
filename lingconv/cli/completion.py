"""`lingconv completion`."""

from __future__ import annotations

import click

from lingconv.cli import complete_script
from lingconv.cli.options import Command
from lingconv.cli.session import Session


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_obj
def command(session: Session, /, *, shell: str) -> None:
    """For bash: `lingconv completion bash >> ~/.bashrc`."""
    console = session.console
    script = complete_script(shell)
    if console.json:
        console.answer_json({"schema": "lingconv.completion/1", "shell": shell, "script": script})
    else:
        console.answer(script)
