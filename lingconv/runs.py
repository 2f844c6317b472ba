"""How fast runs were, remembered for the user: outputs do not tell how long they took."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from lingconv import foreign
from lingconv.errors import Error, invalid_error

_MAX_SIZE = 10_000


@dataclass(frozen=True)
class Pace:
    """What a finished run did in how many seconds; not what an earlier one had left."""

    seconds: float
    read: int
    written: int
    jobs: int


def remember(state: Path, output: Path, plan: str, pace: Pace, *, source: Path) -> None:
    """Write a run down in the folder `state`, unless that lies in what the run read or wrote.

    A run does not fail because of this.
    """
    path, real = _place(state, output, plan), Path(os.path.realpath(state))
    if any(real.is_relative_to(os.path.realpath(folder)) for folder in (source, output)):
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whatever has the name may have another one as well, and is not written to.
        if path.is_file() or path.is_symlink():
            path.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(pace)) + "\n")


def recall(state: Path, output: Path, plan: str) -> Pace | None:
    """The run of a plan into a folder, if it is remembered here."""
    path = _place(state, output, plan)
    with contextlib.suppress(Error, ValueError, TypeError, KeyError, OverflowError):
        text = foreign.read_bytes(path, _MAX_SIZE, refuse=invalid_error)
        data = foreign.parse_json(text, str(path), refuse=invalid_error)
        pace = Pace(
            float(data["seconds"]), *(int(data[key]) for key in ("read", "written", "jobs"))
        )
        return pace if pace.seconds > 0 else None
    return None


def _place(state: Path, output: Path, plan: str) -> Path:
    place = os.fsencode(os.path.realpath(output))
    name = hashlib.sha256(plan.encode() + b" " + place).hexdigest()
    return state / "runs" / f"{name[:32]}.json"
