"""The engine that files are for, as several commands take it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import click

from lingconv.cli.options import PATH, combined, read_text

target_options = combined(
    [
        click.option(
            "--target",
            default="vllm",
            show_default=True,
            metavar="ENGINE[@VERSION]",
            help="Engine that reads the files; default version: the one installed here, else the "
            "newest.",
        ),
        click.option(
            "--target-file", type=PATH, metavar="FILE", help="A target file instead of a built-in."
        ),
    ]
)


def take_target(options: dict[str, Any]) -> dict[str, Any]:
    """Take these options out of those of a command: name and text of the target file, if any."""
    target: str = options.pop("target")
    file: Path | None = options.pop("target_file")
    if file is not None:
        return {"target": file.stem, "target_file": read_text(file)}
    return {"target": _profile(target), "target_file": None}


def _profile(text: str) -> str:
    """The target of the version asked for, else of the one installed here, else the newest."""
    from lingconv.api import target

    try:
        installed = metadata.version(text)
    except (metadata.PackageNotFoundError, ValueError):
        installed = None
    return target(text, installed=installed)
