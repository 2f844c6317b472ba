"""The command line. `contents` lists the commands; each has a file of its name."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from lingconv import config, errors
from lingconv.cli.contents import COMMANDS, LazyGroup
from lingconv.cli.session import PROGRAM, Session

_COMPLETE = f"_{PROGRAM.upper()}_COMPLETE"


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from lingconv.api import __version__

        click.echo(f"{PROGRAM} {__version__}")
        ctx.exit()


@click.group(
    PROGRAM,
    cls=LazyGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version.",
)
def cli() -> None:
    """Stream trillion-parameter MoE checkpoints between number formats, bit for bit.

    SRC is a folder of safetensors files, by default the current one. Options come after the
    command.
    """


def _usage_of(error: click.ClickException) -> errors.Error:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"`{context.command_path} --help`" if context else None
    return errors.usage_error(error.format_message().rstrip("."), hint=hint)


def _run(session: Session, arguments: list[str]) -> int:
    """The exit code. What fails on purpose is an `Error`."""
    try:
        session.signals.install()
        with cli.make_context(PROGRAM, arguments, obj=session) as context:
            code: Any = cli.invoke(context)
            return int(code or errors.ExitCode.DONE)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        session.console.say(error.format_message())
        return errors.ExitCode.USAGE
    except click.ClickException as error:
        raise _usage_of(error) from error
    except errors.Interrupted as stop:
        raise errors.cancelled(stop.number) from stop


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    session = Session(list(sys.argv[1:] if arguments is None else arguments))
    try:
        if instruction := os.environ.get(_COMPLETE):
            return _complete(instruction)
        return _run(session, session.arguments.copy())
    except BrokenPipeError:
        return errors.ExitCode.DONE
    except BaseException as raised:
        if config.debug().value:
            traceback.print_exc()
        error = errors.of(raised)
        session.console.fail(error)
        return error.exit_code
    finally:
        session.console.close()


def _complete(instruction: str) -> int:
    """Answer the completion script of a shell, which asks by variables."""
    from click.shell_completion import shell_complete

    try:
        unknown = shell_complete(cli, {}, PROGRAM, _COMPLETE, instruction)
    except (KeyError, ValueError) as error:
        reason = f"{type(error).__name__} {error}"
        raise errors.usage_error(f"{_COMPLETE}={instruction}: {reason}") from None
    if unknown:
        raise errors.usage_error(f"{_COMPLETE}={instruction}: no such completion")
    return errors.ExitCode.DONE


def complete_script(shell: str) -> str:
    """The completion script of a shell."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise errors.usage_error(f"no completion for {shell}")
    try:
        return found(cli, {}, PROGRAM, _COMPLETE).source()
    except OSError as error:
        # Click asks bash for its version.
        raise errors.process_limit_of(error) or error from None
