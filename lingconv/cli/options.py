"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from lingconv import foreign
from lingconv.cli.contents import COMMANDS, EXPERTS, exit_codes
from lingconv.cli.session import Session
from lingconv.config import PROGRESS_MODES, parse_jobs
from lingconv.errors import Error, invalid_error, usage_error
from lingconv.units import parse_size

F = TypeVar("F", bound=Callable[..., Any])
HUB = "hf://"
# Architectures, dialects and targets have some kilobytes, plans and maps of experts more.
MAX_TEXT = 1 << 20
MAX_PLAN = 32 << 20


class Parsed(click.ParamType[Any]):
    """A value that one function parses; its ValueError is a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; defaults are parsed already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _rank(text: str) -> dict[str, int]:
    """`pp1`, `tp3` or `tp3,pp1`."""
    found = [re.fullmatch(r"(tp|pp)(\d{1,6})", part) for part in text.split(",")]
    ranks = {match[1]: int(match[2]) for match in found if match}
    if len(ranks) != len(found):
        raise ValueError(f"{text!r} is no rank; write for example pp1 or tp3,pp1")
    return ranks


RANK = Parsed("rank", _rank)
SIZE = Parsed("size", parse_size)
# Whoever opens a path says what the system answers; a look before would take a failing disk for an
# absent file.
PATH = click.Path(readable=False, path_type=Path)


def _refused(message: str, path: str) -> Error:
    return usage_error(message, path=path)


def text_of(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> str | None:
    """The text of the file that an option names."""
    return None if path is None else read_text(path)


def map_of(_ctx: click.Context, _param: click.Parameter, path: Path | None) -> str | None:
    """The text of a map of experts, which is refused as those are that are no permutation."""
    if path is None:
        return None
    return read_text(path, MAX_PLAN, refuse=invalid_error)


def read_text(path: Path, limit: int = MAX_TEXT, refuse: foreign.Refuse = _refused) -> str:
    """A small text file that the user named; a pipe will do, as `<(…)` is one."""
    try:
        return foreign.read_text(path, limit, refuse=refuse, piped=True)
    except Error as error:
        if error.kind == "usage" and not error.hint:
            error.hint = f"`{click.get_current_context().command_path} --help`"
        raise


def _source(_ctx: click.Context, _param: click.Parameter, value: str) -> Path:
    if value.startswith(HUB):
        name = value.removeprefix(HUB)
        folder = name.rsplit("/", 1)[-1]
        raise usage_error(
            f"{value}: sources on a hub cannot be read yet",
            hint=f"download it first: `hf download {name} --local-dir {folder}`",
        )
    return Path(value)


source_argument = click.argument("source", metavar="[SRC]", default=".", callback=_source)
arch_option = click.option(
    "--arch",
    "arch_file",
    type=PATH,
    callback=text_of,
    metavar="FILE",
    help="An architecture file instead of the built-in ones.",
)
dialect_file_option = click.option(
    "--dialect-file",
    type=PATH,
    callback=text_of,
    metavar="FILE",
    help="A dialect file instead of a built-in one.",
)
jobs_option = click.option(
    "-j",
    "--jobs",
    type=Parsed("number", parse_jobs),
    help="Tasks at a time; default: one a core. [LINGCONV_JOBS]",
)

_COMMON = [
    click.Option(["--json"], is_flag=True, help="One JSON object on stdout."),
    click.Option(["-q", "--quiet"], is_flag=True, help="Only the answer, warnings and errors."),
    click.Option(["-v", "--verbose"], is_flag=True, help="More about what is done."),
    click.Option(
        ["--progress"],
        type=click.Choice(PROGRESS_MODES),
        help="How progress is shown on stderr; default: auto. [LINGCONV_PROGRESS]",
    ),
    click.Option(
        ["--log"],
        type=PATH,
        metavar="FILE",
        help="Append what goes to stderr to FILE, with times.",
    ),
]
_FOR_SESSION = ("json", "quiet", "verbose", "progress", "log", "jobs", "memory", "remember_days")


class Command(click.Command):
    """A command with the options of every command and the exit codes at the end of its help."""

    def __init__(self, name: str, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.params += _COMMON
        self.help = f"{(COMMANDS | EXPERTS)[name]}\n\n{cleandoc(self.help or '')}"
        self.epilog = exit_codes()

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command with a configured session and its own options."""
        session = ctx.find_object(Session)
        assert session is not None, "main() makes one"
        self._refuse_bytes(ctx)
        options = {name: ctx.params.pop(name) for name in _FOR_SESSION if name in ctx.params}
        session.configure(**options)
        return super().invoke(ctx)

    def _refuse_bytes(self, ctx: click.Context) -> None:
        """The core takes texts, and names of files alone may be any bytes."""
        texts = (param for param in self.params if param.type is click.STRING)
        for param in texts:
            given = ctx.params[param.name or ""]
            for value in given if isinstance(given, tuple) else [given]:
                if isinstance(value, str) and not value.isascii():
                    try:
                        value.encode()
                    except UnicodeEncodeError:
                        raise usage_error(f"{param.opts[-1]} {value!r}: no UTF-8") from None


@dataclass(frozen=True)
class RunOptions:
    """Options of every command that writes a converted checkpoint."""

    output: Path | None
    dry_run: bool
    force: bool
    no_resume: bool
    io: Literal["auto", "direct", "buffered"]
    paranoid: bool
    verify_source: bool

    @classmethod
    def take(cls, options: dict[str, Any]) -> RunOptions:
        """Take these options out of those of a command."""
        return cls(**{field.name: options.pop(field.name) for field in fields(cls)})


memory_option = click.option(
    "--memory", type=SIZE, help="Bytes of all buffers; default: 1G. [LINGCONV_MEMORY]"
)

_RUN = [
    click.option("-o", "--output", type=PATH, metavar="DST", help="Folder to write."),
    click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
    click.option(
        "--force",
        is_flag=True,
        help="Replace DST if lingconv wrote it; anything else is never replaced.",
    ),
    click.option("--no-resume", is_flag=True, help="Begin an unfinished DST anew."),
    jobs_option,
    memory_option,
    click.option(
        "--io",
        type=click.Choice(["auto", "direct", "buffered"]),
        default="auto",
        show_default=True,
        help="How bulk data moves.",
    ),
    click.option("--paranoid", is_flag=True, help="Read every file back and compare."),
    click.option(
        "--verify-source",
        is_flag=True,
        help="Compare the digests of the source files, made in the same pass; reshard may read "
        "parts of them twice.",
    ),
]
_PLAN = [
    click.option(
        "--save",
        type=PATH,
        metavar="FILE",
        help="Save the plan for `lingconv run`.",
    ),
    click.option(
        "--explain",
        metavar="TENSOR",
        help="Print where a tensor comes from and goes to; write nothing.",
    ),
    click.option("--drop-mtp", is_flag=True, help="Leave out the MTP layers."),
    click.option(
        "--rope-yarn",
        type=float,
        metavar="FACTOR",
        help="Write YaRN rope_scaling with this factor to config.json.",
    ),
]


def combined(options: list[Callable[[F], F]]) -> Callable[[F], F]:
    """One decorator for several options, listed in this order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


run_options = combined(_RUN)
plan_options = combined(_PLAN)
