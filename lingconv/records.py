"""What the core answers, as data. Fields are those of its JSON; unknown ones are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from lingconv.units import count_text, size_text

R = TypeVar("R")


def build(record: type[R], data: Mapping[str, Any], **nested: Any) -> R:
    """A record of `data`; `nested` replaces fields that are records themselves."""
    known = {f.name for f in fields(record)}  # type: ignore[arg-type]
    return record(**{name: value for name, value in data.items() if name in known} | nested)


def build_all(record: type[R], rows: list[Mapping[str, Any]]) -> list[R]:
    """A record a row."""
    return [build(record, row) for row in rows]


@dataclass(frozen=True)
class TensorPattern:
    """Tensors whose names differ in numbers alone, of one dtype and shape."""

    name: str
    tensors: int
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class TensorNames:
    """Patterns in the order in which they first appear, and how many tensors are of yet others."""

    patterns: list[TensorPattern]
    left_out: int


def build_names(data: Mapping[str, Any]) -> TensorNames:
    """Names of their JSON."""
    return build(TensorNames, data, patterns=build_all(TensorPattern, data["patterns"]))


@dataclass(frozen=True)
class Tensor:
    """A tensor and where it lies; `offset` counts from the start of the file."""

    name: str
    dtype: str
    shape: list[int]
    file: str
    offset: int
    bytes: int
    role: str | None
    layer: int | None
    expert: int | None


@dataclass(frozen=True)
class Group:
    """Tensors of one group of roles; scales count no parameters."""

    group: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: list[str]

    COLUMNS: ClassVar = ("role", "tensors", "parameters", "bytes", "dtype")

    def cells(self) -> list[str]:
        """Its row of a table of `COLUMNS`."""
        numbers = (f"{self.tensors:,}", count_text(self.parameters), size_text(self.bytes))
        return [self.group, *numbers, ", ".join(self.dtypes)]


@dataclass(frozen=True)
class DtypeRow:
    """Tensors of one element type."""

    dtype: str
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Format:
    """Number format of the weights, and how its scales are spelled."""

    kind: str
    dialect: str | None
    scale_dtype: str | None


@dataclass(frozen=True)
class Layout:
    """What a checkpoint was cut for, and the files that hold the pieces."""

    words: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint is, from headers alone; `None` where the architecture does not say."""

    schema: str
    name: str
    architecture: str | None
    known: bool
    layers: int | None
    dense_layers: int | None
    moe_layers: int | None
    mtp_layers: int | None
    experts: int | None
    experts_per_token: int | None
    shared_experts: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    tensors: int
    parameters: int
    bytes: int
    file_bytes: int
    shards: int
    indexed: bool
    layout: Layout | None
    dtypes: list[DtypeRow]
    groups: list[Group]
    format: Format
    problems: list[str]
    warnings: list[str]


def build_inspection(data: Mapping[str, Any]) -> Inspection:
    """What a checkpoint is, of its JSON."""
    return build(
        Inspection,
        data,
        dtypes=build_all(DtypeRow, data["dtypes"]),
        groups=build_all(Group, data["groups"]),
        format=build(Format, data["format"]),
        layout=build(Layout, data["layout"]) if data["layout"] else None,
    )


@dataclass(frozen=True)
class Count:
    """Tensors and their bytes in the source."""

    tensors: int
    bytes: int


@dataclass(frozen=True)
class Rank:
    """What one rank of a re-sharded output reads; `pp` and `tp` count from 0.

    `bytes` are those of its files, `tensor_bytes` leave headers out.
    """

    pp: int
    tp: int
    files: int
    bytes: int
    tensor_bytes: int


@dataclass(frozen=True)
class Split:
    """A split of GPUs; bytes are those of its fullest rank, 0 for a split with `problems`."""

    tp: int
    pp: int
    ep: int
    kv_copies: int
    weights: int
    kv_cache: int
    bytes: int
    fits: bool
    problems: list[str]


@dataclass(frozen=True)
class Fit:
    """All splits of a number of GPUs, of each of which `usable` bytes may be taken."""

    target: str
    gpus: int
    usable: int
    max_model_len: int
    max_num_seqs: int
    kv_bytes_per_token: int | None
    warnings: list[str]
    rows: list[Split]


@dataclass(frozen=True)
class PlanSummary:
    """A plan in numbers; `{out}` in `launch` stands for the output folder."""

    digest: str
    verb: str
    format: str
    read_bytes: int
    read_files: int
    write_bytes: int
    write_files: int
    link_files: int
    link_bytes: int
    tasks: int
    encode: Count
    decode: Count
    keep: Count
    keep_groups: dict[str, Count]
    dropped: Count
    config_changes: list[str]
    sidecars: list[str]
    warnings: list[str]
    launch: list[str]
    ranks: list[Rank]
    expected_files: int


@dataclass(frozen=True)
class Space:
    """Bytes needed and free at the output, and the buffers that memory and jobs lead to."""

    needed: int
    free: int
    jobs: int
    window: int
    output_buffer: int
    buffers: int
    read_twice: int


@dataclass(frozen=True)
class Sample:
    """How far a run is; `notes` are new since the last sample."""

    total: int
    written: int
    resumed: int
    read: int
    busy: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cancelling: bool = False


@dataclass(frozen=True)
class TensorReport:
    """Error of one encoded tensor; no SQNR where nothing was lost. Shares are of its elements."""

    tensor: str
    role: str | None
    layer: int | None
    sqnr_db: float | None
    max_abs_error: float
    cosine: float
    saturated: float
    underflowed: float
    zero_blocks: int
    elements: int


@dataclass(frozen=True)
class Linked:
    """Files that a run linked instead of writing them: how many of each kind, and how many of them
    have no digest that anybody knows."""

    files: dict[str, int]
    undigested: int


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    `plan` is the digest of what was executed; `reread` bytes of `read` were read once more for the
    digests of source files; `expected` files are of ranks that the folder still lacks.
    """

    outcome: str
    plan: str
    read: int
    reread: int
    written: int
    resumed: int
    kept_nonfinite: list[str]
    reports: list[TensorReport]
    linked: Linked
    expected: int


@dataclass(frozen=True)
class Status:
    """How far all workers of a plan have come; `running` are files begun and not done."""

    tasks: int
    done: int
    bytes: int
    bytes_done: int
    published: bool
    running: list[str]


@dataclass(frozen=True)
class SynthResult:
    """A synthetic checkpoint."""

    files: int
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Kernels:
    """Kernel levels of this CPU, slowest first, and the one used unless another is forced."""

    detected: str
    available: list[str]


@dataclass(frozen=True)
class Dialect:
    """A spelling of a number format."""

    name: str
    description: str
