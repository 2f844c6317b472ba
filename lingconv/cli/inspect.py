"""`lingconv inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.options import Command, arch_option, source_argument
from lingconv.cli.session import Session, command_text
from lingconv.cli.tree import tree_lines
from lingconv.errors import ExitCode, usage_error
from lingconv.records import Group
from lingconv.units import size_text

if TYPE_CHECKING:
    from lingconv import api
    from lingconv.console import Console
    from lingconv.records import Inspection, Tensor, TensorNames


# Tensors that are listed one by one; an FP8 model of a trillion parameters has 118,000.
MAX_LISTED = 150_000
# Most characters of their names.
MAX_TEXT = 12_000_000


@click.command("inspect", cls=Command)
@source_argument
@click.option("--tree", is_flag=True, help="The names of all tensors, numbers folded.")
@click.option("--tensor", metavar="GLOB", help="Only the tensors whose full name matches.")
@arch_option
@click.pass_obj
def command(
    session: Session, /, *, source: Path, tree: bool, tensor: str | None, arch_file: str | None
) -> int:
    """Reads headers, index and config.json, and no tensor data.

    Ends with 4 if the tensors contradict config.json.
    """
    from lingconv import api

    console = session.console
    catalog = api.Catalog.open(source, arch_file=arch_file)
    found = catalog.summary()
    names = catalog.names(tensor) if tree else None
    tensors = [] if tree or tensor is None else list(_selected(catalog, tensor))
    if tensor is not None and not (tensors or (names and names.patterns)):
        hint = f"list the names with `{command_text('inspect', source, '--tree')}`"
        raise usage_error(f"--tensor {tensor!r}: no tensor has such a name", hint=hint)
    if console.json:
        console.answer_json(asdict(found) | _json_of(tensors, names))
    elif names is not None:
        _show_tree(console, names)
    elif tensors:
        _show_tensors(console, tensors)
    else:
        _show_summary(console, found)
    for warning in found.warnings:
        console.warn(warning)
    for problem in found.problems:
        console.warn(problem)
    if found.problems:
        return ExitCode.INVALID
    console.hint(_next(found, source))
    return ExitCode.DONE


def _selected(catalog: api.Catalog, glob: str) -> Iterator[Tensor]:
    text = 0
    for count, tensor in enumerate(catalog.each_tensor(glob)):
        text += len(tensor.name)
        if count == MAX_LISTED or text > MAX_TEXT:
            what = f"--tensor {glob!r}: {count:,} tensors and more have such a name"
            raise usage_error(what, hint="ask for fewer of them at a time, or for --tree")
        yield tensor


def _json_of(tensors: list[Tensor], names: TensorNames | None) -> dict[str, Any]:
    if names is not None:
        left_out = {"left_out": names.left_out} if names.left_out else {}
        return {"tree": [asdict(pattern) for pattern in names.patterns]} | left_out
    return {"selected": [asdict(tensor) for tensor in tensors]} if tensors else {}


def _show_tree(console: Console, names: TensorNames) -> None:
    console.answer_table(("name", "tensors"), tree_lines(names.patterns))
    if names.left_out:
        console.answer(f"  … and {names.left_out:,} tensors of other names")


def _show_tensors(console: Console, tensors: list[Tensor]) -> None:
    columns = ("name", "dtype", "shape", "file", "offset", "bytes")
    rows = [
        (t.name, t.dtype, str(t.shape), t.file, f"{t.offset:,}", f"{t.bytes:,}") for t in tensors
    ]
    console.answer_table(columns, rows, right=("offset", "bytes"))


def _model_text(found: Inspection) -> str:
    if not found.known:
        return "architecture unknown: roles and layers cannot be told"
    kinds = [f"{found.dense_layers} dense", f"{found.moe_layers} MoE"]
    if found.mtp_layers:
        kinds.append(f"{found.mtp_layers} MTP")
    parts = [f"{found.layers} layers ({', '.join(kinds)})"]
    if found.experts:
        experts = f"{found.experts} experts, {found.experts_per_token} per token"
        shared = f", {found.shared_experts} shared" if found.shared_experts else ""
        parts.append(experts + shared)
    parts += [f"hidden {found.hidden}", f"heads {found.heads} Q / {found.kv_heads} KV"]
    return " · ".join(parts)


def _format_text(found: Inspection) -> str:
    form = found.format
    if form.dialect is None:
        return form.kind
    return f"{form.kind} · dialect {form.dialect} · scales {form.scale_dtype}"


def _show_summary(console: Console, found: Inspection) -> None:
    console.answer(f"{found.name} · {found.architecture or 'no architecture'}", style="bold")
    console.answer(f"  {_model_text(found)}\n")
    dtypes = [row.dtype for row in found.dtypes]
    total = Group("all", found.tensors, found.parameters, found.bytes, dtypes)
    columns, rows = Group.COLUMNS, [group.cells() for group in [*found.groups, total]]
    console.answer_table(columns, rows, right=columns[1:4])
    index = "index complete" if found.indexed else "no index"
    health = f"{len(found.problems)} problems" if found.problems else "ok"
    console.answer(f"\n  format   {_format_text(found)}")
    if found.layout is not None:
        pieces = f"{found.layout.files:,} files · {size_text(found.layout.bytes)}"
        console.answer(f"  cut for  {found.layout.words} · {pieces}")
    console.answer(f"  headers  {health} · {found.shards:,} shards · {index} · no overlaps")


def _next(found: Inspection, source: Path) -> str:
    if found.layout is not None:
        words: tuple[str | Path, ...] = ("reshard", source, "--target", "hf", "--dry-run")
        return f"put it together again: `{command_text(*words)}`"
    encoded = found.format.dialect is not None
    words = ("dequantize", source) if encoded else ("quantize", "fp8", source)
    return f"see what a conversion would do: `{command_text(*words, '--dry-run')}`"
