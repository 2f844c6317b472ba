"""Where the system gives no more memory, threads, descriptors or space: 6 or 8, and what is said.

Every command is run under limits from the least at which Python reaches the program at all.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from downloads import sums
from lingconv.errors import ExitCode
from ordeal import FULL, Words
from requirements import needs
from support import COMMAND, TIMEOUT, environment, published, succeed

SAMPLE = 8
MEBIBYTE = 1 << 20
PROGRAM = "from lingconv.__main__ import main; main()"
# Of whom nothing else runs: the limit counts all that a user runs.
NOBODY = ("setpriv", "--reuid=54322", "--regid=54322", "--clear-groups")


@dataclass(frozen=True)
class Limit:
    """A limit of the system, and what a message says that names it."""

    number: int
    named: str


FILES = Limit(resource.RLIMIT_NOFILE, "ulimit -n")
MEMORY = Limit(resource.RLIMIT_AS, "ulimit -[uv]")
DATA = Limit(resource.RLIMIT_DATA, "limit of memory|more threads")
SIZES = Limit(resource.RLIMIT_FSIZE, "ulimit -f")


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What all commands need, each to write into `new`."""
    folder = tmp_path_factory.mktemp("limits")
    tiny = Path(shutil.copytree(shared / "tiny", folder / "tiny"))
    sums(tiny)
    shutil.copytree(shared / "coded", folder / "coded")
    succeed("quantize", "fp8", tiny, "-o", folder / "out")
    succeed("reshard", tiny, "--tp", "2", "-o", folder / "cut")
    succeed("plan", "quantize", "fp8", tiny, "--save", folder / "plan.json")
    loads = [[[(7 * e + layer) % 11 for e in range(8)] for layer in range(3)]] * 2
    (folder / "loads.json").write_text(json.dumps({"logical_count": loads}))
    yield folder
    shutil.rmtree(folder)


def commands(folder: Path, new: Path) -> dict[str, Words]:
    """One of each kind, written into a new folder."""
    tiny, out, loads = folder / "tiny", folder / "out", folder / "loads.json"
    ranks = ("--tp", "2", "--ep", "2")
    return {
        "inspect": ("inspect", tiny, "--json"),
        "tree": ("inspect", tiny, "--tree"),
        "verify": ("verify", tiny, "--json"),
        "verify content": ("verify", tiny, "--level", "content", "--experts"),
        "verify against": ("verify", out, "--against", tiny),
        "verify sums": ("verify", tiny, "--write-sums", new / "sums"),
        "quantize": ("quantize", "fp8", tiny, "-o", new / "out", "--json"),
        "dry run": ("quantize", "fp8", tiny, "-o", new / "out", "--dry-run"),
        "plan": ("plan", "quantize", "fp8", tiny, "--save", new / "plan.json", "--json"),
        "dequantize": ("dequantize", folder / "coded", "-o", new / "out", "--log", new / "log"),
        "reshard": ("reshard", tiny, *ranks, "--format", "fp8", "-o", new / "out"),
        "undo": ("reshard", folder / "cut", "--target", "hf", "-o", new / "out"),
        "run": ("run", folder / "plan.json", "--source", tiny, "-o", new / "out"),
        "status": ("run", folder / "plan.json", "--source", tiny, "-o", out, "--status"),
        "fit": ("fit", tiny, "--gpus", "2"),
        "experts": ("experts", "stats", tiny, "--json"),
        "experts against": ("experts", "stats", out, "--against", tiny),
        "loads": ("experts", "stats", loads, "--ep", "2", "--json"),
        "place": ("experts", "place", loads, "--ep", "2", "--model", tiny, "-o", new / "map.json"),
        "report": ("report", out, "--loads", loads, "-o", new / "page.html"),
        "synth": ("synth", "tiny", "-o", new / "made"),
        "env": ("env", "--json"),
        "help": ("quantize", "--help"),
        "completion": ("completion", "bash"),
    }


def limited(
    program: str, words: Words, limit: Limit, value: int, new: Path
) -> subprocess.CompletedProcess[str]:
    """A finished command under a limit."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=environment(HOME=str(new), TMPDIR=str(new)),
        preexec_fn=lambda: resource.setrlimit(limit.number, (value, value)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def least(limit: Limit, low: int, high: int, new: Path) -> int:
    """The least value with which Python comes as far as the program; `low` is too little."""
    while high - low > max(1, high // 64):
        middle = (low + high) // 2
        reached = limited("import runpy, lingconv.__main__", (), limit, middle, new)
        low, high = (low, middle) if reached.returncode == 0 else (middle, high)
    return high


def check(done: subprocess.CompletedProcess[str], named: str, what: object) -> None:
    """Success, or one of the two codes and a message that names the limit."""
    assert done.returncode in (0, ExitCode.SPACE, ExitCode.IO), (what, done.stderr)
    for word in ("Traceback", "internal error", "panicked", "Exception ignored"):
        assert word not in done.stderr, (what, done.stderr)
    if done.returncode:
        assert re.search(named, done.stderr), (what, done.stderr)
        assert not done.stdout.strip().startswith("{"), (what, done.stdout)


def trials(values: list[int], seed: int) -> list[tuple[str, int]]:
    """Every command with every value, or a sample in which every command has its turn."""
    names = list(commands(Path(), Path()))
    if FULL:
        return [(name, value) for name in names for value in values]
    chance = random.Random(seed)
    chosen = chance.sample(names, len(names))[:SAMPLE]
    return [(name, chance.choice(values)) for name in chosen]


def sweep(limit: Limit, values: list[int], folder: Path, tmp_path: Path) -> None:
    for name, value in trials(values, seed=limit.number):
        new = tmp_path / "new"
        new.mkdir()
        done = limited(PROGRAM, commands(folder, new)[name], limit, value, new)
        check(done, limit.named, (name, value))
        out = new / "out"
        if done.returncode:
            assert not published(out), (name, value)
        shutil.rmtree(new)


def test_descriptors(folder: Path, tmp_path: Path) -> None:
    first = least(FILES, 3, 64, tmp_path)
    sweep(FILES, list(range(first, 65)), folder, tmp_path)


def test_memory(folder: Path, tmp_path: Path) -> None:
    first = least(MEMORY, 0, 512 * MEBIBYTE, tmp_path) + MEBIBYTE
    few = range(first, 160 * MEBIBYTE, 2 * MEBIBYTE)
    sweep(MEMORY, [*few, *range(160 * MEBIBYTE, 640 * MEBIBYTE, 16 * MEBIBYTE)], folder, tmp_path)


def test_data(folder: Path, tmp_path: Path) -> None:
    first = least(DATA, 0, 512 * MEBIBYTE, tmp_path) + MEBIBYTE
    sweep(DATA, list(range(first, 256 * MEBIBYTE, 4 * MEBIBYTE)), folder, tmp_path)


def test_sizes_of_files(folder: Path, tmp_path: Path) -> None:
    values = [0, 1, 100, 1000, 4095, 4096, 10_000, 65_536, 300_000, 1_000_000, 3_000_000, 10**7]
    sweep(SIZES, values, folder, tmp_path)


@needs("other-user", "prlimit")
def test_threads(folder: Path, tmp_path: Path) -> None:
    for path in (folder, tmp_path, *list(tmp_path.parents)[:3]):
        path.chmod(path.stat().st_mode | 0o055)
    for name, value in trials(list(range(1, 13)), seed=1):
        new = tmp_path / "new"
        new.mkdir()
        new.chmod(0o777)
        words = map(str, commands(folder, new)[name])
        done = subprocess.run(
            ["prlimit", f"--nproc={value}", *NOBODY, sys.executable, "-c", PROGRAM, *words],
            env=environment(HOME=str(new), TMPDIR=str(new)),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        check(done, "ulimit -u", (name, value))
        shutil.rmtree(new)


def test_the_answer_in_a_file_that_may_not_grow(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "answer").open("wb") as answer:
        done = subprocess.run(
            [*COMMAND, "inspect", str(folder / "tiny"), "--json"],
            stdout=answer,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)),
            check=False,
        )
    assert done.returncode == 8
    check(subprocess.CompletedProcess([], 8, "", done.stderr), SIZES.named, "inspect")
