"""`reshard --experts`: experts in another order compute the same, and come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lingconv.reference import Tensor, open_checkpoint, read_config
from lingconv.reference.storage import INDEX, bytes_of
from ordeal import Words
from support import answer, contents, made_of_any, rebuilt, refuse, succeed
from test_reshard import data_of, reshard

F64 = NDArray[np.float64]
EXPERTS = 16
# Groups of four as wholes, and inside the groups.
WITHIN = [9, 8, 11, 10, 0, 3, 1, 2, 15, 14, 13, 12, 4, 5, 7, 6]
ACROSS = [4, 1, 2, 3, 0, *range(5, EXPERTS)]
LAYOUTS: list[Words] = [
    ("--tp", "2", "--pp", "2"),
    ("--tp", "4", "--ep", "4", "--shard-size", "300K"),
    ("--tp", "2", "--target", "vllm-0.11"),
    ("--pp", "2", "--target", "sglang"),
    ("--pp", "2", "--ep", "2", "--target", "hf"),
    ("--target", "hf"),
]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, the first dense; 16 experts in 4 routing groups, of which 2 are kept."""
    folder = tmp_path_factory.mktemp("grouped") / "tiny"
    succeed("synth", "tiny", "-o", folder, "--experts", str(EXPERTS))
    config = read_config(folder)
    assert (config["n_group"], config["topk_group"]) == (4, 2)
    return folder


def map_file(path: Path, *orders: Sequence[int]) -> Path:
    """A map of a dense layer and `orders`."""
    rows = [list(range(EXPERTS)), *map(list, orders)]
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    return path


@pytest.fixture
def legal(tmp_path: Path) -> Path:
    """A map that keeps the groups, another in each layer."""
    return map_file(tmp_path / "legal.json", WITHIN, WITHIN[::-1])


@pytest.mark.parametrize("layout", LAYOUTS, ids=" ".join)
def test_applied_and_undone(grouped: Path, legal: Path, tmp_path: Path, layout: Words) -> None:
    cut = reshard(grouped, tmp_path / "cut", *layout, "--experts", legal)
    plain = reshard(grouped, tmp_path / "plain", *layout)
    assert data_of(cut).keys() == data_of(plain).keys()
    assert data_of(cut) != data_of(plain)
    back = reshard(cut, tmp_path / "back", "--target", "hf")
    assert data_of(back) == contents(grouped)
    assert answer("verify", cut, "--level", "content")["verdict"] == "ok"
    assert answer("inspect", cut)["layout"]["words"].endswith("experts reordered")


def test_cut_again_keeps_the_order(grouped: Path, legal: Path, tmp_path: Path) -> None:
    first = reshard(grouped, tmp_path / "first", "--tp", "2", "--experts", legal)
    layout = ("--tp", "2", "--ep", "2", "--pp", "2")
    again = reshard(first, tmp_path / "again", *layout)
    same = reshard(first, tmp_path / "same", *layout, "--experts", legal)
    direct = reshard(grouped, tmp_path / "direct", *layout, "--experts", legal)
    assert contents(again) == contents(same)
    assert made_of_any(again) == made_of_any(direct)


def test_fp8_moves_with_its_scales(grouped: Path, legal: Path, tmp_path: Path) -> None:
    encoded, layout = tmp_path / "encoded", ("--tp", "2", "--ep", "2", "--experts", legal)
    succeed("quantize", "fp8", grouped, "-o", encoded)
    first = reshard(encoded, tmp_path / "first", *layout)
    both = reshard(grouped, tmp_path / "both", *layout, "--format", "fp8")
    assert data_of(first) == data_of(both)
    back = reshard(first, tmp_path / "back", "--target", "hf")
    of_encoded = data_of(encoded)
    assert data_of(back) == of_encoded
    named = open_checkpoint(
        reshard(encoded, tmp_path / "named", "--target", "hf", "--experts", legal)
    )
    whole = open_checkpoint(encoded)
    for new, old in enumerate(WITHIN):
        for suffix in ("weight", "weight_scale_inv"):
            path = "model.layers.1.mlp.experts.{}.down_proj." + suffix
            found, moved = named[path.format(new)], whole[path.format(old)]
            assert found.read().tobytes() == moved.read().tobytes()


def test_channel_scales_move_too(grouped: Path, legal: Path, tmp_path: Path) -> None:
    encoded = tmp_path / "encoded"
    succeed("quantize", "fp8", grouped, "-o", encoded, "--dialect", "compressed-tensors-channel")
    cut = reshard(encoded, tmp_path / "cut", "--target", "hf", "--pp", "2", "--experts", legal)
    assert data_of(reshard(cut, tmp_path / "back", "--target", "hf")) == data_of(encoded)


def test_one_ranks_files_are_those_of_all(grouped: Path, legal: Path, tmp_path: Path) -> None:
    layout = ("--tp", "2", "--pp", "2", "--experts", legal)
    whole = contents(reshard(grouped, tmp_path / "whole", *layout))
    part = contents(reshard(grouped, tmp_path / "part", *layout, "--rank", "pp1,tp1"))
    names = {name for name in part if name.endswith(".safetensors")}
    assert names == {n for n in whole if "pp-1-tp-1" in n}
    assert all(part[name] == whole[name] for name in names)


def test_every_source_byte_is_read_once(grouped: Path, legal: Path, tmp_path: Path) -> None:
    bytes_ = answer("inspect", grouped)["bytes"]
    for layout in (("--tp", "2"), ("--target", "hf", "--pp", "2", "--link", "copy")):
        out = tmp_path / layout[1]
        plan = answer("reshard", grouped, "-o", out, *layout, "--experts", legal, "--dry-run")
        plain = answer("reshard", grouped, "-o", out, *layout, "--dry-run")
        assert plan["keep"] == plain["keep"]
        assert plan["digest"] != plain["digest"]
        done = answer("reshard", grouped, "-o", out, *layout, "--experts", legal)
        assert plan["read_bytes"] == done["read"] == bytes_


def test_a_saved_plan_holds_the_map(grouped: Path, legal: Path, tmp_path: Path) -> None:
    layout = ("--tp", "2", "--experts", legal)
    direct = reshard(grouped, tmp_path / "direct", *layout)
    plan = tmp_path / "plan.json"
    succeed("reshard", grouped, "-o", tmp_path / "out", *layout, "--dry-run", "--save", plan)
    legal.unlink()
    succeed("run", plan, "--source", grouped, "-o", tmp_path / "out")
    assert data_of(tmp_path / "out") == data_of(direct)


def test_explain_finds_what_is_written(grouped: Path, legal: Path, tmp_path: Path) -> None:
    options = ("--target", "hf", "--experts", legal, "--explain")
    expert = "model.layers.1.mlp.experts.{}.up_proj.weight"
    found = answer("reshard", grouped, "-o", tmp_path / "o", *options, expert.format(0))
    assert found["sources"][0]["name"] == expert.format(WITHIN[0])
    found = answer(
        "reshard", grouped, "-o", tmp_path / "o", *options, "model.layers.1.mlp.gate.weight"
    )
    rows = [row for target in found["targets"] for row in range(*target["rows"])]
    assert rows == WITHIN


# What the model computes


def moe_layer(folder: Path, hidden: F64, layer: int) -> tuple[list[set[int]], F64]:
    """Experts chosen for each token and the output of one MoE layer, in float64.

    Group-limited routing: scores are sigmoids; a group's score is the sum of its two highest
    biased scores; all but `topk_group` groups are masked, then the best experts are taken.
    """
    config, tensors = read_config(folder), open_checkpoint(folder)

    def weight(name: str) -> F64:
        return tensors[f"model.layers.{layer}.mlp.{name}"].values().astype(np.float64)

    def block(path: str, x: F64) -> F64:
        gate, up = (x @ weight(f"{path}.{part}_proj.weight").T for part in ("gate", "up"))
        activated: F64 = gate / (1 + np.exp(-gate)) * up
        return activated @ weight(f"{path}.down_proj.weight").T

    scores = 1 / (1 + np.exp(-(hidden @ weight("gate.weight").T)))
    biased = scores + weight("gate.expert_bias")
    groups = biased.reshape(len(hidden), config["n_group"], -1)
    best_two = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
    kept = np.argsort(-best_two, axis=1)[:, : config["topk_group"]]
    mask = np.full(groups.shape, -np.inf)
    np.put_along_axis(mask, kept[:, :, None], 0.0, axis=1)
    reachable = (groups + mask).reshape(biased.shape)
    chosen = np.argsort(-reachable, axis=1)[:, : config["num_experts_per_tok"]]
    shares = np.take_along_axis(scores, chosen, axis=1)
    shares *= config["routed_scaling_factor"] / shares.sum(axis=1, keepdims=True)
    out = block("shared_experts", hidden)
    for expert in range(config["num_experts"]):
        weights = np.where(chosen == expert, shares, 0.0).sum(axis=1)
        out += weights[:, None] * block(f"experts.{expert}", hidden)
    return [set(map(int, row)) for row in chosen], out


@pytest.fixture(scope="module")
def routed(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with biases large enough to decide."""
    rng = np.random.default_rng(7)

    def change(tensors: dict[str, Tensor]) -> None:
        for layer in (1, 2):
            name = f"model.layers.{layer}.mlp.gate.expert_bias"
            bias = rng.normal(0, 0.2, EXPERTS).astype(np.float32)
            tensors[name] = tensors[name]._replace(data=bytes_of(bias))

    return rebuilt(grouped, tmp_path_factory.mktemp("routed") / "routed", change)


def tokens(folder: Path) -> F64:
    hidden = read_config(folder)["hidden_size"]
    return np.random.default_rng(11).normal(0, 3, (64, hidden))


def test_the_model_computes_the_same(routed: Path, tmp_path: Path) -> None:
    orders = [WITHIN, WITHIN[::-1]]
    moved = tmp_path / "moved"
    legal = map_file(tmp_path / "legal.json", *orders)
    reshard(routed, moved, "--target", "hf", "--experts", legal)
    x = tokens(routed)
    for layer, order in zip((1, 2), orders, strict=True):
        before, after = moe_layer(routed, x, layer), moe_layer(moved, x, layer)
        assert [{order[new] for new in chosen} for chosen in after[0]] == before[0]
        np.testing.assert_allclose(after[1], before[1], rtol=1e-9, atol=1e-12)


def test_across_groups_it_does_not_and_is_refused(routed: Path, tmp_path: Path) -> None:
    """The map is applied by hand, since lingconv refuses it."""
    moved = tmp_path / "moved"

    def change(tensors: dict[str, Tensor]) -> None:
        whole = dict(tensors)
        for new, old in enumerate(ACROSS):
            for part in ("gate", "up", "down"):
                path = f"model.layers.1.mlp.experts.{{}}.{part}_proj.weight"
                name = path.format(new)
                tensors[name] = whole[path.format(old)]._replace(name=name)
        for name in ("weight", "expert_bias"):
            path = f"model.layers.1.mlp.gate.{name}"
            rows = whole[path].data.reshape(EXPERTS, -1)[ACROSS]
            tensors[path] = whole[path]._replace(data=rows.reshape(-1))

    rebuilt(routed, moved, change)
    x = tokens(routed)
    before, after = moe_layer(routed, x, 1), moe_layer(moved, x, 1)
    differ = sum({ACROSS[n] for n in a} != b for a, b in zip(after[0], before[0], strict=True))
    assert differ > 0
    assert not np.allclose(after[1], before[1], rtol=1e-3)
    broken = map_file(tmp_path / "broken.json", ACROSS, range(EXPERTS))
    out = tmp_path / "out"
    error = refuse(5, "reshard", routed, "-o", out, "--tp", "2", "--experts", broken)
    assert "layer 1: expert 1 " in error["message"]
    assert not out.exists()


# Maps that are refused


def swapped(*rows: Sequence[int]) -> dict[str, object]:
    return {"physical_to_logical_map": [list(row) for row in rows]}


ALL = list(range(EXPERTS))
MALFORMED: list[tuple[object, str]] = [
    (swapped(ALL, ALL), "2 rows, the model has 3 layers"),
    (swapped(ALL, ALL, ALL, ALL), "4 rows"),
    (swapped(ALL, ALL, ALL[:-1]), "layer 2 has 15 entries for 16 experts"),
    (swapped(ALL, [0, 0, *ALL[2:]], ALL), "layer 1 names expert 0 twice"),
    (swapped(ALL, [*ALL[:-1], 16], ALL), "layer 1 names expert 16, the last is 15"),
    (swapped(WITHIN, ALL, ALL), "layer 0 is dense, its row moves expert 9 to 0"),
    (swapped(ALL, [-1, *ALL[1:]], ALL), "no such map"),
    (swapped(ALL, [0.5, *ALL[1:]], ALL), "no such map"),  # type: ignore[list-item]
    ({**swapped(ALL, ALL, ALL), "logical_count": []}, "no such map"),
    ([ALL, ALL, ALL], "no such map"),
    ({}, "no such map"),
]


@pytest.mark.parametrize(("content", "named"), MALFORMED, ids=lambda v: str(v)[:30])
def test_what_is_no_permutation(grouped: Path, tmp_path: Path, content: object, named: str) -> None:
    path, out = tmp_path / "map.json", tmp_path / "out"
    path.write_text(json.dumps(content))
    error = refuse(4, "reshard", grouped, "-o", out, "--tp", "2", "--experts", path)
    assert named in error["message"]
    assert not out.exists()


def test_a_map_that_is_too_long(grouped: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(" " * (17 << 20))
    error = refuse(4, "reshard", grouped, "-o", tmp_path / "out", "--experts", path)
    assert "16777216 bytes" in error["message"]


def test_another_order_on_top_is_refused(grouped: Path, legal: Path, tmp_path: Path) -> None:
    first = reshard(grouped, tmp_path / "first", "--tp", "2", "--experts", legal)
    other = map_file(tmp_path / "other.json", ALL, WITHIN)
    error = refuse(5, "reshard", first, "-o", tmp_path / "o", "--tp", "4", "--experts", other)
    assert "another map already" in error["message"]
    assert "--target hf" in error["hint"]
    refuse(
        5, "quantize", "fp8", reshard(grouped, tmp_path / "h", "--target", "hf", "--experts", legal)
    )


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 4), (None, None)])
def test_without_masked_groups_any_order_will_do(
    grouped: Path, tmp_path: Path, groups: int | None, kept: int | None
) -> None:
    source = rebuilt(grouped, tmp_path / "source", lambda _tensors: None)
    config = read_config(source) | {"n_group": groups, "topk_group": kept}
    (source / "config.json").write_text(json.dumps(config))
    free = map_file(tmp_path / "free.json", ACROSS, ACROSS[::-1])
    cut = reshard(source, tmp_path / "cut", "--tp", "2", "--experts", free)
    back = reshard(cut, tmp_path / "back", "--target", "hf")
    assert data_of(back) == contents(source)


def test_the_prediction_layer_stays(tiny_mtp: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    rows = [list(range(8)), [1, 0, *range(2, 8)], [6, 7, *range(6)]]
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    cut = reshard(tiny_mtp, tmp_path / "cut", "--target", "hf", "--pp", "2", "--experts", path)
    held, whole = open_checkpoint(cut / "pp1"), open_checkpoint(tiny_mtp)
    of_mtp = [name for name in whole if name.startswith("model.layers.3.")]
    assert all(held[n].read().tobytes() == whole[n].read().tobytes() for n in of_mtp)
    back = reshard(cut, tmp_path / "back", "--target", "hf")
    assert data_of(back) == contents(tiny_mtp)
    assert (back / INDEX).exists()
