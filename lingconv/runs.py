"""How fast runs were, remembered for the user: outputs do not tell how long they took."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_MAX_SIZE = 10_000


@dataclass(frozen=True)
class Pace:
    """What a finished run did in how many seconds; not what an earlier one had left."""

    seconds: float
    read: int
    written: int
    jobs: int


def remember(state: Path, output: Path, plan: str, pace: Pace) -> None:
    """Write a run down in the folder `state`. A run does not fail because of this."""
    path = _place(state, output, plan)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(pace)) + "\n", encoding="utf-8")


def recall(state: Path, output: Path, plan: str) -> Pace | None:
    """The run of a plan into a folder, if it is remembered here."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with _place(state, output, plan).open(encoding="utf-8") as file:
            data = json.loads(file.read(_MAX_SIZE))
        pace = Pace(
            float(data["seconds"]), *(int(data[key]) for key in ("read", "written", "jobs"))
        )
        return pace if pace.seconds > 0 else None
    return None


def _place(state: Path, output: Path, plan: str) -> Path:
    name = hashlib.sha256(f"{plan} {output.resolve()}".encode()).hexdigest()
    return state / "runs" / f"{name[:32]}.json"
