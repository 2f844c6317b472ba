"""`lingconv experts …`."""

from __future__ import annotations

import click

from lingconv.cli.contents import COMMANDS, EXPERTS, LazyGroup


@click.group(
    "experts", cls=LazyGroup, commands=EXPERTS, prefix="experts_", help=COMMANDS["experts"]
)
def command() -> None:
    """Nothing of its own."""
