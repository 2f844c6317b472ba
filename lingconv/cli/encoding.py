"""Options of every command that encodes to FP8."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from lingconv.cli.options import combined, dialect_file_option
from lingconv.errors import usage_error


def _complete_dialect(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    from lingconv.api import dialects

    found = [d for d in dialects() if d.name.startswith(incomplete)]
    return [CompletionItem(d.name, help=d.description) for d in found]


_NAMES = (
    "dialect",
    "dialect_file",
    "scale",
    "scale_arith",
    "only",
    "skip",
    "experts_only",
    "nonfinite",
    "prove",
    "report",
)

encoding_options = combined(
    [
        click.option(
            "--dialect",
            default="deepseek",
            show_default=True,
            metavar="NAME",
            shell_complete=_complete_dialect,
            help="How scales are spelled and computed; `lingconv env` lists the names.",
        ),
        dialect_file_option,
        click.option(
            "--scale",
            type=click.Choice(["f32", "ue8m0"]),
            default="f32",
            show_default=True,
            help="ue8m0: powers of two, as Blackwell engines want them.",
        ),
        click.option(
            "--scale-arith",
            type=click.Choice(["ieee", "cuda"]),
            default="ieee",
            show_default=True,
            help="cuda: the division of a GPU, to reproduce a checkpoint cast on one.",
        ),
        click.option("--only", multiple=True, metavar="GLOB", help="Encode only these tensors."),
        click.option("--skip", multiple=True, metavar="GLOB", help="Never encode these tensors."),
        click.option("--experts-only", is_flag=True, help="Encode routed experts alone."),
        click.option(
            "--nonfinite",
            type=click.Choice(["fail", "keep"]),
            default="fail",
            show_default=True,
            help="keep: leave a tensor with NaN or infinity unquantised, and list it.",
        ),
        click.option("--prove", is_flag=True, help="Check the laws of encoding on every tensor."),
        click.option("--report", is_flag=True, help="Measure the error of every encoded tensor."),
    ]
)


def take_encoding(options: dict[str, Any]) -> dict[str, Any]:
    """Take these options out of those of a command, as fields of a request."""
    taken = {name: options.pop(name) for name in _NAMES}
    taken["keep_nonfinite"] = taken.pop("nonfinite") == "keep"
    return taken | {"only": list(taken["only"]), "skip": list(taken["skip"])}


def refuse_encoding(context: click.Context) -> None:
    """Fail if one of these options was given, where nothing is encoded."""
    for name in _NAMES:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise usage_error(f"--{name.replace('_', '-')} needs --format fp8")
