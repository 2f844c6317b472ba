"""Plans and results in words."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from lingconv.units import size_text

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.records import PlanSummary, Rank, RunResult, Space, TensorReport

# A sound E4M3 block cast sits near 31.5 dB; less points to a wrong scale or a double rounding.
SOUND_SQNR_DB = 30.5
_LABEL = 9
_COLUMN = 30
_DIGEST = 6
_NAMED = 20
_LONGEST = 160


def _row(*cells: tuple[str, str]) -> str:
    texts = [f"{label:<{_LABEL}}{value}" for label, value in cells]
    return ("  " + "".join(f"{text:<{_COLUMN + _LABEL}}" for text in texts)).rstrip()


def plan_text(plan: PlanSummary, space: Space) -> str:
    """The plan on one page."""
    verb = ("decode", plan.decode) if plan.decode.tensors else ("encode", plan.encode)
    kept = f"{plan.keep.tensors:,}"
    if plan.keep_groups:
        kept += f" ({', '.join(plan.keep_groups)})"
    read = f"{size_text(plan.read_bytes)} from {files_text(plan.read_files)}"
    write = f"{size_text(plan.write_bytes)} to {files_text(plan.write_files)}"
    lines = [
        f"Plan {plan.digest[:_DIGEST]} · {plan.verb} ({plan.format})",
        _row(("read", read), ("write", write)),
        *_linked_row(plan),
        _row((verb[0], f"{verb[1].tensors:,} tensors"), ("dropped", f"{plan.dropped.tensors:,}")),
        _row(("keep", kept)),
        *(_row(("config", _cut(change))) for change in plan.config_changes),
        _row(("memory", f"{size_text(space.buffers)} with {space.jobs} jobs")),
        _row(("space", f"{size_text(space.needed)} needed · {size_text(space.free)} free")),
    ]
    return "\n".join(lines)


def _linked_row(plan: PlanSummary) -> list[str]:
    if not plan.link_files:
        return []
    linked = f"{size_text(plan.link_bytes)} in {files_text(plan.link_files)}"
    return [_row(("link", f"{linked} that stay as they are"))]


def ranks_table(ranks: list[Rank]) -> tuple[tuple[str, ...], list[list[str]]]:
    """What each rank reads: columns and rows; ranks that read as much are one row."""
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for rank in ranks:
        alike[rank.pp, rank.files, rank.bytes].append(rank.tp)
    rows = [
        [str(pp), _span(tps), f"{files:,}", size_text(size)]
        for (pp, files, size), tps in alike.items()
    ]
    return ("stage", "TP rank", "files", "bytes"), rows


def _span(numbers: list[int]) -> str:
    """`0 to 7`, or the numbers one by one."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 2 and last - first + 1 == len(numbers):
        return f"{first} to {last}"
    return ", ".join(map(str, numbers))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def files_text(count: int) -> str:
    """`1 file`, `155 files`."""
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def show_reports(console: Console, reports: list[TensorReport]) -> None:
    """The error of the encoded tensors by role, and a warning for those that look wrong."""
    roles: dict[str, list[TensorReport]] = defaultdict(list)
    for report in reports:
        roles[report.role or "other"].append(report)
    columns = ("role", "tensors", "SQNR least", "median", "max error", "saturated", "to zero")
    rows = [_report_row(role, roles[role]) for role in sorted(roles)]
    console.answer_table(columns, rows, right=columns[1:])


def _report_row(role: str, reports: list[TensorReport]) -> list[str]:
    measured = [report.sqnr_db for report in reports if report.sqnr_db is not None]
    elements = sum(report.elements for report in reports) or 1

    def share(name: str) -> str:
        total: float = sum(getattr(report, name) * report.elements for report in reports)
        return f"{100 * total / elements:.3g} %"

    return [
        role,
        f"{len(reports):,}",
        f"{min(measured):.2f} dB" if measured else "exact",
        f"{median(measured):.2f} dB" if measured else "exact",
        f"{max(report.max_abs_error for report in reports):.3g}",
        share("saturated"),
        share("underflowed"),
    ]


def linked_text(result: RunResult) -> str:
    """`3 files linked (hardlink)`, or nothing."""
    kinds = result.linked.files
    total = files_text(sum(kinds.values()))
    return f"{total} linked ({', '.join(kinds)})" if kinds else ""


def warn_of_results(console: Console, result: RunResult) -> None:
    """What a user should look at after a run."""
    if result.linked.undigested:
        count = files_text(result.linked.undigested)
        console.note(f"{count} were linked unread and have no digest that anybody knows")
    if result.expected:
        count = files_text(result.expected)
        console.note(f"{count} of other ranks are expected; write them into the same folder")
    for tensor in result.kept_nonfinite:
        console.warn(f"kept unquantised, it holds NaN or infinity: {tensor}")
    poor = [r for r in result.reports if r.sqnr_db is not None and r.sqnr_db < SOUND_SQNR_DB]
    for report in sorted(poor, key=lambda r: r.sqnr_db or 0)[:_NAMED]:
        console.warn(f"{report.tensor}: SQNR {report.sqnr_db:.2f} dB, below {SOUND_SQNR_DB}")
    if len(poor) > _NAMED:
        console.warn(f"… and {len(poor) - _NAMED:,} more tensors below {SOUND_SQNR_DB} dB")
