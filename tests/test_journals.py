"""Journals whose sums hold and whose contents cannot be: set aside, and the right bytes made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import journals
from journals import Records, each_done
from ordeal import digests
from requirements import needs
from support import EXPERT, lingconv, succeed

pytestmark = needs("xxhash")

Change = Callable[[Records], Records]
OPTIONS = ("--report", "--nonfinite", "keep")


def reports(**fields: Any) -> Change:
    return each_done(lambda done: [report.update(fields) for report in done["reports"]])


def outputs(**fields: Any) -> Change:
    return each_done(lambda done: [output.update(fields) for output in done["outputs"]])


def texts(text: str) -> Change:
    def change(done: dict[str, Any]) -> None:
        for output in done["outputs"]:
            output["tensors"] = [text] * len(output["tensors"])

    return each_done(change)


def stamps(**fields: Any) -> Change:
    return each_done(lambda done: [stamp.update(fields) for stamp in done["stamps"]])


def more(**record: Any) -> Change:
    return lambda records: [*records, record]


CHANGES: dict[str, Change] = {
    "figures of no tensor": reports(source=4_000_000_000),
    "figures of another file": reports(source=0),
    "digests that are none": texts("z" * 32),
    "digests too long": texts("a" * 100_000),
    "another size": outputs(size=2**64 - 1),
    "another path": outputs(path="../../elsewhere"),
    "linked": outputs(linked="hardlink"),
    "linked, unread": outputs(linked="reflink", sha256=None),
    "a sum in capitals": outputs(sha256="A" * 64),
    "no outputs": each_done(lambda done: done.update(outputs=[], stamps=[])),
    "outputs twice": each_done(
        lambda done: done.update(outputs=done["outputs"] * 2, stamps=done["stamps"] * 2)
    ),
    "no sources": each_done(lambda done: done.update(sources=[])),
    "no content": each_done(lambda done: done.update(content=None)),
    "verified by nobody": each_done(
        lambda done: done.update(verified=[{"name": "../x", "sha256": "z"}])
    ),
    "at the end of time": stamps(mtime_ns=2**63 - 1, ctime_ns=-(2**63)),
    "keeps what is nowhere": more(kept="nothing.weight"),
    "keeps what is finite": more(kept="model.layers.0.attention.dense.weight"),
    "keeps an expert": more(kept=EXPERT),
    "claims what is outside": more(claim=["../../elsewhere", "/etc/passwd", "", "x\0"]),
}


@pytest.fixture(scope="module")
def half(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, half of an output, and the whole of it."""
    folder = tmp_path_factory.mktemp("journals")
    words = ("quantize", "fp8", shared / "tiny", *OPTIONS)
    succeed(*words, "-o", folder / "calm")
    succeed(*words, "-o", folder / "out", "--dry-run", "--save", folder / "plan.json")
    run = ("run", folder / "plan.json", "--source", shared / "tiny", "-o", folder / "out")
    succeed(*run, "--worker", "1/2")
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_is_made_again(
    half: Path, shared: Path, tmp_path: Path, change: str
) -> None:
    out = Path(shutil.copytree(half / "out", tmp_path / "out"))
    journal = out / ".lingconv" / "journal.1-of-2"
    journals.write(journal, CHANGES[change](journals.read(journal)))
    done = lingconv("run", half / "plan.json", "--source", shared / "tiny", "-o", out)
    assert done.returncode == 0, done.stderr
    expected, found = digests(half / "calm"), digests(out)
    own = {"lingconv.manifest.json"}
    assert {n: d for n, d in found.items() if n not in own} == {
        n: d for n, d in expected.items() if n not in own
    }
    if change != "figures of another file" and change != "at the end of time":
        assert found == expected
