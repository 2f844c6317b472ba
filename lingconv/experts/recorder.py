"""Dumps of SGLang's expert distribution recorder, read without unpickling anything but tensors."""

from __future__ import annotations

import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lingconv.errors import invalid_error, limit_of, usage_error
from lingconv.experts.archives import listed, reading, regular
from lingconv.experts.bounds import (
    Numbers,
    check_dtype,
    check_shape,
    check_values,
)
from lingconv.experts.tables import NAME, Table, rows_of_window

PATTERN = "expert_distribution_recorder_*.pt"
_MAP = "last_physical_to_logical_map"
# Older versions let a crafted file run code in spite of weights_only (CVE-2025-32434).
_LEAST_TORCH = (2, 6)
# Some 80,000 tensors. A byte of a pickle may become a list of 64.
_MAX_LIST = 8 * 2**20
_MAX_PICKLE = 4 * 2**20


@dataclass(frozen=True)
class StatDump:
    """What modes `stat` and `stat_approx` write; every rank holds the sum over all ranks."""

    rank: int
    table: Table


@dataclass(frozen=True)
class Record:
    """One forward pass on one rank: tokens that each physical expert got."""

    path: str
    counts: Numbers
    placed: NDArray[np.int64]


@dataclass
class Passes:
    """Records of modes `per_pass` and `per_token`, of all ranks, by forward pass."""

    path: str
    records: dict[int, list[Record]] = field(default_factory=lambda: defaultdict(list))
    layers: int = 0
    experts: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Steps, layers, logical experts."""
        return len(self.records), self.layers, self.experts

    def windows(self, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """The passes from `first` up to `last` in the order of their ids, ranks summed."""
        layers, experts = self.layers, self.experts
        ids = sorted(self.records)[first:last]
        rows = rows_of_window(8 * layers * experts)
        for start in range(0, len(ids), rows):
            chosen = ids[start : start + rows]
            window = np.zeros((len(chosen), layers, experts), np.int64)
            for row, number in zip(window, chosen, strict=True):
                for record in self.records[number]:
                    row += _logical(record, experts)
            yield window


def _logical(record: Record, experts: int) -> NDArray[np.int64]:
    """Counts by logical expert; several physical experts may be copies of one."""
    check_values(record.counts[np.newaxis], record.path)
    layers = len(record.placed)
    cells = (record.placed + experts * np.arange(layers)[:, np.newaxis]).ravel()
    summed = np.bincount(cells, weights=record.counts.ravel(), minlength=layers * experts)
    return summed.reshape(layers, experts).astype(np.int64)


def read_dump(path: str, passes: Passes) -> StatDump | None:
    """Open a dump; per-pass records are added to `passes`, which merges the files of all ranks."""
    data = _load(path)
    if isinstance(data, dict) and NAME in data:
        counts = _array(data[NAME], NAME, path)
        table = Table(path, counts.reshape(check_shape(counts.shape, path)))
        rank = data.get("rank", 0)
        return StatDump(rank if isinstance(rank, int) else 0, table)
    if isinstance(data, dict) and isinstance(data.get("records"), list):
        _read_records(data, path, passes)
        return None
    keys = ", ".join(sorted(map(str, data))[:5]) if isinstance(data, dict) else type(data).__name__
    raise invalid_error(f"no {NAME} and no records, but {keys[:200]}", path)


def _read_records(data: dict[str, Any], path: str, passes: Passes) -> None:
    if not data["records"]:
        raise invalid_error("no pass was recorded", path)
    placed = _array(data.get(_MAP), _MAP, path)
    if placed.dtype.kind not in "iu" or placed.ndim != 2:
        raise invalid_error(f"{_MAP} is not [layers, physical experts]", path)
    check_shape(placed.shape, path)
    logical = placed.astype(np.int64)
    if logical.min() < 0 or logical.max() >= logical.shape[1]:
        raise invalid_error(f"{_MAP} names experts that cannot exist", path)
    layers, experts = len(logical), 1 + int(logical.max())
    if passes.records and (layers, experts) != (passes.layers, passes.experts):
        text = f"{passes.layers} × {passes.experts} in the other files"
        raise invalid_error(f"{layers} layers × {experts} experts, but {text}", path)
    passes.layers, passes.experts = layers, experts
    for record in data["records"]:
        number = record.get("forward_pass_id") if isinstance(record, dict) else None
        if not isinstance(number, int):
            raise invalid_error("a record has no forward_pass_id", path)
        counts = _array(record.get("global_physical_count"), "global_physical_count", path)
        if counts.shape != placed.shape:
            text = f"counts {list(counts.shape)} where {list(placed.shape)} experts are placed"
            raise invalid_error(f"forward pass {number}: {text}", path)
        passes.records[number].append(Record(path, counts, logical))


def _array(value: Any, name: str, path: str) -> Numbers:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        raise invalid_error(f"{name} is no tensor", path)
    if value.dtype.is_complex or value.dtype == torch.bfloat16:
        raise invalid_error(f"{name} is {value.dtype}", path)
    # A crafted stride may make a huge tensor of few bytes.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise invalid_error(f"{name} holds less than its shape {list(value.shape)} says", path)
    array: Numbers = value.numpy()
    check_dtype(array.dtype, path)
    return array


def _load(path: str) -> Any:
    """The objects of a file. Its tensors stay there until they are read."""
    try:
        import torch
    except ImportError as error:
        raise limit_of(error) or usage_error(
            "recorder dumps are read with torch, which is not installed",
            path=path,
            hint="`pip install 'lingconv[torch]'`",
        ) from None
    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version < _LEAST_TORCH:
        text = f"torch {torch.__version__} does not read foreign files safely"
        raise usage_error(text, path=path, hint="`pip install 'lingconv[torch]'`")
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a crafted file leads to
        if limit := limit_of(error):
            raise limit from None
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        raise invalid_error(
            f"more than tensors and plain data, or damaged: {reason}", path
        ) from None


def check_archive(path: str) -> None:
    """Refuse what torch would take much time or memory for."""
    with reading(path), regular(path) as file, listed(file, path, most=_MAX_LIST) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise invalid_error("compressed, which no recorder writes", path)
            if member.filename.endswith("/data.pkl") and member.file_size > _MAX_PICKLE:
                text = f"objects of {member.file_size:,} bytes beside the tensors"
                raise invalid_error(f"{text}, more than {_MAX_PICKLE:,}", path)
