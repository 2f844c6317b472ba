"""vLLM's own loaders take what reshard writes, and every tensor is what they make of the original.

For each layout, each rank builds vLLM's model in a process of its own (gloo on loopback), loads the
original with vLLM's default loader, and then our files with its sharded-state loader: every byte of
every tensor must be the same. Needs an environment with vLLM (`make test-engines`).

What this does not show, since nothing here has a GPU: vLLM refuses FP8 on a CPU without AMX, so its
choice of FP8 kernels is replaced, and only the stored weights are compared, before any layout that
a kernel wants is made of them. Paddings that only some GPU kernels ask for do not happen on a CPU.
No token is generated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import VERSION, Job, run_jobs
from lingconv.reference.codec import U8
from lingconv.reference.storage import Entry, Tensor, read_headers, write_safetensors
from ordeal import FULL
from support import succeed

LAYOUTS = {
    "tp2-pp2": (2, 2, 1),
    "tp2": (2, 1, 1),
    "tp2-ep": (2, 1, 2),
    "tp4-ep": (4, 1, 4),  # more ranks than KV heads
}
OLD = VERSION.startswith("0.11.")
# vLLM 0.11 does not replicate KV heads of Ling models, which reshard refuses.
LING = [name for name in LAYOUTS if not OLD or name != "tp4-ep"]
CASES = [f"{kind}-{name}" for kind in (["bf16"] if OLD else ["bf16", "fp8"]) for name in LING]
MUTATED = CASES[-1]
# vLLM builds embedding, norm and head of Qwen3-MoE on every stage.
OTHERS = ["qwen-tp2-pp2", "qwen-tp4-ep", "qwen8-tp2", "qwen8-tp4-ep", "deepseek-tp2-pp2"]
if FULL:
    OTHERS += ["qwen-tp2", "qwen8-tp2-pp2", "deepseek-tp2", "deepseek-tp2-ep", "deepseek-tp4-ep"]
    OTHERS += [f"deepseek8-{name}" for name in LAYOUTS] + ["moon-tp2-pp2", "moon8-tp2-ep"]
CASES += [] if OLD else OTHERS
# The rank whose files are changed, and one that holds another KV head.
RANK, OTHER = 1, 0 if OLD else 3


@dataclass
class Batch:
    """What every rank of every case found."""

    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def found(self, case: str, candidate: str) -> list[dict[str, Any]]:
        """For each rank, how a candidate differs from the original."""
        ranks = self.jobs[case]
        assert [r["failure"] for r in ranks if "failure" in r] == []
        return [rank["found"][candidate] for rank in ranks]


@pytest.fixture(scope="module")
def batch(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """All cases, so that vLLM is imported once."""
    jobs = []
    for case in CASES:
        kind, layout = case.split("-", 1)
        tp, pp, ep = LAYOUTS[layout]
        folder = tmp_path_factory.mktemp(case)
        sizes = ("--tp", str(tp), "--pp", str(pp))
        options = ("--ep", str(ep), "--shard-size", "200K")
        cut = folder / "cut"
        target = f"vllm@{VERSION}"
        job = Job(case, sources[kind], tp, pp, ep)
        succeed("reshard", sources[kind], "-o", cut, "--target", target, *sizes, *options)
        # vLLM 0.11 wants a folder a stage.
        job.sharded("cut", cut / "pp{pp}" if (cut / "pp0").is_dir() else cut)
        if pp > 1:
            stages = folder / "hf"
            succeed("reshard", sources[kind], "-o", stages, "--target", "hf", *sizes)
            job.default("hf", stages / "pp{pp}")
        if case == MUTATED:
            for name, mutate in MUTATIONS.items():
                job.sharded(name, mutated(cut, folder / name, mutate))
        jobs.append(job)
    return Batch(run_jobs(jobs, tmp_path_factory.mktemp("answers")))


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_what_the_default_loader_makes_of_the_original(
    batch: Batch, case: str
) -> None:
    for rank, found in zip(batch.jobs[case], batch.found(case, "cut"), strict=True):
        assert found == {"error": None, "different": []}
        assert len(rank["tensors"]) > 10


@pytest.mark.parametrize("case", [case for case in CASES if "pp" in case])
def test_stage_folders_load_with_the_default_loader(batch: Batch, case: str) -> None:
    for found in batch.found(case, "hf"):
        assert found == {"error": None, "different": []}


Tensors = dict[str, Tensor]
Mutation = Callable[[Tensors, Tensors], set[str]]


def replaced(tensors: Tensors, names: set[str], change: Callable[[str, U8], U8]) -> set[str]:
    """The names of tensors whose rows (of experts, where they are stacked) went through change."""
    for name in names:
        rows = tensors[name].data.reshape(tensors[name].shape[0], -1)
        tensors[name] = tensors[name]._replace(data=change(name, rows).reshape(-1))
    return names


def named(tensors: Tensors, *suffixes: str) -> set[str]:
    return {name for name in tensors if name.endswith(suffixes)}


def expert_halves_swapped(tensors: Tensors, _: Tensors) -> set[str]:
    names = named(tensors, "w13_weight")
    return replaced(tensors, names, lambda _, rows: np.roll(rows, rows.shape[1] // 2, axis=1))


def dense_halves_swapped(tensors: Tensors, _: Tensors) -> set[str]:
    names = named(tensors, ".0.mlp.gate_up_proj.weight")
    return replaced(tensors, names, lambda _, rows: np.roll(rows, len(rows) // 2, axis=0))


def experts_off_by_one(tensors: Tensors, _: Tensors) -> set[str]:
    names = named(tensors, "w13_weight", "w2_weight")
    return replaced(tensors, names, lambda _, rows: np.roll(rows, 1, axis=0))


def wrong_kv_head(tensors: Tensors, other: Tensors) -> set[str]:
    """Keys and values of the other rank's head behind this one's queries."""

    def change(name: str, rows: U8) -> U8:
        foreign = other[name].data.reshape(rows.shape)
        return np.concatenate([rows[:-256], foreign[-256:]])

    return replaced(tensors, named(tensors, "query_key_value.weight"), change)


def without(suffix: str) -> Mutation:
    def mutate(tensors: Tensors, _: Tensors) -> set[str]:
        name = min(named(tensors, suffix))
        del tensors[name]
        return {name}

    return mutate


MUTATIONS: dict[str, Mutation] = {
    "gate and up of experts swapped": expert_halves_swapped,
    "gate and up of dense layers swapped": dense_halves_swapped,
    "experts off by one": experts_off_by_one,
    "wrong KV head": wrong_kv_head,
    "missing tensor": without("input_layernorm.weight"),
}
if not OLD:
    MUTATIONS["missing constant"] = without("._k_scale")
# By mutation, the tensors that it changed.
CHANGED: dict[str, set[str]] = {}


def files_of(cut: Path, rank: int) -> Tensors:
    entries: dict[str, Entry] = {}
    for path in cut.glob(f"model-rank-{rank}-part-*.safetensors"):
        entries |= read_headers(path)
    return {name: Tensor(name, e.dtype, e.shape, e.read()) for name, e in entries.items()}


def mutated(cut: Path, folder: Path, mutate: Mutation) -> Path:
    """A copy of which the files of one rank are changed."""
    folder.mkdir()
    own = f"model-rank-{RANK}-part-"
    for path in cut.iterdir():
        if not path.name.startswith(own):
            (folder / path.name).symlink_to(path)
    tensors = files_of(cut, RANK)
    CHANGED[folder.name] = mutate(tensors, files_of(cut, OTHER))
    write_safetensors(folder / f"{own}0.safetensors", tensors.values())
    return folder


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_of_one_rank_are_seen_there(batch: Batch, name: str) -> None:
    for rank, found in enumerate(batch.found(MUTATED, name)):
        if rank != RANK:
            assert found == {"error": None, "different": []}
        elif "missing" in name:
            assert all(tensor in found["error"] for tensor in CHANGED[name])
        else:
            assert set(found["different"]) == CHANGED[name] != set()
