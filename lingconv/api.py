"""The Python API, and the only module that touches the compiled core.

Tensor bytes never pass through here. Large things (`Catalog`, `Plan`) are handles, small ones are
the dataclasses of `lingconv.records`. Every failure is an `Error`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lingconv import _core, outputs
from lingconv.config import DEFAULT_MEMORY, DEFAULT_REMEMBER_DAYS
from lingconv.errors import core_error
from lingconv.expert_records import ExpertWeights, build_expert_weights
from lingconv.records import (
    Count,
    Dialect,
    Fit,
    Inspection,
    Kernels,
    Linked,
    PlanSummary,
    Rank,
    RunResult,
    Sample,
    Space,
    Split,
    Status,
    SynthResult,
    Tensor,
    TensorNames,
    TensorReport,
    build,
    build_all,
    build_inspection,
    build_names,
)
from lingconv.request import Request as Request
from lingconv.request import Reshard as Reshard
from lingconv.verify_records import Verification, build_verification

StrPath = str | os.PathLike[str]
OnProgress = Callable[[Sample], None]
# Text, address, hub, commit, repository.
Listing = tuple[str, str, Literal["hub", "modelscope"], str | None, str | None]

__version__ = _core.__version__

# Tensors that are handed out at a time: a hostile checkpoint names many.
_PAGE = 8_192


@contextmanager
def _core_errors() -> Iterator[None]:
    try:
        yield
    except _core.CoreError as error:
        raise core_error(error) from None


class Catalog:
    """A checkpoint folder, opened by its headers only."""

    def __init__(self, handle: _core.Catalog) -> None:
        self._handle = handle

    @classmethod
    def open(cls, path: StrPath, *, arch_file: str | None = None) -> Catalog:
        """Open a folder; `arch_file` is the text of an architecture file."""
        with _core_errors():
            return cls(_core.Catalog.open(path, arch_file=arch_file))

    def summary(self) -> Inspection:
        """What the checkpoint is."""
        with _core_errors():
            return build_inspection(json.loads(self._handle.summary()))

    def names(self, glob: str | None = None) -> TensorNames:
        """The names of tensors whose full name matches, numbers folded into ranges."""
        with _core_errors():
            return build_names(json.loads(self._handle.names(glob=glob)))

    def tensors(self, glob: str | None = None) -> list[Tensor]:
        """Tensors whose full name matches, in the order of the shards."""
        return list(self.each_tensor(glob))

    def each_tensor(self, glob: str | None = None) -> Iterator[Tensor]:
        """The same, one by one."""
        following: int | None = 0
        while following is not None:
            with _core_errors():
                page = json.loads(self._handle.tensors(glob=glob, first=following, count=_PAGE))
            yield from build_all(Tensor, page["rows"])
            following = page["next"]


class Plan:
    """What will be written, proved to write every byte once and to lose nothing."""

    def __init__(self, catalog: Catalog, handle: _core.Plan) -> None:
        self._catalog = catalog
        self._handle = handle

    @classmethod
    def build(cls, catalog: Catalog, request: Request) -> Plan:
        """Plan a request."""
        with _core_errors():
            return cls(catalog, _core.Plan.build(catalog._handle, json.dumps(asdict(request))))

    @classmethod
    def load(cls, catalog: Catalog, saved: str) -> Plan:
        """Derive a saved plan, given as text, again; refuse if source or plan is another."""
        with _core_errors():
            return cls(catalog, _core.Plan.load(catalog._handle, saved))

    def summary(self) -> PlanSummary:
        """The plan in numbers."""
        with _core_errors():
            data = json.loads(self._handle.summary())
        counts = {name: build(Count, data[name]) for name in _COUNTS}
        groups = {name: build(Count, count) for name, count in data["keep_groups"].items()}
        ranks = build_all(Rank, data["ranks"])
        return build(PlanSummary, data, keep_groups=groups, ranks=ranks, **counts)

    def explain(self, tensor: str) -> dict[str, Any]:
        """Where a tensor of the source or the output comes from and goes to."""
        with _core_errors():
            return dict(json.loads(self._handle.explain(self._catalog._handle, tensor)))

    def files(self) -> list[str]:
        """Paths, relative to the output, of all files but the manifest and the sums.

        Where stages have folders of their own, only what lies in them.
        """
        with _core_errors():
            return list(json.loads(self._handle.files()))

    def save(self) -> str:
        """Text of the saved plan."""
        with _core_errors():
            return self._handle.save()

    def request(self) -> Request:
        """The request that the plan was made for."""
        with _core_errors():
            return build(Request, json.loads(self._handle.request()))

    def space(self, output: StrPath, *, memory: int = DEFAULT_MEMORY, jobs: int = 0) -> Space:
        """Disk space needed and free at `output`, and the buffers of a run.

        Refuses an output that lies in the source, or the other way round.
        """
        source = self._catalog._handle
        with _core_errors():
            found = self._handle.space(source, output, memory=memory, jobs=jobs)
        return build(Space, json.loads(found))


_COUNTS = ("encode", "decode", "keep", "dropped")


def _tick(on_progress: OnProgress | None) -> Callable[[str], None]:
    if on_progress is None:
        return lambda _text: None
    return lambda text: on_progress(build(Sample, json.loads(text)))


def run(
    catalog: Catalog,
    plan: Plan,
    output: StrPath,
    *,
    jobs: int = 0,
    memory: int = DEFAULT_MEMORY,
    io: Literal["auto", "direct", "buffered"] = "auto",
    kernel: str | None = None,
    paranoid: bool = False,
    verify_source: bool = False,
    worker: tuple[int, int] = (1, 1),
    resume: bool = True,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> RunResult:
    """Run a plan, or the share of worker I of N, and go on where an earlier run was stopped.

    With `verify_source`, the digests of all source files are made in the same pass and compared
    with those that the download left; nothing is published if one differs.

    `on_progress` is called about every 50 ms on the calling thread. What it or a signal handler
    raises stops the run, which keeps what can be resumed.
    """
    with _core_errors():
        text = _core.run(
            catalog._handle,
            plan._handle,
            output=output,
            jobs=jobs,
            memory=memory,
            io=io,
            kernel=kernel,
            paranoid=paranoid,
            verify_source=verify_source,
            worker=worker,
            resume=resume,
            force=force,
            tick=_tick(on_progress),
        )
    data = json.loads(text)
    reports, linked = build_all(TensorReport, data["reports"]), build(Linked, data["linked"])
    return build(RunResult, data, reports=reports, linked=linked)


def finish(catalog: Catalog, plan: Plan, output: StrPath) -> str:
    """Publish a run whose tasks are all recorded; `complete` or `already_complete`."""
    with _core_errors():
        text = _core.finish(catalog._handle, plan._handle, output=output)
    return str(json.loads(text)["outcome"])


def status(catalog: Catalog, plan: Plan, output: StrPath) -> Status:
    """How far all workers have come."""
    with _core_errors():
        return build(Status, json.loads(_core.status(catalog._handle, plan._handle, output=output)))


def verify(
    path: StrPath,
    *,
    level: Literal["headers", "sizes", "checksums", "content"] = "checksums",
    against: StrPath | None = None,
    listing: Listing | None = None,
    source: StrPath | None = None,
    subset: str | None = None,
    files: Sequence[str] = (),
    rank: Mapping[str, int] | None = None,
    strict: bool = False,
    allow_config_edits: bool = False,
    experts: bool = False,
    arch_file: str | None = None,
    jobs: int = 0,
    memory: int = DEFAULT_MEMORY,
    io: Literal["auto", "direct", "buffered"] = "auto",
    kernel: str | None = None,
    state: StrPath | None = None,
    remember_days: float = DEFAULT_REMEMBER_DAYS,
    fresh: bool = False,
    write_sums: StrPath | None = None,
    on_progress: OnProgress | None = None,
) -> Verification:
    """Compare a folder with what is known of it.

    The truth is the file `against`, or `listing`, fetched from a hub, or else what the download
    left in the folder. With `source`, which the folder was made of, the plan is derived and done
    again, and every byte compared, with `memory` bytes of buffers and kernels of level `kernel`.
    `files` are globs, `rank` such as `{"tp": 3, "pp": 1}` stands for the files that a rank of a
    re-sharded folder needs. With `experts` the same pass tells what `expert_weights` does, of the
    whole folder; `arch_file` is the text of an architecture file. Digests are remembered in `state`
    and believed for `remember_days`, unless `fresh` forgets them; `write_sums` is for `sha256sum`.
    """
    outputs.check_sums(write_sums)
    with _core_errors():
        text = _core.verify(
            path,
            level=level,
            against=against,
            listing=listing,
            source=source,
            subset=subset,
            files=list(files),
            rank=None if rank is None else (rank.get("tp"), rank.get("pp")),
            strict=strict,
            allow_config_edits=allow_config_edits,
            experts=experts,
            arch_file=arch_file,
            jobs=jobs,
            memory=memory,
            io=io,
            kernel=kernel,
            state=state,
            remember_days=remember_days,
            fresh=fresh,
            sums=write_sums is not None,
            tick=_tick(on_progress),
        )
    data = json.loads(text)
    outputs.write_sums(write_sums, data["sums"])
    return build_verification(data)


def expert_weights(
    catalog: Catalog,
    *,
    against: Catalog | None = None,
    bias_only: bool = False,
    jobs: int = 0,
    io: Literal["auto", "direct", "buffered"] = "auto",
    kernel: str | None = None,
    on_progress: OnProgress | None = None,
) -> ExpertWeights:
    """Look at the weights of all experts and routers, in one pass; none of it is load.

    `against` holds the same weights in the other number format, FP8 or wide: then the error of
    encoding is measured too. With `bias_only` nothing is read but the biases of the routers.
    """
    with _core_errors():
        text = _core.experts(
            catalog._handle,
            against=None if against is None else against._handle,
            bias_only=bias_only,
            jobs=jobs,
            io=io,
            kernel=kernel,
            tick=_tick(on_progress),
        )
    return build_expert_weights(json.loads(text))


def synth(
    preset: str,
    output: StrPath,
    *,
    layers: int | None = None,
    experts: int | None = None,
    seed: int = 0,
    shard_size: int | None = None,
    mtp: bool = False,
    fp8: bool = False,
    sparse: bool = False,
    jobs: int = 0,
    on_progress: OnProgress | None = None,
) -> SynthResult:
    """Write a synthetic checkpoint with a real architecture's names and shapes."""
    with _core_errors():
        text = _core.synth(
            preset=preset,
            output=Path(output),
            layers=layers,
            experts=experts,
            seed=seed,
            shard_size=shard_size,
            mtp=mtp,
            fp8=fp8,
            sparse=sparse,
            jobs=jobs or os.cpu_count() or 1,
            tick=_tick(on_progress),
        )
    return build(SynthResult, json.loads(text))


def fit(
    catalog: Catalog,
    request: Request,
    *,
    gpus: int,
    gpu_memory: int,
    utilization: float = 0.85,
    max_model_len: int | None = None,
    max_num_seqs: int = 1,
) -> Fit:
    """Which splits of `gpus` work, and what their fullest rank holds; from headers alone.

    Target and number format are those of `request`, whose sizes do not matter. Without
    `max_model_len` sequences are as long as config.json says that the model can take.
    """
    question = {
        "gpus": gpus,
        "gpu_memory": gpu_memory,
        "utilization": utilization,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
    }
    with _core_errors():
        text = _core.fit(catalog._handle, json.dumps(asdict(request)), json.dumps(question))
    data = json.loads(text)
    return build(Fit, data, rows=build_all(Split, data["rows"]))


def held(source: StrPath | Plan) -> dict[str, Any]:
    """What the files of each rank hold, by headers: of a plan, or of a folder that was written."""
    with _core_errors():
        text = source._handle.held() if isinstance(source, Plan) else _core.held(source)
    return dict(json.loads(text))


def target(text: str, *, installed: str | None = None) -> str:
    """Name of the profile that `NAME`, `ENGINE` or `ENGINE@VERSION` stands for."""
    with _core_errors():
        return str(json.loads(_core.target(text, installed))["name"])


def last_words(text: str, code: int) -> None:
    """Let this process end so where the core has no memory left; it would abort."""
    _core.last_words(text, code)


def presets() -> list[str]:
    """Names of the presets of `synth`, largest first."""
    return _core.presets()


def dialects() -> list[Dialect]:
    """The built-in dialects."""
    return build_all(Dialect, json.loads(_core.dialects()))


def kernels() -> Kernels:
    """Kernel levels of this CPU."""
    return build(Kernels, json.loads(_core.kernels()))
