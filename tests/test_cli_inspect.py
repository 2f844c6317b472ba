"""`inspect`: what it says about sound and about odd checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from support import EXPERT, answer, lingconv, refuse, succeed


def test_the_model_and_its_bytes_by_role(shared: Path) -> None:
    text = succeed("inspect", shared / "tiny").stdout
    assert text.startswith("tiny · BailingMoeV2ForCausalLM\n  3 layers (1 dense, 2 MoE)")
    assert "8 experts, 4 per token, 1 shared · hidden 320 · heads 4 Q / 2 KV" in text
    assert "routed experts" in text
    assert "headers  ok" in text


def test_json_adds_up(shared: Path) -> None:
    for name in ("tiny", "tiny-mtp", "coded"):
        found = answer("inspect", shared / name)
        assert found["known"]
        assert found["problems"] == []
        for figure in ("tensors", "parameters", "bytes"):
            assert sum(group[figure] for group in found["groups"]) == found[figure]
        assert sum(row["bytes"] for row in found["dtypes"]) == found["bytes"]


def test_formats_are_told_apart(shared: Path, tmp_path: Path) -> None:
    assert answer("inspect", shared / "tiny")["format"]["kind"] == "bf16"
    coded = answer("inspect", shared / "coded")["format"]
    assert (coded["kind"], coded["scale_dtype"]) == ("fp8 block", "F32")
    out = tmp_path / "channel"
    succeed(
        "quantize", "fp8", shared / "tiny", "-o", out, "--dialect", "compressed-tensors-channel"
    )
    assert answer("inspect", out)["format"] == {
        "kind": "fp8 channel",
        "dialect": "compressed-tensors-channel",
        "scale_dtype": "BF16",
    }


def test_the_current_folder_is_the_default(shared: Path) -> None:
    assert answer("inspect", cwd=shared / "tiny")["name"] == "tiny"


def test_the_hint_is_the_conversion_that_is_possible(shared: Path) -> None:
    bf16, fp8 = shared / "tiny", shared / "coded"
    assert f"`lingconv quantize fp8 {bf16} --dry-run`" in succeed("inspect", bf16).stderr
    assert f"`lingconv dequantize {fp8} --dry-run`" in succeed("inspect", fp8).stderr


def test_a_tree_folds_numbers(shared: Path) -> None:
    lines = succeed("inspect", shared / "tiny", "--tree").stdout.splitlines()
    assert any("experts.{0..7}" in line for line in lines)
    assert any("gate_proj.weight" in line and "16 × BF16 [256, 320]" in line for line in lines)
    folded = answer("inspect", shared / "tiny", "--tree")
    assert sum(pattern["tensors"] for pattern in folded["tree"]) == folded["tensors"]
    names = {pattern["name"] for pattern in folded["tree"]}
    assert "model.layers.{1..2}.mlp.experts.{0..7}.down_proj.weight" in names


def test_tensors_by_glob(shared: Path) -> None:
    found = answer("inspect", shared / "tiny", "--tensor", "*.experts.3.up_proj.weight")
    assert [tensor["layer"] for tensor in found["selected"]] == [1, 2]
    assert found["selected"][0]["name"] == EXPERT
    assert found["selected"][0]["role"] == "expert.up"
    text = succeed("inspect", shared / "tiny", "--tensor", EXPERT).stdout
    assert "[256, 320]" in text
    assert ".safetensors" in text


def test_a_glob_that_matches_nothing(shared: Path) -> None:
    error = refuse(2, "inspect", shared / "tiny", "--tensor", "nothing*")
    assert "'nothing*'" in error["message"]
    assert "--tree" in error["hint"]


def test_tensors_that_contradict_the_config(tiny: Path) -> None:
    path = tiny / "config.json"
    config = json.loads(path.read_text()) | {"num_experts": 9}
    path.write_text(json.dumps(config))
    done = lingconv("inspect", tiny)
    assert done.returncode == 4
    assert "experts.8.gate_proj.weight is missing" in done.stderr
    assert "problems" in done.stdout


def test_an_unknown_architecture_is_still_inspected(tiny: Path) -> None:
    path = tiny / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["NewForCausalLM"]}
    path.write_text(json.dumps(config))
    done = succeed("inspect", tiny)
    assert done.stdout.startswith("tiny · NewForCausalLM\n  architecture unknown")


def test_an_architecture_file(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text()) | {"architectures": ["NewForCausalLM"]}
    (tiny / "config.json").write_text(json.dumps(config))
    data = Path(__file__).parents[1] / "rust/data/architectures/bailing_moe_v2.toml"
    arch = tmp_path / "new.toml"
    arch.write_text(data.read_text().replace("BailingMoeV2ForCausalLM", "NewForCausalLM"))
    assert answer("inspect", tiny, "--arch", arch)["known"]
    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny, "-o", out, "--arch", arch)
    assert answer("inspect", out, "--arch", arch)["format"]["kind"] == "fp8 block"


def test_an_architecture_file_that_is_none(tiny: Path, tmp_path: Path) -> None:
    arch = tmp_path / "arch.toml"
    arch.write_text("not toml = = =")
    assert refuse(2, "inspect", tiny, "--arch", arch)["kind"] == "usage"
    arch.write_bytes(b"\xff\xfe")
    assert refuse(2, "inspect", tiny, "--arch", arch)["path"] == str(arch)


def test_a_hub_cache_snapshot_is_a_source_but_no_place_for_outputs(
    tiny: Path, tmp_path: Path
) -> None:
    repo = tmp_path / "hub" / "models--inclusionAI--tiny"
    snapshot = repo / "snapshots" / "0123abcd"
    (repo / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(tiny.iterdir())):
        blob = repo / "blobs" / f"{number:064x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    assert answer("inspect", snapshot)["problems"] == []
    assert "-o" in refuse(2, "quantize", "fp8", snapshot)["hint"]
    succeed("quantize", "fp8", snapshot, "-o", tmp_path / "out")
