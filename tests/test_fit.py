"""`lingconv fit`: the splits of a number of GPUs, held against real plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import answer, lingconv, refuse, succeed

KV_OF_LING_1T = 327_680


def rows(source: Path, *options: str) -> dict[tuple[int, int, int], dict[str, Any]]:
    found = answer("fit", source, *options)
    assert found["schema"] == "lingconv.fit/1"
    return {(row["tp"], row["pp"], row["ep"]): row for row in found["rows"]}


def layout(split: tuple[int, int, int]) -> list[str]:
    return [
        word
        for name, n in zip(("tp", "pp", "ep"), split, strict=True)
        for word in (f"--{name}", str(n))
    ]


@pytest.mark.parametrize("options", [(), ("--format", "fp8"), ("--target", "vllm-0.11")])
@pytest.mark.parametrize("gpus", [2, 3, 4, 6])
def test_rows_are_what_plans_report(tiny: Path, gpus: int, options: tuple[str, ...]) -> None:
    found = rows(tiny, "--gpus", str(gpus), *options)
    for split, row in found.items():
        words = ("reshard", tiny, *layout(split), *options, "--dry-run")
        if row["problems"]:
            assert set(row["problems"]) >= set(refuse(5, *words)["details"])
            assert not row["fits"]
            continue
        ranks = answer(*words)["ranks"]
        assert row["weights"] == max(rank["tensor_bytes"] for rank in ranks)
        assert row["bytes"] >= row["weights"] + row["kv_cache"] * (gpus == split[0])


def test_fp8_is_as_if_encoded(tiny: Path, coded: Path) -> None:
    assert rows(tiny, "--gpus", "2", "--format", "fp8") == rows(coded, "--gpus", "2")


def test_the_kv_cache_of_replicated_heads(tiny: Path) -> None:
    """2 KV heads of 128 elements in 3 layers: with 4 ranks every head is held twice."""
    asked = ("--max-model-len", "1000", "--max-num-seqs", "3")
    found = answer("fit", tiny, "--gpus", "4", *asked)
    assert found["kv_bytes_per_token"] == 3 * 2 * 2 * 128 * 2
    of = {(r["tp"], r["ep"]): r for r in found["rows"]}
    assert [of[2, 2]["kv_copies"], of[4, 4]["kv_copies"]] == [1, 2]
    assert of[4, 4]["kv_cache"] == 3 * 2 * 1 * 128 * 2 * 3000


def test_what_fits_depends_on_the_memory(tiny: Path) -> None:
    asked = ("--gpus", "2", "--max-model-len", "16")
    row = rows(tiny, *asked)[2, 1, 2]
    for memory, fits in ((row["bytes"] * 2, True), (row["bytes"] * 2 - 2, False)):
        options = ("--gpu-memory", f"{memory}", "--gpu-memory-utilization", "0.5")
        assert rows(tiny, *asked, *options)[2, 1, 2]["fits"] == fits


def test_a_trillion_parameters_on_32_gpus(tmp_path: Path) -> None:
    source = tmp_path / "ling-1t"
    succeed("synth", "ling-1t", "--sparse", "-o", source)
    found = answer("fit", source, "--gpus", "32")
    assert found["kv_bytes_per_token"] == KV_OF_LING_1T
    of = {(r["tp"], r["pp"], r["ep"]): r for r in found["rows"]}
    assert len(of[32, 1, 1]["problems"]) == 3
    for split in ((8, 4, 1), (32, 1, 32)):
        ranks = answer("reshard", source, *layout(split), "--dry-run")["ranks"]
        assert of[split]["weights"] == max(rank["tensor_bytes"] for rank in ranks)
    assert of[8, 4, 1]["kv_cache"] == KV_OF_LING_1T // 32 * 32_768
    assert of[16, 2, 1]["kv_copies"] == 2
    done = succeed("fit", source, "--gpus", "32", "--format", "fp8")
    assert "FP8 blocks have 128" in done.stdout
    assert f"lingconv reshard {source} --tp" in done.stderr


@pytest.mark.parametrize("target", ["hf", "sglang"])
def test_engines_that_cut_while_loading(tiny: Path, target: str) -> None:
    """Names and fusions change no byte; SGLang has the head on every stage."""
    own = rows(tiny, "--gpus", "2", "--target", target)
    cut = rows(tiny, "--gpus", "2", "--target", "vllm-0.11")
    assert own[2, 1, 1]["weights"] <= cut[2, 1, 1]["weights"]
    assert own[2, 1, 1]["weights"] > cut[2, 1, 1]["weights"] * 0.99
    assert (own[1, 2, 1]["weights"] > cut[1, 2, 1]["weights"]) == (target == "sglang")


def test_no_split_at_all(tiny: Path) -> None:
    done = lingconv("fit", tiny, "--gpus", "7")
    assert done.returncode == 0
    assert "no split of 7 GPUs fits" in done.stderr


def test_numbers_that_make_no_sense(tiny: Path) -> None:
    for options in (("--gpus", "0"), ("--gpus", "5000"), ("--gpu-memory-utilization", "1.5")):
        refuse(2, "fit", tiny, *options)
