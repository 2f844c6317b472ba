"""The commands, and the group that loads each when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

from lingconv.cli.room import FOR_A_COMMAND, make_room
from lingconv.errors import EXIT_CODES

COMMANDS = {
    "inspect": "What a checkpoint is: model, bytes by role, number format, health of its headers.",
    "plan": "Build, prove and print what a command would do; the same as its --dry-run.",
    "quantize": "Turn BF16, F16 or F32 weights into FP8.",
    "dequantize": "Turn FP8 weights of any dialect into BF16.",
    "reshard": "Cut a checkpoint for TP × PP × EP, as an engine's ranks load it.",
    "probe": "Ask an installed engine which tensors its ranks want, and compare.",
    "fit": "Which TP × PP × EP splits of a number of GPUs work, and what a rank holds.",
    "verify": "Compare a download with the digests that are known of it, offline.",
    "run": "Execute a saved plan, on one machine or several.",
    "experts": "Where expert load is unbalanced, what the weights tell, and a better placement.",
    "report": "Write what is known of a folder as one HTML page.",
    "synth": "Write a made-up checkpoint with a real model's names and shapes.",
    "env": "Settings and where each comes from, and what this CPU offers.",
    "completion": "Print the completion script of a shell.",
}
EXPERTS = {
    "stats": "Balance of recorded expert loads, or soundness of the experts' weights.",
    "place": "An order of the experts that balances recorded loads between ranks.",
}


def exit_codes() -> str:
    """The end of every help page."""
    lines = [f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items()]
    return "\b\nExit codes:\n" + "\n".join(lines)


class LazyGroup(click.Group):
    """Imports a command when it is called; its one-line help is known without.

    `commands` says what each does; the command NAME is in the module `prefix` + NAME.
    """

    def __init__(
        self, *args: Any, commands: Mapping[str, str], prefix: str = "", **attributes: Any
    ) -> None:
        super().__init__(*args, epilog=exit_codes(), **attributes)
        self._commands = commands
        self._prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help page."""
        return list(self._commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The `command` of the module of that name."""
        if cmd_name not in self._commands:
            return None
        make_room(FOR_A_COMMAND)
        module = importlib.import_module(f"lingconv.cli.{self._prefix}{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help page, without an import."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._commands.items()))
