"""What a manifest says of how a folder was written, read as a file that anybody may have made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lingconv.errors import Error, ExitCode, file_error

NAME = "lingconv.manifest.json"
_SCHEMA = "lingconv.manifest/1"
_LARGEST = 2**30


@dataclass(frozen=True)
class File:
    """A written file; a linked one may have been hashed by nobody."""

    path: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class TensorError:
    """Error of one encoded tensor of the source; no SQNR where nothing was lost."""

    tensor: str
    sqnr_db: float | None
    max_abs_error: float
    saturated: float
    underflowed: float
    elements: int


@dataclass(frozen=True)
class Manifest:
    """A manifest without its tensors."""

    tool: str
    plan: str
    source: str
    request: dict[str, Any]
    files: list[File]
    errors: list[TensorError]
    dropped: int
    warnings: list[str]

    @property
    def layout(self) -> dict[str, Any]:
        """Ranks and order of experts that the folder was cut for, if any."""
        layout = self.request.get("reshard")
        return layout if isinstance(layout, dict) else {}


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, if it has one. Raises `Error` 4 if it is none."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        if path.stat().st_size > _LARGEST:
            raise _invalid(path, f"more than {_LARGEST:,} bytes")
        data = json.loads(path.read_bytes())
        if data["schema"] != _SCHEMA:
            raise _invalid(path, f"schema is not {_SCHEMA}")
        return _built(data)
    except OSError as error:
        raise file_error("cannot read the manifest", str(path), error) from None
    except (ValueError, RecursionError) as error:
        raise _invalid(path, str(error)[:200]) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise _invalid(path, f"{type(error).__name__}: {str(error)[:200]}") from None


def _built(data: dict[str, Any]) -> Manifest:
    written = [*data["files"], *data["sidecars"]]
    return Manifest(
        tool=str(data["tool"]),
        plan=str(data["plan"]),
        source=str(data["source"]["digest"]),
        request=dict(data["request"]),
        files=[_file(entry) for entry in written],
        errors=_errors(data["files"], data.get("errors", [])),
        dropped=len(data["dropped"]),
        warnings=[str(warning) for warning in data["warnings"]],
    )


def _file(entry: dict[str, Any]) -> File:
    digest = entry.get("sha256")
    return File(str(entry["path"]), int(entry["size"]), None if digest is None else str(digest))


def _errors(files: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[TensorError]:
    """Each once, though several ranks may hold a piece of the tensor.

    `parts` are tensors of the source that became parts of larger ones.
    """
    measured = [(part["tensor"], part["error"]) for part in parts]
    tensors = (tensor for file in files for tensor in file["tensors"])
    measured += [(tensor["from"], tensor["error"]) for tensor in tensors if "error" in tensor]
    found: dict[str, TensorError] = {}
    for source, error in measured:
        sqnr = error["sqnr_db"]
        found[source] = TensorError(
            tensor=str(source),
            sqnr_db=None if sqnr is None else float(sqnr),
            max_abs_error=float(error["max_abs_error"]),
            saturated=float(error["saturated"]),
            underflowed=float(error["underflowed"]),
            elements=int(error["elements"]),
        )
    return list(found.values())


def _invalid(path: Path, reason: str) -> Error:
    return Error(
        f"no manifest of lingconv: {reason}",
        kind="invalid",
        exit_code=ExitCode.INVALID,
        path=str(path),
    )
