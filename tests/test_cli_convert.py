"""`quantize` and `dequantize` as they are typed; bytes are held against the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingconv.reference import (
    compare_checkpoint,
    compare_dequantized,
    open_checkpoint,
    read_config,
)
from support import (
    EXPERT,
    MANIFEST,
    answer,
    contents,
    lingconv,
    overwrite,
    published,
    rebuilt,
    refuse,
    succeed,
)

NAN = b"\xc0\x7f"


def encoded(folder: Path) -> set[str]:
    return {name for name, e in open_checkpoint(folder).items() if e.dtype == "F8_E4M3"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": "ue8m0"},
        {"scale_arith": "cuda"},
        {"dialect": "ling"},
        {"dialect": "ling", "scale_arith": "cuda"},
        {"dialect": "compressed-tensors"},
        {"dialect": "compressed-tensors-cpu"},
        {"dialect": "compressed-tensors-channel"},
        {"experts_only": True},
    ],
    ids=str,
)
def test_every_dialect_is_what_the_reference_says(shared: Path, tmp_path: Path, options) -> None:
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    out, back = tmp_path / "out", tmp_path / "back"
    succeed("quantize", "fp8", shared / "tiny-mtp", "-o", out, "--prove", *words)
    expected = {{"scale_arith": "arith"}.get(name, name): v for name, v in options.items()}
    assert compare_checkpoint(shared / "tiny-mtp", out, **expected) == []
    succeed("dequantize", out, "-o", back)
    assert compare_dequantized(out, back) == []


def test_the_default_names(tiny: Path) -> None:
    succeed("quantize", "fp8", tiny)
    succeed("quantize", "fp8", "--dialect", "ling", cwd=tiny)
    succeed("dequantize", f"{tiny.name}-fp8/", cwd=tiny.parent)
    names = {path.name for path in tiny.parent.iterdir()}
    assert names == {"tiny", "tiny-fp8", "tiny-fp8-ling", "tiny-fp8-bf16"}
    assert compare_dequantized(tiny.parent / "tiny-fp8", tiny.parent / "tiny-fp8-bf16") == []


def test_back_and_forth_gives_the_same_bytes(coded: Path, tmp_path: Path) -> None:
    back, again = tmp_path / "back", tmp_path / "again"
    succeed("dequantize", coded, "-o", back)
    succeed("quantize", "fp8", back, "-o", again)
    stored = {name: entry.read().tobytes() for name, entry in open_checkpoint(coded).items()}
    assert {n: e.read().tobytes() for n, e in open_checkpoint(again).items()} == stored


def test_jobs_memory_io_and_kernel_change_no_byte(tiny: Path, tmp_path: Path) -> None:
    ways = {
        "plain": ([], {}),
        "narrow": (["-j", "1", "--memory", "8M"], {"LINGCONV_KERNEL": "scalar"}),
        "direct": (["-j", "3", "--io", "direct"], {"LINGCONV_KERNEL": "baseline"}),
        "careful": (["--io", "buffered", "--paranoid", "--report"], {}),
    }
    for name, (options, variables) in ways.items():
        succeed("quantize", "fp8", tiny, "-o", tmp_path / name, *options, **variables)
    written = {name: contents(tmp_path / name) for name in ways}
    for files in written.values():
        files.pop(MANIFEST)
    assert written["narrow"] == written["direct"] == written["careful"] == written["plain"]


def test_a_dry_run_writes_nothing(tiny: Path) -> None:
    done = succeed("quantize", "fp8", tiny, "--dry-run")
    assert done.stdout.startswith("Plan ")
    assert done.stdout.endswith("\nNothing written.\n")
    assert "quantization_config" in done.stdout
    assert f"hint: to do it: `lingconv quantize fp8 {tiny}`" in done.stderr
    assert [path.name for path in tiny.parent.iterdir()] == ["tiny"]


def test_plan_is_the_dry_run(tiny: Path) -> None:
    plan = answer("plan", "quantize", "fp8", tiny, "--experts-only")
    dry = answer("quantize", "fp8", tiny, "--experts-only", "--dry-run")
    for found in (plan, dry):
        assert found["space"].pop("free") > 0
    assert plan == dry
    assert plan["encode"]["tensors"] == 48
    assert plan["output"] == f"{tiny}-fp8"
    assert not Path(plan["output"]).exists()


def test_a_dry_run_without_space_warns(tmp_path: Path) -> None:
    full = tmp_path / "full-size"
    succeed("synth", "ling-1t", "-o", full, "--sparse")
    plan = answer("quantize", "fp8", full, "--dry-run")
    done = succeed("quantize", "fp8", full, "--dry-run")
    if plan["space"]["needed"] > plan["space"]["free"]:
        assert "too little space" in done.stderr
    assert plan["encode"]["tensors"] == 58_768


def test_explain(tiny: Path) -> None:
    found = answer("plan", "quantize", "fp8", tiny, "--explain", EXPERT)
    assert found["operation"] == "encode"
    names = [target["name"] for target in found["targets"]]
    assert names == [EXPERT, f"{EXPERT}_scale_inv"]
    text = succeed("quantize", "fp8", tiny, "--explain", f"{EXPERT}_scale_inv").stdout
    assert "encode" in text
    assert not Path(f"{tiny}-fp8").exists()
    refuse(2, "quantize", "fp8", tiny, "--explain", "nothing")


def test_explain_says_why_a_tensor_is_dropped(tiny_mtp: Path) -> None:
    name = "model.layers.3.eh_proj.weight"
    done = succeed("quantize", "fp8", tiny_mtp, "--drop-mtp", "--explain", name)
    assert "dropped: MTP layer" in done.stdout


def test_only_and_skip(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    only = ["--only", "model.layers.1.*", "--only", "*.attention.*"]
    succeed("quantize", "fp8", tiny, "-o", out, *only, "--skip", "*shared_experts*")
    names = encoded(out)
    assert EXPERT in names
    assert "model.layers.0.attention.dense.weight" in names
    assert not any("shared_experts" in name or "layers.0.mlp" in name for name in names)
    kept = read_config(out)["quantization_config"]["modules_to_not_convert"]
    assert "model.layers.1.mlp.shared_experts.up_proj" in kept


def test_drop_mtp(tiny_mtp: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny_mtp, "-o", out, "--drop-mtp")
    assert not any("layers.3." in name for name in open_checkpoint(out))
    assert answer("inspect", out)["problems"] == []
    back = tmp_path / "back"
    succeed("quantize", "fp8", tiny_mtp, "-o", tmp_path / "with", "-q")
    succeed("dequantize", tmp_path / "with", "-o", back, "--drop-mtp")
    assert not any("layers.3." in name for name in open_checkpoint(back))


def test_rope_yarn(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny, "-o", out, "--rope-yarn", "4")
    scaling = read_config(out)["rope_scaling"]
    assert scaling["factor"] == 4
    assert "yarn" in scaling.values()
    refuse(2, "quantize", "fp8", tiny, "-o", tmp_path / "no", "--rope-yarn", "0.5")


def test_a_dialect_file(tiny: Path, tmp_path: Path) -> None:
    builtin = Path(__file__).parents[1] / "rust/data/dialects/ling.toml"
    own = tmp_path / "own.toml"
    own.write_text(builtin.read_text().replace('name = "ling"', 'name = "own"'))
    succeed("quantize", "fp8", tiny, "--dialect-file", own)
    assert compare_checkpoint(tiny, Path(f"{tiny}-fp8-custom"), dialect="ling") == []
    own.write_text("name = 1")
    assert "dialect file" in refuse(2, "quantize", "fp8", tiny, "--dialect-file", own)["message"]


def test_a_report_measures_every_encoded_tensor(tiny: Path, tmp_path: Path) -> None:
    found = answer("quantize", "fp8", tiny, "-o", tmp_path / "out", "--report")
    assert {report["tensor"] for report in found["reports"]} == encoded(tmp_path / "out")
    assert all(31 < report["sqnr_db"] < 33 for report in found["reports"])
    text = succeed("quantize", "fp8", tiny, "-o", tmp_path / "out2", "--report").stdout
    assert "expert.gate" in text
    assert "dB" in text


def test_nonfinite_is_refused_by_default(tiny: Path, tmp_path: Path) -> None:
    path = overwrite(tiny, EXPERT, NAN, at=2 * (2 * 320 + 60))
    out = tmp_path / "out"
    error = refuse(4, "quantize", "fp8", tiny, "-o", out)
    assert error["kind"] == "nonfinite"
    assert error["tensor"] == EXPERT
    assert path.name in error["path"]
    assert "NaN at [2, 60]" in error["message"]
    assert not published(out)
    assert not (out / path.name).exists()


def test_nonfinite_keep_leaves_a_tensor_unquantised(tiny: Path, tmp_path: Path) -> None:
    name = "model.layers.1.attention.dense.weight"
    overwrite(tiny, name, NAN)
    out = tmp_path / "out"
    found = answer("quantize", "fp8", tiny, "-o", out, "--nonfinite", "keep")
    assert found["kept_nonfinite"] == [name]
    entries = open_checkpoint(out)
    assert entries[name].dtype == "BF16"
    assert entries[name].read().tobytes() == open_checkpoint(tiny)[name].read().tobytes()
    kept = read_config(out)["quantization_config"]["modules_to_not_convert"]
    assert name.removesuffix(".weight") in kept
    again = succeed("quantize", "fp8", tiny, "-o", out, "--nonfinite", "keep")
    assert "complete already" in again.stdout


def test_nonfinite_keep_does_not_mix_the_experts_of_a_layer(tiny: Path, tmp_path: Path) -> None:
    overwrite(tiny, EXPERT, NAN)
    error = refuse(4, "quantize", "fp8", tiny, "-o", tmp_path / "out", "--nonfinite", "keep")
    assert error["tensor"] == EXPERT
    assert not published(tmp_path / "out")


def test_a_finished_folder_is_left_alone(tiny: Path) -> None:
    out = Path(f"{tiny}-fp8")
    succeed("quantize", "fp8", tiny)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    found = answer("quantize", "fp8", tiny)
    assert (found["outcome"], found["read"]) == ("already_complete", 0)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_force_replaces_what_lingconv_wrote(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny, "-o", out)
    other = ["quantize", "fp8", tiny, "-o", out, "--dialect", "ling"]
    assert "--force" in refuse(7, *other)["hint"]
    succeed(*other, "--force")
    assert compare_checkpoint(tiny, out, dialect="ling") == []
    assert set(contents(out)) == set(contents(tiny)) | {MANIFEST, "SHA256SUMS"}


def test_small_files_are_carried_over(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny, "-o", out)
    source, written = contents(tiny), contents(out)
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert written[name] == source[name]
    assert any(name.endswith(".py") for name in written)
    config = read_config(out)
    del config["quantization_config"]
    assert config == read_config(tiny)


def test_sums_are_those_of_sha256sum(tiny: Path, tmp_path: Path) -> None:
    import subprocess

    out = tmp_path / "out"
    succeed("quantize", "fp8", tiny, "-o", out)
    command = ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=out, check=False).returncode == 0


def test_an_unknown_architecture_with_only(tiny: Path, tmp_path: Path) -> None:
    path = tiny / "config.json"
    config = json.loads(path.read_text()) | {"architectures": ["NewForCausalLM"]}
    path.write_text(json.dumps(config))
    succeed("quantize", "fp8", tiny, "-o", tmp_path / "out", "--only", "*.experts.*")
    assert all(".experts." in name for name in encoded(tmp_path / "out"))


def test_f32_and_f16_weights_are_encoded(tiny: Path, tmp_path: Path) -> None:
    def widen(tensors) -> None:
        for name in (EXPERT, "model.layers.0.attention.dense.weight"):
            values = open_checkpoint(tiny)[name].values()
            dtype = "F32" if name == EXPERT else "F16"
            wide = values.astype("<f4" if dtype == "F32" else "<f2")
            tensors[name] = tensors[name]._replace(dtype=dtype, data=wide.reshape(-1).view("u1"))

    mixed = rebuilt(tiny, tmp_path / "mixed", widen)
    succeed("quantize", "fp8", mixed, "-o", tmp_path / "out")
    assert compare_checkpoint(mixed, tmp_path / "out") == []


def test_the_source_is_not_touched(tiny: Path, tmp_path: Path) -> None:
    before = contents(tiny)
    stats = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    succeed("quantize", "fp8", tiny, "-o", tmp_path / "out")
    lingconv("quantize", "fp8", tiny, "-o", tiny / "inside")
    assert contents(tiny) == before
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == stats
