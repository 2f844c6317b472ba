"""`lingconv env`."""

from __future__ import annotations

import platform
from dataclasses import asdict, fields

import click

from lingconv.cli.options import Command
from lingconv.cli.session import Session
from lingconv.config import Settings
from lingconv.units import size_text

UNSET = {"jobs": "one a core", "kernel": "the best of this CPU"}


def _text(name: str, value: object) -> str:
    if name == "memory" and isinstance(value, int):
        return size_text(value)
    return str(value) if value or name not in UNSET else UNSET[name]


@click.command("env", cls=Command)
@click.pass_obj
def command(session: Session, /) -> None:
    """Says what to put into a bug report, too."""
    from lingconv import api

    console, settings = session.console, session.settings
    kernels, dialects = api.kernels(), api.dialects()
    versions = {"lingconv": api.__version__, "python": platform.python_version()}
    if console.json:
        found = {
            "schema": "lingconv.env/1",
            "versions": versions,
            "platform": platform.platform(),
            "settings": asdict(settings),
            "kernels": asdict(kernels),
            "dialects": [asdict(dialect) for dialect in dialects],
        }
        console.answer_json(found)
        return
    console.answer(" · ".join(f"{name} {version}" for name, version in versions.items()))
    console.answer(f"kernels {', '.join(kernels.available)}; the best is {kernels.detected}\n")
    rows = []
    for field in fields(Settings):
        setting = getattr(settings, field.name)
        rows.append((field.name, _text(field.name, setting.value), setting.origin))
    console.answer_table(("setting", "value", "from"), rows)
    console.answer("")
    console.answer_table(("dialect", ""), [(d.name, d.description) for d in dialects])
