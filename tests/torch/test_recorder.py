"""Dumps of SGLang's expert distribution recorder, written by torch in the recorder's structure.

The structure (keys, dtypes, which rank writes what) is that of SGLang's source; SGLang itself does
not run here, so that its own dumps can be read is not shown.
"""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingconv import experts
from lingconv.errors import Error
from ordeal import FULL
from recordings import read_damaged
from support import answer

# A version is asked for because a folder named `torch` would import as an empty package.
torch = pytest.importorskip("torch", minversion="2.6")

LAYERS, EXPERTS, DENSE = 6, 16, 2


def random_counts(seed: int, steps: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 50, (steps, LAYERS, EXPERTS), generator=generator, dtype=torch.int32)
    counts[:, :DENSE] = 0
    return counts


def save_stat(folder: Path, time: int, counts: Any, rank: int = 0) -> Path:
    """Modes stat and stat_approx: counts by logical expert, summed over all ranks."""
    path = folder / f"expert_distribution_recorder_{time}.{rank}.pt"
    output = {"rank": rank, "logical_count": counts, "average_utilization_rate_over_window": None}
    torch.save(output, path)
    return path


def save_records(folder: Path, rank: int, passes: dict[int, Any], placed: Any, **more: Any) -> Path:
    """Modes per_pass and per_token: counts by physical expert of one rank's tokens."""
    path = folder / f"expert_distribution_recorder_1700000000.5_{rank}.pt"
    records = [
        {
            "forward_pass_id": number,
            "rank": rank,
            "gatherer_key": "primary",
            "global_physical_count": counts,
            **more,
        }
        for number, counts in passes.items()
    ]
    torch.save({"records": records, "last_physical_to_logical_map": placed}, path)
    return path


def identity() -> Any:
    return torch.arange(EXPERTS).repeat(LAYERS, 1)


def test_stat_with_a_circular_buffer(tmp_path: Path) -> None:
    """A buffer of 1,000 rows of which 7 were written."""
    buffer = torch.zeros((1000, LAYERS, EXPERTS), dtype=torch.int32)
    buffer[:7] = random_counts(1, 7)
    loads = experts.read_loads(save_stat(tmp_path, 1, buffer))
    assert np.array_equal(loads.counts, buffer.sum(dim=0).numpy())
    assert (loads.steps, loads.idle_steps) == (1000, 993)
    assert loads.dense_layers.tolist() == [0, 1]


def test_stat_of_several_dumps_and_ranks(tmp_path: Path) -> None:
    """Dumps follow one another; what another rank holds is a copy."""
    first, second = random_counts(2, 3), random_counts(3, 4)
    save_stat(tmp_path, 1, first)
    save_stat(tmp_path, 2, second)
    save_stat(tmp_path, 1, first, rank=1)
    loads = experts.read_loads(tmp_path)
    assert np.array_equal(loads.counts, torch.cat([first, second]).sum(dim=0).numpy())
    assert loads.steps == 7
    assert "1 file left out" in loads.notes[0]


def test_records_of_several_ranks(tmp_path: Path) -> None:
    """Passes are matched by their ids, also where a rank has fewer of them."""
    counts = [random_counts(10 + rank, 5) for rank in range(4)]
    for rank in range(4):
        kept = range(5) if rank else range(3)
        save_records(tmp_path, rank, {100 + p: counts[rank][p] for p in kept}, identity())
    loads = experts.read_loads(tmp_path)
    expected = torch.stack(counts).sum(dim=0)
    expected[3:] -= counts[0][3:]
    assert loads.steps == 5
    assert np.array_equal(loads.counts, expected.sum(dim=0).numpy())
    part = experts.read_loads(tmp_path, steps=(2, 4))
    assert np.array_equal(part.counts, expected[2:4].sum(dim=0).numpy())


def test_records_of_tokens_with_redundant_experts(tmp_path: Path) -> None:
    """Experts 0 to 3 of each layer have a second copy; the map differs from layer to layer."""
    physical, tokens, top = EXPERTS + 4, 9, 4
    generator = torch.Generator().manual_seed(5)
    copies = torch.cat([torch.arange(EXPERTS), torch.arange(4)])
    order = torch.stack([torch.randperm(physical, generator=generator) for _ in range(LAYERS)])
    placed = copies[order]
    chosen = torch.stack(
        [
            torch.stack(
                [torch.randperm(physical, generator=generator)[:top] for _ in range(tokens)]
            )
            for _ in range(LAYERS)
        ]
    ).to(torch.int32)
    chosen[:DENSE] = -1
    counts = torch.zeros((LAYERS, physical), dtype=torch.int32)
    expected = np.zeros((LAYERS, EXPERTS), np.int64)
    for layer in range(DENSE, LAYERS):
        for expert in chosen[layer].flatten().tolist():
            counts[layer, expert] += 1
            expected[layer, placed[layer, expert]] += 1
    details = {
        "input_ids": list(range(tokens)),
        "positions": list(range(tokens)),
        "extend_seq_lens": [tokens],
        "forward_mode": 1,
        "topk_ids_of_layer": chosen,
        "misc_objects": [{"layer_id": 3, "num_tokens_per_rank": [1, 2]}],
    }
    path = save_records(tmp_path, 0, {7: counts}, placed, **details)
    assert np.array_equal(experts.read_loads(path).counts, expected)


def test_the_command(tmp_path: Path) -> None:
    counts = random_counts(4, 3)
    save_stat(tmp_path, 1, counts)
    found = answer("experts", "stats", tmp_path, "--ep", "4")
    assert found["steps"] == 3
    assert found["dense_layers"] == [0, 1]


class Bomb:
    """Makes a folder where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap, path = tmp_path / "trap", tmp_path / "loads.pt"
    torch.save({"rank": 0, "logical_count": random_counts(1, 2), "x": Bomb(trap)}, path)
    with pytest.raises(Error, match="more than tensors and plain data") as refused:
        experts.read_loads(path)
    assert refused.value.exit_code == 4
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), "the trap works"


def _refusal(path: Path) -> str:
    with pytest.raises(Error) as refused:
        experts.read_loads(path)
    assert refused.value.exit_code == 4
    return refused.value.message


def test_crafted_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "loads.pt"
    vast = torch.ones(1, dtype=torch.int32).expand(1000, LAYERS, EXPERTS)
    sound = random_counts(1, 2)
    for value, reason in (
        ({"logical_count": vast}, "less than its shape"),
        ({"logical_count": sound.to_sparse()}, "no tensor"),
        ({"logical_count": sound.to(torch.complex64)}, "complex"),
        ({"logical_count": -sound}, "negative"),
        ({"logical_count": sound[0, 0]}, "shape"),
        ({"logical_count": [[1, 2]]}, "no tensor"),
        ({"physical_to_logical_map": sound}, "no logical_count"),
        ([1, 2], "no logical_count"),
        ({"records": []}, "no pass"),
        ({"records": [{}]}, "no tensor"),
        ({"records": [{}], "last_physical_to_logical_map": identity()}, "forward_pass_id"),
        ({"records": [{}], "last_physical_to_logical_map": identity() + 1}, "cannot exist"),
    ):
        torch.save(value, path)
        assert reason in _refusal(path)
    record = {"forward_pass_id": 1, "global_physical_count": sound[0, :3]}
    torch.save({"records": [record], "last_physical_to_logical_map": identity()}, path)
    assert "forward pass 1" in _refusal(path)
    torch.save({"logical_count": sound}, path, _use_new_zipfile_serialization=False)
    assert "damaged archive" in _refusal(path)
    path.write_bytes(b"")
    assert "damaged archive" in _refusal(path)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """torch never compresses; an archive that does may unpack to any size."""
    sound, path = tmp_path / "sound.pt", tmp_path / "loads.pt"
    torch.save({"logical_count": random_counts(1, 2)}, sound)
    with zipfile.ZipFile(sound) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "compressed" in _refusal(path)


def test_damaged_dumps(tmp_path: Path) -> None:
    """Bytes changed, added or removed: read all the same, or refused with 4."""
    stat = save_stat(tmp_path, 1, random_counts(1, 2))
    records = save_records(tmp_path, 0, {1: random_counts(2, 1)[0]}, identity())
    for path in (stat, records):
        outcomes = read_damaged(path, random.Random(path.name), 1000 if FULL else 60)
        assert outcomes[4] > 20
        assert set(outcomes) <= {0, 4}
