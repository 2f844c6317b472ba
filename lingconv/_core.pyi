"""The compiled core. Results are JSON text; `lingconv.api` gives them types."""

from collections.abc import Callable
from os import PathLike
from typing import final

__all__ = [
    "Catalog",
    "CoreError",
    "Plan",
    "__version__",
    "dialects",
    "experts",
    "finish",
    "fit",
    "held",
    "kernels",
    "last_words",
    "presets",
    "run",
    "status",
    "synth",
    "target",
    "verify",
]

__version__: str

def last_words(text: str, code: int) -> None: ...

class CoreError(Exception):
    kind: str
    message: str
    details: list[str]
    path: str | None
    tensor: str | None
    hint: str | None
    exit_code: int

@final
class Catalog:
    @staticmethod
    def open(path: str | PathLike[str], *, arch_file: str | None = None) -> Catalog: ...
    def summary(self) -> str: ...
    def names(self, *, glob: str | None = None) -> str: ...
    def tensors(self, *, glob: str | None = None, first: int, count: int) -> str: ...

@final
class Plan:
    @staticmethod
    def build(catalog: Catalog, request: str) -> Plan: ...
    @staticmethod
    def load(catalog: Catalog, saved: str) -> Plan: ...
    def summary(self) -> str: ...
    def explain(self, catalog: Catalog, tensor: str) -> str: ...
    def held(self) -> str: ...
    def save(self) -> str: ...
    def files(self) -> str: ...
    def request(self) -> str: ...
    def space(
        self, catalog: Catalog, output: str | PathLike[str], *, memory: int, jobs: int
    ) -> str: ...

def run(
    catalog: Catalog,
    plan: Plan,
    *,
    output: str | PathLike[str],
    jobs: int,
    memory: int,
    io: str,
    kernel: str | None,
    paranoid: bool,
    verify_source: bool,
    worker: tuple[int, int],
    resume: bool,
    force: bool,
    tick: Callable[[str], None],
) -> str: ...
def fit(catalog: Catalog, request: str, question: str) -> str: ...
def held(path: str | PathLike[str]) -> str: ...
def finish(catalog: Catalog, plan: Plan, *, output: str | PathLike[str]) -> str: ...
def status(catalog: Catalog, plan: Plan, *, output: str | PathLike[str]) -> str: ...
def verify(
    path: str | PathLike[str],
    *,
    level: str,
    against: str | PathLike[str] | None,
    listing: tuple[str, str, str, str | None, str | None] | None,
    source: str | PathLike[str] | None,
    subset: str | None,
    files: list[str],
    rank: tuple[int | None, int | None] | None,
    strict: bool,
    allow_config_edits: bool,
    experts: bool,
    arch_file: str | None,
    jobs: int,
    memory: int,
    io: str,
    kernel: str | None,
    state: str | PathLike[str] | None,
    remember_days: float,
    fresh: bool,
    sums: bool,
    tick: Callable[[str], None],
) -> str: ...
def experts(
    catalog: Catalog,
    *,
    against: Catalog | None,
    bias_only: bool,
    jobs: int,
    io: str,
    kernel: str | None,
    tick: Callable[[str], None],
) -> str: ...
def synth(
    *,
    preset: str,
    output: str | PathLike[str],
    layers: int | None,
    experts: int | None,
    seed: int,
    shard_size: int | None,
    mtp: bool,
    fp8: bool,
    sparse: bool,
    jobs: int,
    tick: Callable[[str], None],
) -> str: ...
def presets() -> list[str]: ...
def dialects() -> str: ...
def target(text: str, installed: str | None) -> str: ...
def kernels() -> str: ...
