"""`lingconv plan VERB …`: the verb with --dry-run."""

from __future__ import annotations

import click

from lingconv.cli.contents import COMMANDS, LazyGroup

VERBS = ("quantize", "dequantize", "reshard")


@click.group(
    "plan",
    cls=LazyGroup,
    commands={verb: COMMANDS[verb] for verb in VERBS},
    help=f"{COMMANDS['plan']}\n\nThe options are those of the command.",
    context_settings={"default_map": {verb: {"dry_run": True} for verb in VERBS}},
)
def command() -> None:
    """Nothing of its own."""
