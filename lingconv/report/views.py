"""Tables, maps and charts of the page, as data that the template only has to draw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from lingconv.expert_records import RouterBias
from lingconv.experts import Balance, Placement
from lingconv.report.manifest import TensorError

SOUND_SQNR_DB = 30.5
Cell = tuple[int, str]
Legend = list[tuple[int, str]]

_LOAD_STEPS = (0.25, 0.5, 0.75, 1, 1.5, 2, 4)
LOAD_LEGEND: Legend = [
    (0, "none"),
    (1, "below ¼ of the layer's mean"),
    (2, "¼ to ½"),
    (3, "½ to ¾"),
    (4, "¾ to 1"),
    (5, "1 to 1½"),
    (6, "1½ to 2"),
    (7, "2 to 4"),
    (8, "4 times and more"),
]
_BIAS_STEPS = (-2, -1, -0.25, 0, 0.25, 1, 2)
BIAS_LEGEND: Legend = [
    (1, "below −2 standard deviations of all"),
    (2, "−2 to −1"),
    (3, "−1 to −¼"),
    (4, "−¼ to 0"),
    (5, "0 to ¼"),
    (6, "¼ to 1"),
    (7, "1 to 2"),
    (8, "above 2"),
]
_SQNR_STEPS = (28, SOUND_SQNR_DB, 31, 31.5, 32)
# From red to blue: low is bad here.
_SQNR_LEVELS = (8, 7, 4, 3, 2, 1)
SQNR_LEGEND: Legend = [
    (9, "not encoded"),
    (8, "below 28 dB"),
    (7, "28 to 30.5"),
    (4, "30.5 to 31"),
    (3, "31 to 31.5"),
    (2, "31.5 to 32"),
    (1, "32 and more, or exact"),
]


@dataclass(frozen=True)
class Table:
    """Rows of text; columns in `right` are numbers, those in `mono` digests."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()
    mono: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """A row of a heat-map: levels 0 to 9, each with the text shown on hovering."""

    label: str
    cells: list[Cell]
    tail: str = ""


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells; `first` and `last` name the ends of the axis."""

    rows: list[Row]
    first: str
    last: str
    legend: Legend


@dataclass(frozen=True)
class Mark:
    """A layer of the chart, in its coordinates."""

    x: float
    before: float
    after: float
    bound: float
    title: str


@dataclass(frozen=True)
class Chart:
    """Maximum over mean of each layer, before and after."""

    width: int
    height: int
    label: str
    before: str
    after: str
    grid: list[tuple[float, str]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    names: list[tuple[float, str]] = field(default_factory=list)


def load_map(layers: Sequence[int], found: Balance) -> HeatMap:
    """Loads of experts against the mean of their layer."""
    rows = []
    for row, layer in enumerate(layers):
        loads, mean = found.loads[row].tolist(), float(found.mean[row])
        cells = [
            (_load_level(load, mean), f"layer {layer}, expert {expert}: {load:,.6g}")
            if load != int(load)
            else (_load_level(load, mean), f"layer {layer}, expert {expert}: {int(load):,}")
            for expert, load in enumerate(loads)
        ]
        rows.append(Row(f"L{layer:02}", cells, f"{found.max_over_mean[row]:.2f}×"))
    return HeatMap(rows, "expert 0", f"expert {found.loads.shape[1] - 1}", LOAD_LEGEND)


def _load_level(load: float, mean: float) -> int:
    return 0 if load == 0 else 1 + sum(load >= step * mean for step in _LOAD_STEPS)


def bias_map(biases: Mapping[int, RouterBias]) -> HeatMap:
    """Pressure of experts, by layer, against the standard deviation of all of them."""
    pressure = {layer: bias.pressure for layer, bias in biases.items()}
    values = [value for row in pressure.values() for value in row]
    scale = (sum(value**2 for value in values) / len(values)) ** 0.5 or 1.0
    rows = [
        Row(
            f"L{layer:02}",
            [
                (
                    1 + sum(value >= step * scale for step in _BIAS_STEPS),
                    f"layer {layer}, expert {expert}: {value:+.4g}",
                )
                for expert, value in enumerate(row)
            ],
            "all 0" if biases[layer].all_zero else f"{biases[layer].mean:+.3f}",
        )
        for layer, row in sorted(pressure.items())
    ]
    last = max(len(row) for row in pressure.values()) - 1
    return HeatMap(rows, "expert 0", f"expert {last}", BIAS_LEGEND)


def error_table(by_role: Mapping[str, Sequence[TensorError]]) -> Table:
    """The error of the encoded tensors of each role."""
    columns = ("role", "tensors", "SQNR least", "median", "max error", "saturated", "to zero")
    rows = []
    for role, errors in sorted(by_role.items()):
        measured = [error.sqnr_db for error in errors if error.sqnr_db is not None]
        elements = sum(error.elements for error in errors) or 1
        saturated = sum(error.saturated * error.elements for error in errors) / elements
        underflowed = sum(error.underflowed * error.elements for error in errors) / elements
        rows.append(
            [
                role,
                f"{len(errors):,}",
                f"{min(measured):.2f} dB" if measured else "exact",
                f"{median(measured):.2f} dB" if measured else "exact",
                f"{max(error.max_abs_error for error in errors):.3g}",
                f"{100 * saturated:.3g} %",
                f"{100 * underflowed:.3g} %",
            ]
        )
    return Table(columns, rows, right=columns[1:])


def error_map(
    by_role: Mapping[str, Sequence[TensorError]], layers: Mapping[str, int | None]
) -> HeatMap | None:
    """Least SQNR of each role in each layer; `layers` has the layer of each tensor."""
    numbers = [layer for layer in layers.values() if layer is not None]
    if not numbers:
        return None
    rows = []
    for role, errors in sorted(by_role.items()):
        least: dict[int, float] = defaultdict(lambda: float("inf"))
        for error in errors:
            layer = layers.get(error.tensor)
            if layer is not None:
                sqnr = float("inf") if error.sqnr_db is None else error.sqnr_db
                least[layer] = min(least[layer], sqnr)
        if least:
            cells = [_sqnr_cell(role, layer, least) for layer in range(max(numbers) + 1)]
            rows.append(Row(role, cells))
    return HeatMap(rows, "layer 0", f"layer {max(numbers)}", SQNR_LEGEND)


def _sqnr_cell(role: str, layer: int, least: Mapping[int, float]) -> Cell:
    if layer not in least:
        return 9, f"layer {layer}, {role}: not encoded"
    sqnr = least[layer]
    if sqnr == float("inf"):
        return 1, f"layer {layer}, {role}: exact"
    level = _SQNR_LEVELS[sum(sqnr >= step for step in _SQNR_STEPS)]
    return level, f"layer {layer}, {role}: {sqnr:.2f} dB"


def balance_table(rows: Sequence[tuple[str, Placement, str]]) -> Table:
    """Balance of placements over all layers, each with a name and what came of it."""
    columns = (
        "ranks",
        "max/mean before",
        "max/mean after",
        "bound",
        "balancedness before",
        "balancedness after",
        "",
    )
    lines = []
    for name, found, remark in rows:
        mean = found.before.mean
        lines.append(
            [
                name,
                f"{found.before.slowdown:.3f}×",
                f"{found.after.slowdown:.3f}×",
                f"{found.bound.sum() / mean.sum():.3f}×",
                f"{found.before.balancedness.mean():.3f}",
                f"{found.after.balancedness.mean():.3f}",
                remark,
            ]
        )
    return Table(columns, lines, right=columns[1:6])


def balance_chart(found: Placement, *, before: str, after: str) -> Chart:
    """A mark a layer, from the maximum over mean before to that after."""
    width, height, left, low, high = 1000, 260, 52, 230.0, 14.0
    ratios = found.before.max_over_mean.tolist(), found.after.max_over_mean.tolist()
    bounds = (found.bound / found.before.mean).tolist()
    top: float = max(*ratios[0], *ratios[1], 1.1)
    step = (width - left - 12) / max(1, len(bounds))

    def y(ratio: float) -> float:
        return round(low - (ratio - 1) / (top - 1) * (low - high), 1)

    chart = Chart(width, height, "maximum over mean of each layer's ranks", before, after)
    for tick in range(5):
        ratio = 1 + (top - 1) * tick / 4
        chart.grid.append((y(ratio), f"{ratio:.2f}×"))
    every = max(1, len(bounds) // 20)
    for row, layer in enumerate(found.moe_layers.tolist()):
        x = round(left + step * (row + 0.5), 1)
        old, new, bound = ratios[0][row], ratios[1][row], bounds[row]
        title = f"layer {layer}: {before} {old:.3f}×, {after} {new:.3f}×, bound {bound:.3f}×"
        chart.marks.append(Mark(x, y(old), y(new), y(bound), title))
        if row % every == 0:
            chart.names.append((x, f"L{layer}"))
    return chart
