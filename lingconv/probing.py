"""Asks an engine, in its own environment, which tensors each rank wants, and compares.

The engine's Python runs `lingconv/engines/vllm_probe.py`, which shares nothing with this process
but two JSON files. It executes no code of the checkpoint unless that is asked for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lingconv import foreign
from lingconv.errors import (
    Error,
    ExitCode,
    invalid_error,
    process_limit_of,
    usage_error,
)

SCRIPT = Path(__file__).parent / "engines" / "vllm_probe.py"
ENGINES = ("vllm",)
# Longest answer that is read; that of Ling-1T for 32 ranks has some 5 MB.
MAX_ANSWER = 1 << 28
# Lines of what the engine wrote before it failed.
LAST_LINES = 8
CONFIG = "config.json"
MAX_CONFIG = 1 << 24
NO_PYTHON = "name the interpreter of the environment that has vLLM, as /opt/vllm/bin/python"
LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Difference:
    """Tensors of all layers and ranks of which the files and the engine think differently."""

    # missing: the engine wants it, no file holds it; unknown: a file holds it, the engine has no
    # such tensor; other: of another dtype or shape.
    kind: str
    name: str  # with {layer} for the number of the layer
    files: str | None
    engine: str | None
    tensors: int
    ranks: list[str]


@dataclass(frozen=True)
class Answer:
    """What an engine says of a layout."""

    engine: str
    version: str
    platform: str
    stand_ins: list[str]
    tensors: int
    ranks: int
    differences: list[Difference] = field(default_factory=list)
    profile: str | None = None


def ask(
    held: dict[str, Any],
    output: Path,
    python: Path,
    *,
    source: Path | None = None,
    trust_remote_code: bool = False,
    timeout: float = 1800,
) -> Answer:
    """Ask the engine of `python` what it wants, and compare it with what files hold.

    `held` is an answer of `api.held`. If nothing is written yet, `source` is the checkpoint whose
    small files go with the planned config.json.
    """
    if held["engine"] not in ENGINES:
        raise Error(
            f"no way to ask {held['engine']} is known",
            kind="impossible",
            exit_code=ExitCode.IMPOSSIBLE,
            hint=f"known: {', '.join(ENGINES)}",
        )
    with tempfile.TemporaryDirectory(prefix="lingconv-probe-") as scratch:
        folders = _folders(held, output, source, Path(scratch))
        request = {
            "folders": folders,
            "tp": held["tp"],
            "pp": held["pp"],
            "ep": held["ep"],
            "layers": held["layers"] or None,
            "ranks": [[rank["pp"], rank["tp"]] for rank in held["ranks"]],
            "load_format": "sharded_state",
            "trust_remote_code": trust_remote_code,
        }
        answer = _run(python, request, Path(scratch), timeout)
    _refuse(answer, python)
    return compare(held, answer)


def _folders(held: dict[str, Any], output: Path, source: Path | None, scratch: Path) -> list[str]:
    """For each stage a folder with config.json."""
    if source is None:
        own = {rank["pp"]: str(output.absolute() / rank["folder"]) for rank in held["ranks"]}
        other = next(iter(own.values()))
        return [own.get(stage, other) for stage in range(held["pp"])]
    folder = scratch / "planned"
    folder.mkdir()
    for path in source.iterdir():
        small = path.is_file() and path.suffix in (".py", ".json", ".txt", ".model", ".jinja")
        if small and path.name != CONFIG and not path.name.endswith(".index.json"):
            (folder / path.name).symlink_to(path.resolve())
    text = held["config"] or _config(source)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return [str(folder)] * int(held["pp"])


def _config(source: Path) -> str:
    path = foreign.resolve_inside(source, CONFIG, refuse=invalid_error)
    return foreign.read_text(path, MAX_CONFIG, refuse=invalid_error)


def _run(python: Path, request: dict[str, Any], scratch: Path, timeout: float) -> dict[str, Any]:
    question, answer = scratch / "request.json", scratch / "answer.json"
    question.write_text(json.dumps(request), encoding="utf-8")
    # Of this environment, not of the engine's.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
    # vLLM leaves its sockets where temporary files go.
    environment["TMPDIR"] = str(scratch)
    # Not resolved: a link is how an interpreter knows its environment.
    program = python.absolute() if python.parent != Path() else python
    try:
        done = subprocess.run(
            [program, SCRIPT, question, answer],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
            cwd=scratch,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unanswered(
            f"the engine did not answer within {timeout:g} s", python, hint="give it more --timeout"
        ) from None
    except OSError as error:
        message = f"cannot run it: {error.strerror}"
        raise (
            process_limit_of(error) or usage_error(message, path=str(python), hint=NO_PYTHON)
        ) from None
    found = _read(answer)
    lines = [line for line in done.stderr.splitlines() if line.strip()][-LAST_LINES:]
    if found is None:
        raise usage_error(
            f"it is no Python 3.10 or later: it ended with {done.returncode} and no answer",
            path=str(python),
            hint=NO_PYTHON,
        )
    if found.get("failure") == "died":
        message = f"the engine ended with {done.returncode} and no answer"
        raise _unanswered(message, python, details=lines)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        if path.stat().st_size > MAX_ANSWER:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unanswered(
    message: str, python: Path, *, details: list[str] | None = None, hint: str | None = None
) -> Error:
    return Error(
        message,
        kind="unverifiable",
        exit_code=ExitCode.UNVERIFIABLE,
        path=str(python),
        details=details or [],
        hint=hint,
    )


def _refuse(answer: dict[str, Any], python: Path) -> None:
    """Raise what the script says went wrong."""
    failure, error = answer.get("failure"), str(answer.get("error"))
    if failure is None:
        return
    if failure == "no_engine":
        raise usage_error(
            f"no vLLM there: {error}",
            path=str(python),
            hint=NO_PYTHON,
        )
    version = answer.get("version")
    if failure == "architecture":
        raise Error(
            f"vLLM {version} does not know the architecture: {error}",
            kind="impossible",
            exit_code=ExitCode.IMPOSSIBLE,
            path=str(python),
        )
    what = {"config": "does not accept config.json", "build": "cannot build the model"}
    hint = None
    if "trust_remote_code" in error or "configuration class" in error:
        hint = "let it run the configuration class beside config.json with --trust-remote-code"
    details = error.splitlines()
    message = f"vLLM {version} {what.get(failure, failure)}: {details[0] if details else error}"
    raise _unanswered(message, python, details=details[1:LAST_LINES], hint=hint)


def compare(held: dict[str, Any], answer: dict[str, Any]) -> Answer:
    """What files hold against what the engine wants."""
    wanted = {(rank["pp"], rank["tp"]): _tensors(rank) for rank in answer["ranks"]}
    grouped: dict[tuple[str, str, str | None, str | None], dict[str, list[str]]] = {}
    for rank in held["ranks"]:
        where = f"tp{rank['tp']},pp{rank['pp']}"
        for kind, name, ours, theirs in _differences(
            _tensors(rank), wanted[rank["pp"], rank["tp"]]
        ):
            key = (kind, LAYER.sub("{layer}", name), ours, theirs)
            grouped.setdefault(key, {}).setdefault(name, []).append(where)
    differences = [
        Difference(*key, len(names), sorted({rank for ranks in names.values() for rank in ranks}))
        for key, names in sorted(grouped.items(), key=lambda item: item[0][:2])
    ]
    return Answer(
        engine=held["engine"],
        version=str(answer["version"]),
        platform=str(answer["platform"]),
        stand_ins=list(answer["stand_ins"]),
        tensors=sum(len(tensors) for tensors in wanted.values()),
        ranks=len(held["ranks"]),
        differences=differences,
        profile=profile(held, str(answer["version"]), differences) if differences else None,
    )


def _tensors(rank: dict[str, Any]) -> Tensors:
    found = rank["tensors"].items()
    return {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in found}


def _differences(
    files: Tensors, engine: Tensors
) -> Iterator[tuple[str, str, str | None, str | None]]:
    for name in sorted(files.keys() | engine.keys()):
        ours, theirs = files.get(name), engine.get(name)
        if ours != theirs:
            kind = "missing" if ours is None else "unknown" if theirs is None else "other"
            yield kind, name, _text(ours), _text(theirs)


def _text(tensor: tuple[str, tuple[int, ...]] | None) -> str | None:
    return None if tensor is None else f"{tensor[0]} {list(tensor[1])}"


def profile(held: dict[str, Any], version: str, differences: list[Difference]) -> str:
    """A target file for this version: the present one, changed as far as differences tell.

    A tensor that the engine does not know and one that it misses are the same under another name
    if dtype, shape, number and ranks agree and nothing else does.
    """
    before, text, after = _section(str(held["profile"]), held["config"])
    notes = []
    missing = [d for d in differences if d.kind == "missing"]
    unknown = [d for d in differences if d.kind == "unknown"]
    for old in unknown:
        same = [new for new in missing if _alike(old, new)]
        rivals = [other for other in unknown if same and _alike(other, same[0])]
        pattern = _pattern(old.name)
        if len(same) != 1 or len(rivals) != 1:
            notes.append(f"no such tensor: {old.name}  {old.files}")
            continue
        missing.remove(same[0])
        name = f'name = "{pattern}"'
        if name not in text:
            notes.append(f"a new rule: {old.name} is {same[0].name}")
        text = text.replace(name, f'name = "{_pattern(same[0].name)}"')
    for new in missing:
        if new.engine == "F32 []":
            text = text.rstrip("\n") + "\n\n[[architecture.constant]]\n"
            text += f'name = "{new.name}"\nvalue = 1.0 # is it?\n\n'
        else:
            notes.append(f"wanted: {new.name}  {new.engine}")
    notes += [
        f"other: {d.name}  files {d.files}, engine {d.engine}"
        for d in differences
        if d.kind == "other"
    ]
    head = f"# Made from the answers of {held['engine']} {version}: a start, to be checked.\n"
    todo = "".join(f"# TODO {note}\n" for note in notes)
    whole = (before + text + after).rstrip("\n") + "\n"
    return head + todo + _renamed(whole, str(held["engine"]), version)


def _section(profile: str, config: str | None) -> tuple[str, str, str]:
    """What comes before the part for the architecture of config.json, the part, what follows."""
    try:
        names = json.loads(config or "{}")["architectures"]
    except (ValueError, KeyError, TypeError):
        names = []
    starts = [match.start() for match in re.finditer(r"^\[\[architecture\]\]$", profile, re.M)]
    for start, end in zip(starts, [*starts[1:], len(profile)], strict=True):
        named = re.search(r'^name = "([^"]*)"$', profile[start:end], re.M)
        if named and named[1] in names:
            return profile[:start], profile[start:end], profile[end:]
    return profile, "", ""


def _alike(one: Difference, other: Difference) -> bool:
    return (one.files or one.engine, one.tensors, one.ranks) == (
        other.files or other.engine,
        other.tensors,
        other.ranks,
    )


def _pattern(name: str) -> str:
    """A name as target files spell it."""
    return re.sub(r"weight(_scale_inv)?$", "{suffix}", name)


def _renamed(text: str, engine: str, version: str) -> str:
    """A profile for this release and its patches."""
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    major, minor = (*numbers, 0, 0)[:2]
    lines = {
        "name": f'name = "{engine}-{major}.{minor}"',
        "versions": f'versions = ["{major}.{minor}.0", "{major}.{minor + 1}.0"]',
    }
    for key, line in lines.items():
        text = re.sub(rf"^{key} = .*$", line, text, count=1, flags=re.MULTILINE)
    return text
