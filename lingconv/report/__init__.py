"""What is known of a folder as one self-contained HTML page.

Names in checkpoints and manifests come from anywhere: the template escapes all of them, and the
page forbids itself scripts and every request.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lingconv import api, experts, foreign
from lingconv.errors import Error, ExitCode, invalid_error
from lingconv.records import Group
from lingconv.report import views
from lingconv.report.manifest import Manifest, TensorError, read_manifest
from lingconv.runs import Pace, recall
from lingconv.units import count_text, duration_text, size_text

if TYPE_CHECKING:
    from lingconv.records import Inspection

MARK = (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="generator" content="lingconv'
)
_SIZES = (8, 16, 32, 64)
# Parameters of a request that mean nothing where no tensor is encoded.
_ENCODING = ("dialect", "scale", "scale_arith")


def render(folder: Path, loads: experts.Loads | None = None, *, state: Path | None = None) -> str:
    """The page of a checkpoint or an output of lingconv, with recorded `loads` if there are any.

    `state` is where the speed of runs is remembered.

    Raises `Error` 4 if the folder or its manifest cannot be read, or if `loads` are another
    model's.
    """
    catalog = api.Catalog.open(folder)
    found, manifest = catalog.summary(), read_manifest(folder)
    style = files(__name__).joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    view: dict[str, Any] = {
        "generator": f"lingconv {api.__version__}",
        "style": style,
        "style_digest": digest,
        "name": found.name,
        "lead": " · ".join(_lead(found)),
        "model": _model(found),
    }
    if manifest is not None:
        pace = recall(state, folder, manifest.plan) if state else None
        view |= {"plan": _plan(manifest, pace), "digests": _digests(manifest)}
        view["errors"] = _errors(manifest.errors, catalog) if manifest.errors else None
    view["bias"] = _bias(catalog, found)
    if loads is not None:
        view |= _loads(folder, loads, found, manifest)
    return _drawn(view)


def _drawn(view: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__name__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    optional = dict.fromkeys(("plan", "errors", "load", "balance", "bias", "digests"))
    page: str = environment.get_template("page.html.jinja").render(optional | dict(view))
    # Names of files may be any bytes, and half of a character is no text.
    return page.encode(errors="backslashreplace").decode()


def _lead(found: Inspection) -> list[str]:
    words = [found.architecture or "no architecture"]
    if found.known:
        words.append(f"{found.layers} layers ({found.dense_layers} dense, {found.moe_layers} MoE)")
        if found.experts:
            words.append(f"{found.experts} experts, {found.experts_per_token} per token")
    return [*words, f"{count_text(found.parameters)} parameters", size_text(found.bytes)]


def _model(found: Inspection) -> dict[str, Any]:
    columns, rows = Group.COLUMNS, [group.cells() for group in found.groups]
    form = found.format
    words = [form.kind, *(["dialect " + form.dialect] if form.dialect else [])]
    words += [f"cut for {found.layout.words}"] if found.layout else []
    return {
        "text": " · ".join([*words, f"{found.shards:,} shards"]),
        "table": views.Table(columns, rows, right=columns[1:4]),
        "problems": [*found.problems, *found.warnings],
    }


def _plan(manifest: Manifest, pace: Pace | None) -> dict[str, Any]:
    request = manifest.request
    layout = manifest.layout
    encodes = request.get("verb") == "quantize" or layout.get("format")
    silent = {"verb", "reshard", *(() if encodes else _ENCODING)}
    chosen = {k: v for k, v in request.items() if v and k not in silent}
    cut = [f"{name.upper()} {layout[name]}" for name in ("tp", "pp", "ep") if name in layout]
    facts = [("command", str(request.get("verb")))]
    facts += [("layout", " · ".join([str(layout.get("target")), *cut]))] if layout else []
    facts += [("experts", "in the order of a map")] if layout.get("experts") else []
    facts += [(key.replace("_", " "), _value(value)) for key, value in chosen.items()]
    total = sum(file.size for file in manifest.files)
    facts += [
        ("written", f"{len(manifest.files):,} files · {size_text(total)}"),
        ("speed", _pace_text(pace) if pace else "not remembered here"),
        ("left out", f"{manifest.dropped:,} tensors"),
        ("plan", manifest.plan),
        ("source", manifest.source),
        ("by", manifest.tool),
    ]
    return {"facts": facts, "digests": ("plan", "source"), "warnings": manifest.warnings}


def _pace_text(pace: Pace) -> str:
    moved = f"{size_text(pace.read)} read and {size_text(pace.written)} written"
    rate = size_text((pace.read + pace.written) / pace.seconds)
    jobs = f"{pace.jobs} {'job' if pace.jobs == 1 else 'jobs'}"
    return f"{moved} in {duration_text(pace.seconds)} with {jobs}: {rate}/s in all"


def _value(value: Any) -> str:
    text = "yes" if value is True else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "…"


def _digests(manifest: Manifest) -> dict[str, Any]:
    columns = ("file", "bytes", "SHA-256")
    unknown = "not known: linked, read by nobody"
    rows = [[file.path, f"{file.size:,}", file.sha256 or unknown] for file in manifest.files]
    text = "As the manifest has them; lingconv verify or sha256sum -c SHA256SUMS compares them."
    return {"text": text, "table": views.Table(columns, rows, ("bytes",), ("SHA-256",))}


def _errors(errors: Sequence[TensorError], catalog: api.Catalog) -> dict[str, Any]:
    named = {error.tensor for error in errors}
    known = {tensor.name: tensor for tensor in catalog.each_tensor() if tensor.name in named}
    by_role: dict[str, list[TensorError]] = defaultdict(list)
    layers: dict[str, int | None] = {}
    for error in errors:
        tensor = known.get(error.tensor)
        by_role[(tensor and tensor.role) or "other"].append(error)
        layers[error.tensor] = tensor.layer if tensor else None
    return {"table": views.error_table(by_role), "map": views.error_map(by_role, layers)}


def _bias(catalog: api.Catalog, found: Inspection) -> views.HeatMap | None:
    """Pressure of the routers' biases, if the model has experts and biases."""
    if not (found.known and found.experts):
        return None
    layers = api.expert_weights(catalog, bias_only=True).layers
    biases = {layer.layer: layer.bias for layer in layers if layer.bias}
    return views.bias_map(biases) if biases else None


def _loads(
    folder: Path, loads: experts.Loads, found: Inspection, manifest: Manifest | None
) -> dict[str, Any]:
    shape = loads.counts.shape
    if found.known and shape != (found.layers, found.experts):
        raise Error(
            f"loads of {shape[0]} layers × {shape[1]} experts, but the model has {found.layers} × "
            f"{found.experts}",
            kind="invalid",
            exit_code=ExitCode.INVALID,
            path=loads.files[0],
        )
    moe = loads.counts[loads.moe_layers]
    measured = experts.balance(moe)
    unused = int((moe == 0).sum())
    text = (
        f"Recorded steps: {loads.steps:,}, of which {loads.idle_steps:,} idle; layers without "
        f"counts: {len(loads.dense_layers)}. A cell is an expert, its colour the count against "
        "the mean of the layer; on the right the busiest expert against that mean."
    )
    tiles = [
        (count_text(float(moe.sum())), "choices of experts"),
        (f"{measured.slowdown:.2f}×", "busiest expert, all layers"),
        (f"{measured.cv.mean():.2f}", "coefficient of variation"),
        (f"{measured.gini.mean():.2f}", "Gini coefficient"),
        (f"{unused:,}", "experts never chosen"),
    ]
    return {
        "load": {
            "text": text,
            "tiles": tiles,
            "map": views.load_map(loads.moe_layers.tolist(), measured),
        },
        "balance": _balance(folder, loads, manifest),
    }


def _balance(folder: Path, loads: experts.Loads, manifest: Manifest | None) -> dict[str, Any]:
    groups = experts.read_routing(folder).groups
    layout = manifest.layout if manifest else {}
    cut = layout.get("ep")
    total = loads.counts.shape[1]
    sizes = [cut] if isinstance(cut, int) and cut > 1 and total % cut == 0 else []
    sizes += [n for n in _SIZES if total % n == 0 and n < total and n not in sizes]
    sizes = [n for n in sizes if n % groups == 0 or groups % n == 0] or [total]
    placements = [(n, experts.place(loads, ep=n, groups=groups)) for n in sizes]
    rows = [
        (f"EP {n}", found, "nothing can change" if found.fixed else "") for n, found in placements
    ]
    size, shown = next((pair for pair in placements if not pair[1].fixed), placements[0])
    after = "order of lingconv experts place"
    text = (
        f"What another order of the experts would do, within the model's {groups} routing groups. "
        f"The chart shows the layers at EP {size}."
    )
    applied = _applied(loads, layout.get("experts"), groups, sizes[0])
    if applied is not None:
        size, shown, after = sizes[0], applied, "order of the files"
        rows.insert(0, (f"EP {size}, as cut", applied, "recorded before the re-ordering"))
        text = f"The files hold the experts in the order of a map; the chart shows EP {size}."
    chart = views.balance_chart(shown, before="order of the model", after=after)
    return {"text": text, "table": views.balance_table(rows), "chart": chart}


def _applied(loads: experts.Loads, text: Any, groups: int, ep: int) -> experts.Placement | None:
    """The balance in the order of a map that the files were written in."""
    if not isinstance(text, str):
        return None
    try:
        found = foreign.parse_json(text.encode(), "map", refuse=invalid_error)
        order = np.array(found["physical_to_logical_map"], np.int64)
    except (Error, ValueError, KeyError, TypeError, OverflowError):
        return None
    if order.shape != loads.counts.shape or (np.sort(order) != np.arange(order.shape[1])).any():
        return None
    return experts.judged(loads, order, ep=ep, groups=groups)
