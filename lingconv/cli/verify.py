"""`lingconv verify`."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lingconv.cli.options import (
    PATH,
    RANK,
    Command,
    Parsed,
    arch_option,
    jobs_option,
    memory_option,
    source_argument,
)
from lingconv.cli.session import Session, command_text
from lingconv.config import parse_days, state_folder
from lingconv.errors import ExitCode, Interrupted, cancelled, usage_error
from lingconv.units import age_text, size_text

if TYPE_CHECKING:
    from lingconv.console import Console
    from lingconv.verify_records import Truth, Verification

LEVELS = ("headers", "sizes", "checksums", "content")
VERDICTS = {
    "ok": ExitCode.DONE,
    "failed": ExitCode.CHECK,
    "unverifiable": ExitCode.UNVERIFIABLE,
}
MAX_UNCOVERED = 10
MODELSCOPE = "ModelScope listing"
# Failures that no download mends.
NOT_DOWNLOADED = ("extra", "leftover", "unsafe-format", "expert")


def _subset(text: str) -> str:
    """A share such as `10%`, or a part such as `3/10`; the core checks the numbers."""
    if text.endswith("%") or "/" in text:
        return text
    raise ValueError(f"{text!r} is neither a share such as 10% nor a part such as 3/10")


@click.command("verify", cls=Command)
@source_argument
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default="checksums",
    show_default=True,
    help="How much is checked; each level includes the ones before.",
)
@click.option(
    "--against",
    type=click.UNPROCESSED,  # it may be the name of a file
    metavar="TRUTH",
    help="Sums, a saved hub listing, a manifest or a signing bundle; the folder that SRC was made "
    "of; or, online, `hub[:ORG/NAME][@REV]` or `modelscope[:ORG/NAME][@REV]`.",
)
@click.option(
    "--subset", type=Parsed("subset", _subset), help="Read only a share: `10%`, or part `3/10`."
)
@click.option("--files", multiple=True, metavar="GLOB", help="Only these files; may be repeated.")
@click.option(
    "--rank",
    type=RANK,
    metavar="RANK",
    help="Only what these ranks of a re-sharded folder need: pp1, or tp3,pp1; they count from 0.",
)
@click.option("--strict", is_flag=True, help="Notes fail the verification too.")
@click.option("--allow-config-edits", is_flag=True, help="Accept an edited config.json.")
@click.option(
    "--experts",
    is_flag=True,
    help="Look at the weights of all experts in the same pass, as `experts stats` does.",
)
@arch_option
@click.option("--fresh", is_flag=True, help="Forget what an earlier verification has read.")
@click.option(
    "--remember-days",
    type=Parsed("number", parse_days),
    help="Believe for so many days what an earlier verification has read, 0 for not at all; "
    "default: 7. [LINGCONV_REMEMBER_DAYS]",
)
@click.option(
    "--write-sums",
    metavar="FILE",
    type=PATH,
    help="Write SHA-256 sums for `sha256sum -c`.",
)
@click.option(
    "--io",
    type=click.Choice(["auto", "direct", "buffered"]),
    default="auto",
    show_default=True,
    help="How bulk data moves.",
)
@jobs_option
@memory_option
@click.pass_obj
def command(session: Session, /, *, source: Path, **options: Any) -> int:
    """Compares a folder with what is known of it, offline.

    Without --against the truth is what the download left: hub metadata, manifests, sums,
    git-lfs pointers. Nothing to compare with ends with 9, never with 0. A verification that was
    stopped goes on where it was: what was read is believed for some days, and the first line says
    what rests on that. With the folder that SRC was made of, the conversion is done
    again, and each of its bytes compared.
    """
    from lingconv import api

    sums: Path | None = options["write_sums"]
    if options["arch_file"] and not options["experts"]:
        raise usage_error("--arch needs --experts")
    against: str | None = options.pop("against")
    truth = {} if against is None else _truth(source, against)
    state, days = state_folder(), session.settings.remember_days.value
    if state is None and days:
        session.console.note("memory of what was verified: none, there is no home folder")
    try:
        with session.reporting() as reporter:
            found = api.verify(
                source,
                **truth,
                jobs=session.settings.jobs.value,
                memory=session.settings.memory.value,
                kernel=session.settings.kernel.value,
                state=state,
                remember_days=days,
                on_progress=reporter,
                **options,
            )
    except Interrupted as stop:
        again = session.command(without=("--fresh",))
        kept, go_on = "files read so far are remembered", "go on with"
        if "source" in truth or state is None or not days:
            kept, go_on = "nothing is kept", "run"
        elif options["experts"]:
            kept, go_on = f"{kept}, what their experts are like is not", "run"
        raise cancelled(stop.number, kept, path=str(source), hint=f"{go_on} `{again}`") from stop
    if session.console.json:
        session.console.answer_json(asdict(found))
    else:
        _show(session.console, found)
        if found.experts:
            from lingconv.cli import expert_weights

            expert_weights.show(session.console, found.experts, source)
    if sums is not None:
        session.console.note(f"wrote sums to {sums}")
    _hint(session, found, source)
    return VERDICTS[found.verdict]


def _truth(source: Path, against: str) -> dict[str, Any]:
    """A file of the user's, the folder that was converted, or what a hub says now."""
    from lingconv import api, hub

    named = hub.parse_against(against)
    if named is None and Path(against).is_dir():
        return {"source": Path(against)}
    if named is None:
        if not Path(against).is_file():
            raise usage_error(f"--against {against!r}: no such file")
        return {"against": Path(against)}
    known = api.verify(source, level="headers").truths
    local = next((truth for truth in known if truth.repository), None)
    repository, commit = (local.repository, local.commit) if local else (None, None)
    listing = hub.fetch(named, repository=repository, revision=commit)
    fetched = (listing.text, listing.origin, named.hub, listing.commit, listing.repository)
    return {"listing": fetched}


def _show(console: Console, found: Verification) -> None:
    memory = found.memory
    if memory.oldest_seconds is not None:
        age = age_text(memory.oldest_seconds)
        text = f"{memory.files:,} of {memory.of:,} files by memory, oldest {age}"
        console.answer(f"{text}: read then, not now", style="bold")
    for truth in found.truths:
        words = [truth.kind, truth.origin]
        words += [f"revision {truth.commit}"] if truth.commit else ["revision unknown"]
        words += ["self-attested"] if truth.self_attested else []
        console.answer(f"truth    {' · '.join(words)} · covers {truth.covers:,} files")
        for note in truth.notes:
            console.note(note)
    failures = [finding for finding in found.findings if finding.failure]
    for finding in found.findings:
        place = f"{finding.file}: {finding.tensor}" if finding.tensor else finding.file
        label = "FAIL" if finding.failure else "note"
        console.answer(f"{label}  {finding.category:<15} {place}: {finding.message}")
    for rest in found.left_out:
        label = "FAIL" if rest.failure else "note"
        console.answer(f"{label}  {rest.category:<15} and {rest.count:,} more")
    counts = Counter(finding.category for finding in failures)
    counts.update({m.category: m.count for m in found.left_out if m.failure})
    if counts:
        by_category = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        console.answer(f"failures {counts.total()}: {by_category}")
    figures = [f"{found.files:,} files", f"{found.verified:,} digests agree"]
    figures += [f"{found.resumed:,} of them from an earlier run"] if found.resumed else []
    figures += [f"{size_text(found.bytes)} read"]
    console.answer(f"{found.verdict} · level {found.level} · {' · '.join(figures)}", style="bold")
    if found.truths and found.uncovered:
        names = ", ".join(found.uncovered[:MAX_UNCOVERED])
        more = len(found.uncovered) - MAX_UNCOVERED
        console.warn(f"covered by no digest: {names}" + (f" and {more} more" if more > 0 else ""))


def _hint(session: Session, found: Verification, source: Path) -> None:
    console = session.console
    if found.verdict == "unverifiable":
        console.warn("there is no digest to compare with")
        console.hint(
            "name a source of truth: `" + command_text("verify", source) + " --against FILE`"
        )
        return
    wrong = (f for f in found.findings if f.failure and f.category not in NOT_DOWNLOADED)
    files = sorted({finding.file for finding in wrong})
    if not files:
        if found.memory.files:
            console.hint(f"read everything again: `{session.command(option='--fresh')}`")
        return
    kinds = [truth.kind for truth in found.truths]
    told = [t for t in found.truths if t.repository or t.commit or t.kind == MODELSCOPE]
    truth = told[0] if told else None
    if "source" in kinds:
        origin = found.truths[kinds.index("source")].origin
        intact = command_text("verify", origin)
        console.hint(f"is the source intact? `{intact}`; if it is, convert it again with --force")
    elif truth is None and "lingconv manifest" in kinds:
        console.hint("write the folder again: the command that made it, with --force")
    else:
        console.hint(f"repair: `{_repair(files, source, truth)}`")


def _repair(files: list[str], source: Path, truth: Truth | None) -> str:
    """The command that downloads files again."""
    repository = truth.repository if truth and truth.repository else "ORG/NAME"
    revision = ["--revision", truth.commit] if truth and truth.commit else []
    if truth and truth.kind == MODELSCOPE:
        words = ["modelscope", "download", "--model", repository, *files, *revision]
        return shlex.join([*words, "--local_dir", str(source)])
    place = ["--local-dir", str(source)]
    if truth and truth.kind == "Hugging Face cache":
        # CACHE/models--ORG--NAME/snapshots/COMMIT
        place = ["--cache-dir", str(source.absolute().parents[2])]
    return shlex.join(["hf", "download", repository, *files, *revision, *place, "--force-download"])
