"""`verify OUT --against SRC`: the conversion is done again, and every byte compared."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import damage as do
from downloads import Outcome, edit_json, verify
from lingconv.reference import open_checkpoint
from lingconv.reference.storage import INDEX, read_headers
from ordeal import Words
from support import EXPERT, MANIFEST, lingconv, overwrite, shard_of, succeed

SCALE = EXPERT + "_scale_inv"
FOLDERS: dict[str, Words] = {
    "quantize": ("quantize", "fp8"),
    "channels": ("quantize", "fp8", "--dialect", "compressed-tensors-channel"),
    "ranks": ("reshard", "--tp", "2", "--ep", "2", "--pp", "3", "--shard-size", "200K"),
    "fp8": ("reshard", "--tp", "2", "--ep", "2", "--format", "fp8"),
    "stages": ("reshard", "--pp", "2", "--target", "hf"),
    "old": ("reshard", "--tp", "2", "--pp", "2", "--target", "vllm-0.11"),
}


@pytest.fixture(scope="session")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each command makes of the same source, which is beside them."""
    base = tmp_path_factory.mktemp("made")
    folders = {name: base / name for name in FOLDERS}
    for name, (verb, *rest) in FOLDERS.items():
        succeed(verb, *rest, shared / "tiny", "-o", folders[name])
    folders["dequantize"] = base / "dequantize"
    succeed("dequantize", folders["quantize"], "-o", folders["dequantize"])
    folders["undone"] = base / "undone"
    succeed("reshard", folders["ranks"], "--target", "hf", "-o", folders["undone"])
    folders["source"] = shared / "tiny"
    return folders


def size_of(folder: Path) -> int:
    """Bytes of all files with tensors."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors."""
    return sum(entry.size for entry in open_checkpoint(folder).values())


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Any:
    """A copy of one of them, to be damaged."""
    return lambda name: Path(shutil.copytree(made[name], tmp_path / name))


PAIRS = [(name, "source") for name in FOLDERS]
PAIRS += [("dequantize", "quantize"), ("undone", "ranks"), ("undone", "source")]


@pytest.mark.parametrize(("name", "source"), PAIRS)
def test_an_output_is_what_the_plan_says(made: dict[str, Path], name: str, source: str) -> None:
    found = verify(made[name], "--against", made[source], "--fresh")
    assert (found.code, found.report["findings"], found.report["uncovered"]) == (0, [], [])
    truth = found.report["truths"][0]
    assert (truth["kind"], truth["origin"]) == ("source", str(made[source]))
    assert found.report["verified"] == found.report["files"] - len((MANIFEST, "SHA256SUMS"))


@pytest.mark.parametrize(("name", "source"), [("quantize", "source"), ("ranks", "source")])
def test_each_side_is_read_once(made: dict[str, Path], name: str, source: str) -> None:
    found = verify(made[name], "--against", made[source], "--fresh", "--level", "content")
    sidecars = [p for p in made[name].iterdir() if p.suffix == ".json" or p.suffix == ".md"]
    small = sum(p.stat().st_size for p in sidecars if p.name != MANIFEST)
    extra = found.report["bytes"] - size_of(made[name]) - tensor_bytes(made[source])
    assert 0 <= extra <= small + 100_000


def only(found: Outcome) -> dict[str, Any]:
    """The only failure."""
    assert found.code == 3, found.stderr
    failures = [f for f in found.report["findings"] if f["failure"]]
    assert len(failures) == 1, failures
    failure: dict[str, Any] = failures[0]
    return failure


@pytest.mark.parametrize("tensor", [EXPERT, SCALE, "model.norm.weight"])
def test_a_flipped_byte_is_placed(copied: Any, made: dict[str, Path], tensor: str) -> None:
    folder = copied("quantize")
    entry = open_checkpoint(folder)[tensor]
    at = entry.size - 3
    overwrite(folder, tensor, bytes([entry.read()[at] ^ 0x40]), at)
    finding = only(verify(folder, "--against", made["source"]))
    assert (finding["category"], finding["tensor"]) == ("difference", tensor)
    assert finding["file"] == entry.path.name
    assert f"byte {entry.start + at} is " in finding["message"]
    assert f"byte {at} of the tensor" in finding["message"]
    origin = tensor.removesuffix("_scale_inv")
    assert f" of {origin} in {shard_of(made['source'], origin)}" in finding["message"]


def test_fused_tensors_name_the_part_that_differs(copied: Any, made: dict[str, Path]) -> None:
    """Experts are stacked, gate over up: the last row of rank 1 is expert 7's up projection."""
    folder, name = copied("fp8"), "model.layers.1.mlp.experts.routed_experts.w13_weight"
    for tensor in (name, name + "_scale_inv"):
        path, entry = next(
            (path, entries[tensor])
            for path in sorted(folder.glob("model-rank-1-*.safetensors"))
            if tensor in (entries := read_headers(path))
        )
        with path.open("r+b") as file:
            file.seek(entry.start + entry.size - 1)
            file.write(bytes([entry.read()[-1] ^ 1]))
        finding = only(verify(folder, "--against", made["source"]))
        assert (finding["file"], finding["tensor"]) == (path.name, tensor)
        assert "encode of model.layers.1.mlp.experts.7.up_proj.weight" in finding["message"]
        shutil.copy(made["fp8"] / path.name, path)


def test_a_changed_constant(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("ranks")
    path, name, entry = next(
        (path, name, entry)
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in read_headers(path).items()
        if entry.shape == ()
    )
    with path.open("r+b") as file:
        file.seek(entry.start)
        file.write(b"\x01")
    finding = only(verify(folder, "--against", made["source"]))
    assert (finding["category"], finding["file"]) == ("difference", path.name)
    assert finding["tensor"] == name
    assert "a constant of the target" in finding["message"]


def test_a_changed_header(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("quantize")
    path = shard_of(folder, EXPERT)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"format":"pt"', b'"format":"pf"', 1))
    finding = only(verify(folder, "--against", made["source"]))
    assert (finding["category"], finding["file"]) == ("difference", path.name)
    assert finding["message"].startswith("header: byte ")


SMALL = [
    (do.remove("model-00003-of-00014.safetensors"), "missing", "model-00003-of-00014.safetensors"),
    (do.cut("model-00003-of-00014.safetensors", -1), "truncated", None),
    (do.append("model-00003-of-00014.safetensors"), "header", None),
    (do.flip("tokenizer_config.json"), "checksum", "tokenizer_config.json"),
    (do.flip(INDEX), "checksum", INDEX),
    (do.in_config(eos_token_id=7), "config-edited", "config.json"),
]


@pytest.mark.parametrize(("damage", "category", "file"), SMALL)
def test_other_damages(
    copied: Any, made: dict[str, Path], damage: do.Damage, category: str, file: str | None
) -> None:
    folder = copied("quantize")
    damage(folder)
    found = verify(folder, "--against", made["source"])
    assert found.code == 3
    named = {(finding, name) for finding, name, _ in found.found()}
    assert (category, file or "model-00003-of-00014.safetensors") in named


def test_a_sidecar_of_the_source_that_changed(copied: Any, made: dict[str, Path]) -> None:
    source = copied("source")
    do.flip("tokenizer_config.json")(source)
    finding = only(verify(made["quantize"], "--against", source))
    assert (finding["category"], finding["file"]) == ("checksum", "tokenizer_config.json")


def test_a_source_that_changed(copied: Any, made: dict[str, Path]) -> None:
    """The same headers, another byte: what was made of it differs, and where from is told."""
    source = copied("source")
    path = overwrite(source, EXPERT, b"\x12\x3e", at=6)
    for name in ("quantize", "fp8"):
        found = verify(made[name], "--against", source)
        assert found.code == 3
        messages = [f["message"] for f in found.report["findings"] if f["failure"]]
        assert messages
        assert all(f" of {EXPERT} in {path}" in message for message in messages)


def test_another_source_is_refused(copied: Any, made: dict[str, Path]) -> None:
    found = verify(made["fp8"], "--against", made["quantize"])
    assert found.code == 3
    assert "the folder was made of another source" in found.stderr
    assert "config.json: quantization_config (added)" in found.stderr
    source = copied("source")
    edit_json(source / "config.json", lambda config: config.update(eos_token_id=9))
    found = verify(made["quantize"], "--against", source)
    assert found.code == 3
    assert re.search(r"config.json: eos_token_id \((changed|added)\)", found.stderr)


def test_a_manifest_that_tells_of_another_plan(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("quantize")
    edit_json(folder / MANIFEST, lambda manifest: manifest["request"].update(scale="ue8m0"))
    found = verify(folder, "--against", made["source"])
    assert found.code == 3
    assert "is not the one in the manifest" in found.stderr
    edit_json(folder / MANIFEST, lambda manifest: manifest["request"].update(rope_yarn=1e9))
    assert "damaged manifest" in verify(folder, "--against", made["source"]).stderr
    (folder / MANIFEST).unlink()
    assert verify(folder, "--against", made["source"]).code == 9


def test_digests_in_a_manifest_that_lie(copied: Any, made: dict[str, Path]) -> None:
    """Nobody's bytes are wrong, so only the manifest can be."""
    folder = copied("quantize")
    (folder / "SHA256SUMS").unlink()
    edit_json(folder / MANIFEST, lambda manifest: manifest["files"][2].update(sha256="0" * 64))
    finding = only(verify(folder, "--against", made["source"]))
    assert (finding["category"], finding["tensor"]) == ("checksum", None)


def test_levels_below_read_no_bytes(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("quantize")
    do.flip("model-00003-of-00014.safetensors")(folder)
    found = verify(folder, "--against", made["source"], "--level", "sizes")
    assert (found.code, found.report["bytes"]) == (0, 0)


def test_a_share_of_the_files(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("quantize")
    do.flip("model-00003-of-00014.safetensors")(folder)
    other = "model-00004-of-00014.safetensors"
    found = verify(folder, "--against", made["source"], "--files", other)
    assert (found.code, found.report["verified"]) == (0, 1)
    found = verify(folder, "--against", made["source"], "--files", "model-00003*")
    assert found.code == 3


def test_sums_written_against_a_source(made: dict[str, Path], tmp_path: Path) -> None:
    sums = tmp_path / "SUMS"
    found = verify(made["quantize"], "--against", made["source"], "--write-sums", sums)
    assert found.code == 0
    lines = sums.read_text().splitlines()
    assert "self-attested" in lines[0]  # a source makes its output, it does not attest itself
    held = {line[66:]: line[:64] for line in lines[1:]}
    for path in made["quantize"].glob("*.safetensors"):
        assert held[path.name] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_report_for_people(copied: Any, made: dict[str, Path]) -> None:
    folder = copied("quantize")
    do.flip_tensor(EXPERT)(folder)
    done = lingconv("verify", folder, "--against", made["source"])
    assert done.returncode == 3
    assert re.search(rf"FAIL  difference +model-\d+-of-00014.safetensors: {EXPERT}: ", done.stdout)
    assert f"hint: is the source intact? `lingconv verify {made['source']}`" in done.stderr
    assert json.loads((folder / MANIFEST).read_text())["schema"] == "lingconv.manifest/1"
