"""What a manifest says of how a folder was written, read as a file that anybody may have made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec.structs import asdict

from lingconv import foreign
from lingconv.errors import Error, impossible_error, invalid_error

NAME = "lingconv.manifest.json"
_SCHEMA = "lingconv.manifest/1"
# 280,000 tensors take so much: Ling-1T for 32 ranks.
_LARGEST = 96 * 2**20
_MOST_OBJECTS = 1_000_000
_MOST_FILES = 20_000
_Size = Annotated[int, msgspec.Meta(ge=0)]


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


class _Error(msgspec.Struct, gc=False):
    """Error of encoding, as a manifest has it."""

    sqnr_db: float | None
    max_abs_error: float
    saturated: float
    underflowed: float
    elements: _Size


class _Tensor(msgspec.Struct, gc=False, rename={"source": "from"}):
    """A written tensor; what is not needed here is not even built."""

    source: str = ""
    error: _Error | None = None


class _Part(msgspec.Struct, gc=False):
    """A tensor of the source that became part of a larger one."""

    tensor: str
    error: _Error


class _Small(msgspec.Struct, gc=False):
    path: str
    size: _Size
    sha256: str | None = None


class _Shard(_Small, gc=False, kw_only=True):
    tensors: list[_Tensor]


class _Source(msgspec.Struct, gc=False):
    digest: str


class _Dropped(msgspec.Struct, gc=False):
    pass


class _Written(msgspec.Struct):
    """A manifest as it lies on the disk."""

    tool: str
    plan: str
    source: _Source
    request: msgspec.Raw
    files: list[_Shard]
    sidecars: list[_Small]
    dropped: list[_Dropped]
    warnings: msgspec.Raw
    errors: list[_Part] = []


class _Form(msgspec.Struct):
    schema: str


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, if it has one. Raises `Error` 4 if it is none, 5 if too large."""
    path = foreign.resolve_inside(folder, NAME, refuse=_invalid)
    if not path.exists():
        return None
    data = foreign.read_bytes(path, _LARGEST, refuse=_invalid)
    objects = data.count(b"{")
    if objects > _MOST_OBJECTS:
        raise _too_large(f"{objects:,} objects, more than {_MOST_OBJECTS:,}", str(path))
    try:
        if msgspec.json.decode(data, type=_Form).schema != _SCHEMA:
            raise _invalid(f"schema is not {_SCHEMA}", str(path))
        return _built(msgspec.json.decode(data, type=_Written), str(path))
    except RecursionError:
        raise _invalid("nested too deeply", str(path)) from None
    except ValueError as error:
        raise _invalid(str(error)[:200], str(path)) from None


def _built(found: _Written, path: str) -> Manifest:
    request, warnings = (
        foreign.parse_json(bytes(part), path, refuse=_invalid)
        for part in (found.request, found.warnings)
    )
    if not isinstance(request, dict) or not isinstance(warnings, list):
        raise _invalid("request is no object, or warnings are no list", path)
    written = [*found.files, *found.sidecars]
    if len(written) > _MOST_FILES or len(warnings) > _MOST_FILES:
        raise _too_large(f"more than {_MOST_FILES:,} files or warnings", path)
    return Manifest(
        tool=found.tool,
        plan=found.plan,
        source=found.source.digest,
        request=request,
        files=[File(entry.path, entry.size, entry.sha256) for entry in written],
        errors=_errors(found),
        dropped=len(found.dropped),
        warnings=[str(warning) for warning in warnings],
    )


def _errors(found: _Written) -> list[TensorError]:
    """Each once, though several ranks may hold a piece of the tensor."""
    measured = [(part.tensor, part.error) for part in found.errors]
    tensors = (tensor for file in found.files for tensor in file.tensors)
    measured += [(tensor.source, tensor.error) for tensor in tensors if tensor.error]
    return [TensorError(name, **asdict(error)) for name, error in dict(measured).items()]


def _invalid(reason: str, path: str) -> Error:
    return invalid_error(f"no manifest of lingconv: {reason}", path)


def _too_large(what: str, path: str) -> Error:
    return impossible_error(f"a manifest too large for a page: {what}", path)
