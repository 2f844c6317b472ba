"""What must hold of an output folder after any run, however it ended, whatever was done to it.

Nothing here comes from lingconv: it is judged by the file format and by SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "lingconv.manifest.json"
SUMS = "SHA256SUMS"
JOURNALS = ".lingconv"
_SUFFIX = ".safetensors"
_MOST_HEADER = 100_000_000


@dataclass(frozen=True)
class Kept:
    """Files that no run may touch, as they were: content and modification time."""

    files: dict[Path, tuple[str, int]]

    @classmethod
    def of(cls, *places: Path) -> Kept:
        """Everything in folders, and single files."""
        found = [f for p in places for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
        return cls({path: (sha256(path), path.stat().st_mtime_ns) for path in found})

    def violations(self) -> list[str]:
        """Those that are gone or changed."""
        found = []
        for path, (digest, mtime) in self.files.items():
            if not path.is_file():
                found.append(f"{path} is gone")
            elif sha256(path) != digest:
                found.append(f"{path} has other bytes")
            elif path.stat().st_mtime_ns != mtime:
                found.append(f"{path} has another time")
        return found


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def violations(output: Path, expected: dict[str, str]) -> list[str]:
    """What is wrong with an output, whether finished or not.

    `expected` holds the SHA-256 of every data file that an undisturbed run writes.
    """
    if not output.is_dir():
        return []
    found = []
    for name, path in _files(output).items():
        if path.suffix == _SUFFIX and name in expected:
            if problem := _malformed(path):
                found.append(f"{name}: {problem}")
            elif sha256(path) != expected[name]:
                found.append(f"{name} has its final name over wrong bytes")
        elif path.suffix == ".json" and not _is_json(path):
            found.append(f"{name} has its final name over half a file")
    if (output / MANIFEST).exists():
        found += _incomplete(output, expected)
    return found


def _files(output: Path) -> dict[str, Path]:
    files = (path for path in output.rglob("*") if path.is_file())
    names = {str(path.relative_to(output)): path for path in files}
    return {name: path for name, path in names.items() if not name.startswith(f"{JOURNALS}/")}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _malformed(path: Path) -> str | None:
    """Why a safetensors file is none, by its header alone."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MOST_HEADER, path.stat().st_size):
            return f"a header of {length} bytes"
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            return f"no header: {error}"
    header.pop("__metadata__", None)
    ends, end = sorted(entry["data_offsets"] for entry in header.values()), 0
    for start, stop in ends:
        if start != end:
            return f"a hole or an overlap at {start}"
        end = stop
    if 8 + length + end != path.stat().st_size:
        return f"{path.stat().st_size} bytes, where the header says {8 + length + end}"
    return None


def _incomplete(output: Path, expected: dict[str, str]) -> list[str]:
    """What a manifest or sums promise and the folder does not hold."""
    try:
        manifest: Any = json.loads((output / MANIFEST).read_bytes())
    except ValueError as error:
        return [f"the manifest is no JSON: {error}"]
    found = []
    listed = manifest["files"] + manifest["sidecars"]
    digests = {file["path"]: file.get("sha256") for file in listed}
    for file in listed:
        path = output / file["path"]
        if not path.is_file():
            found.append(f"the manifest lists {file['path']}, which is not there")
        elif path.stat().st_size != file["size"]:
            found.append(f"the manifest lists {file['path']} with another size")
        elif file.get("sha256") and sha256(path) != file["sha256"]:
            found.append(f"the manifest lists {file['path']} with another SHA-256")
    lines = (output / SUMS).read_text().splitlines() if (output / SUMS).is_file() else []
    sums = {line[66:]: line[:64] for line in lines if not line.startswith("#")}
    if sums != {name: digest for name, digest in digests.items() if digest}:
        found.append("the sums and the manifest disagree")
    others = {file["path"] for file in manifest.get("expected", [])}
    missing = expected.keys() - digests.keys() - others - _OWN
    found += [f"{name} is missing" for name in sorted(missing)]
    parts = [name for name in _files(output) if name.endswith(f"{_SUFFIX}.part")]
    found += [f"{name} is left over in a complete output" for name in parts]
    return found


_OWN = {MANIFEST, SUMS}


def move_clock(path: Path, mtime_ns: int) -> None:
    """Give a file another modification time."""
    os.utime(path, ns=(mtime_ns, mtime_ns))
