"""`verify --experts`: the statistics of experts in the pass that verifies a download."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import damage as do
from downloads import bf16, edit_json, small_checkpoint, sums, verify
from lingconv.reference import Tensor, open_checkpoint, read_config, write_safetensors
from lingconv.reference.storage import INDEX
from measure import Cost, cost_of_lingconv
from planted import (
    FAULTS,
    Change,
    duplicated,
    enlarged,
    expert,
    shuffled,
    synthetic,
    trained,
    with_nan,
    zeroed,
)
from support import answer, lingconv, overwrite, rebuilt, shard_of, succeed

SHARD = "model.safetensors"
INTERMEDIATE = 4_000
HEADERS = 300_000


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in one file, with its sums."""
    base = tmp_path_factory.mktemp("sound")
    folder = trained(synthetic(base / "tiny"), base / "sound")
    sums(folder)
    return folder


@pytest.fixture(scope="module")
def large(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of several windows, which begin and end anywhere in what is read at a time."""
    base, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(7)
    before = read_config(shared / "tiny")["moe_intermediate_size"]

    def grow(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "experts" in name:
                shape = tuple(INTERMEDIATE if n == before else n for n in tensor.shape)
                bits = rng.integers(0x3C00, 0x3E00, shape, dtype=np.uint16)
                bits |= rng.integers(0, 2, shape, dtype=np.uint16) << 15
                tensors[name] = tensor._replace(shape=shape, data=bits.reshape(-1).view(np.uint8))

    folder = rebuilt(shared / "tiny", base / "large", grow)
    edit_json(folder / "config.json", lambda c: c.update(moe_intermediate_size=INTERMEDIATE))
    return folder


def scales_apart(source: Path, folder: Path) -> Path:
    """A copy whose scales lie in a shard of their own, the last one."""
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    parts: list[list[Tensor]] = [[], []]
    for name, entry in open_checkpoint(source).items():
        tensor = Tensor(name, entry.dtype, entry.shape, np.array(entry.read()))
        parts["_scale" in name].append(tensor)
    index = {}
    for number, part in enumerate(parts, 1):
        path = folder / f"model-0000{number}-of-00002.safetensors"
        index.update({tensor.name: path.name for tensor in part})
        write_safetensors(path, part)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def stats(folder: Path) -> Any:
    done = lingconv("experts", "stats", folder, "--json")
    assert done.returncode in (0, 3), done.stderr
    return json.loads(done.stdout)


def same_as_on_its_own(folder: Path, *options: str | Path, code: int = 9) -> dict[str, Any]:
    """The report of a verification whose statistics are those of `experts stats`."""
    outcome = verify(folder, "--experts", *options)
    assert outcome.code == code, outcome.stderr
    assert outcome.report["experts"] == stats(folder)
    return outcome.report


@pytest.mark.parametrize("name", ["tiny", "tiny-mtp", "coded"])
def test_the_same_as_a_pass_of_its_own(shared: Path, name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared / name, tmp_path / name))
    report = same_as_on_its_own(folder, "--level", "content")
    assert report["findings"] == []
    sums(folder)
    assert same_as_on_its_own(folder, code=0)["verified"] == report["files"]
    assert answer("verify", folder, "--fresh")["experts"] is None


def test_windows_and_scales_in_another_file(large: Path, tmp_path: Path) -> None:
    same_as_on_its_own(large)
    assert len(list(large.glob("*.safetensors"))) == 1
    coded = tmp_path / "coded"
    succeed("quantize", "fp8", large, "-o", coded)
    report = same_as_on_its_own(coded, "--level", "content", code=0)
    # Held against the source, the same bytes pass through the same hands.
    against = same_as_on_its_own(coded, "--against", large, "--fresh", code=0)
    assert against["experts"] == report["experts"]
    apart = scales_apart(coded, tmp_path / "apart")
    found = same_as_on_its_own(apart)
    for options in (("--jobs", "1"), ("--jobs", "5", "--io", "buffered")):
        assert verify(apart, "--experts", *options).report == found


def cost(folder: Path, *options: str) -> Cost:
    state = {"XDG_STATE_HOME": str(folder.parent / "state")}
    found = cost_of_lingconv("verify", folder, "--fresh", "--json", *options, **state)
    assert found.code == 0, found.stderr
    return found


def test_each_byte_is_read_once(large: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(large, tmp_path / "large"))
    sums(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert size > 20 * HEADERS
    plain, experts = cost(folder), cost(folder, "--experts", "--level", "content")
    # Headers and configuration are read again to learn where experts are.
    assert size < plain.read < experts.read < plain.read + HEADERS
    assert experts.answer()["bytes"] == plain.answer()["bytes"]
    assert experts.peak < plain.peak + (64 << 20)


@pytest.mark.parametrize(
    ("plant", "kind", "places", "words"), FAULTS, ids=lambda v: getattr(v, "__name__", "")
)
def test_faults_in_a_file_whose_digest_agrees(
    sound: Path,
    tmp_path: Path,
    plant: Change,
    kind: str,
    places: list[tuple[int, int, str]],
    words: str,
) -> None:
    bad = rebuilt(sound, tmp_path / "bad", plant)
    sums(bad)
    assert verify(bad).code == 0
    outcome = verify(bad, "--experts")
    assert (outcome.code, outcome.report["verdict"]) == (3, "failed")
    assert outcome.found() == {("expert", SHARD, name) for _, _, name in places}
    assert outcome.report["experts"] == stats(bad)
    assert {f["kind"] for f in outcome.report["experts"]["findings"]} == {kind}
    told = [row["message"] for row in outcome.report["findings"]]
    assert all(words in message for message in told)


def test_values_that_the_scan_names_too_are_named_once(sound: Path, tmp_path: Path) -> None:
    def plant(tensors: dict[str, Tensor]) -> None:
        for change in (zeroed, duplicated, enlarged, with_nan, shuffled):
            change(tensors)

    bad = rebuilt(sound, tmp_path / "bad", plant)
    sums(bad)
    outcome = verify(bad, "--experts", "--level", "content")
    named = {name for _, _, places, _ in FAULTS[:5] for _, _, name in places}
    failures = [row for row in outcome.report["findings"] if row["failure"]]
    assert sorted(row["tensor"] for row in failures) == sorted(named)
    assert {row["category"] for row in failures} == {"non-finite", "zero-tensor", "expert"}
    assert {name for category, _, name in outcome.found() if category == "non-finite"} == {
        expert(1, 15, "down")
    }
    assert len(outcome.report["experts"]["findings"]) == len(named)


def test_what_people_are_told(sound: Path, tmp_path: Path) -> None:
    bad = rebuilt(sound, tmp_path / "bad", zeroed)
    sums(bad)
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    done = lingconv("verify", bad, "--experts", **state)
    assert done.returncode == 3
    first = f"FAIL  expert          {SHARD}: {expert(1, 3, 'down')}: layer 1 expert 3: all "
    assert first in done.stdout
    assert "failures 3: 3 expert" in done.stdout
    assert done.stdout.index("failed · level checksums") < done.stdout.index("bias pressure")
    # Published so, as far as the digest tells: downloading it again changes nothing.
    assert "repair" not in done.stderr
    overwrite(bad, expert(2, 8, "up"), b"\x12\x3e", at=6)
    done = lingconv("verify", bad, "--experts", **state)
    assert f"hint: repair: `hf download ORG/NAME {SHARD} --local-dir {bad}" in done.stderr


def test_remembered_files_are_read_again(shared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared / "tiny-mtp", tmp_path / "tiny"))
    sums(folder)
    assert verify(folder).report["resumed"] == 0
    whole = verify(folder).report
    assert whole["resumed"] == whole["verified"]
    report = same_as_on_its_own(folder, code=0)
    holding = {
        entry.path.name
        for name, entry in open_checkpoint(folder).items()
        if ".mlp.experts." in name or ".mlp.gate." in name
    }
    assert report["resumed"] == whole["resumed"] - len(holding)
    assert report["bytes"] == sum((folder / name).stat().st_size for name in holding)
    after = verify(folder).report
    assert (after["resumed"], after["bytes"]) == (whole["resumed"], 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--experts", "--level", "sizes"), "no data is read"),
        (("--experts", "--level", "headers"), "no data is read"),
        (("--experts", "--subset", "10%"), "in all files"),
        (("--experts", "--files", "*.json"), "in all files"),
        (("--experts", "--rank", "pp0"), "in all files"),
        (("--arch", "config.json"), "--experts"),
    ],
)
def test_what_does_not_go_together(
    sound: Path, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sound)
    outcome = verify(sound, *options)
    assert outcome.code == 2
    assert words in outcome.stderr


def why(folder: Path, code: int) -> dict[str, Any]:
    """The note that says why there are no statistics."""
    outcome = verify(folder, "--experts")
    assert (outcome.code, outcome.report["experts"]) == (code, None), outcome.stderr
    (note,) = (row for row in outcome.report["findings"] if row["category"] == "expert")
    assert not note["failure"]
    assert note["message"].startswith("no statistics of experts: ")
    assert outcome.found(failures=False) >= {("expert", note["file"], note["tensor"])}
    return dict(note)


def test_folders_without_statistics(shared: Path, tmp_path: Path) -> None:
    unknown = small_checkpoint(tmp_path / "unknown", [bf16("x", 1_000)])
    sums(unknown)
    assert "architecture is unknown" in why(unknown, 0)["message"]
    cut = tmp_path / "cut"
    succeed("reshard", shared / "tiny", "-o", cut, "--tp", "2")
    assert "`lingconv experts stats`" in why(cut, 0)["message"]
    missing = Path(shutil.copytree(shared / "tiny", tmp_path / "missing"))
    lost = shard_of(missing, expert(1, 3, "up")).name
    (missing / lost).unlink()
    assert why(missing, 3)["file"] == lost
    do.write(lost, do.HTML)(missing)
    assert why(missing, 3)["file"] == lost
    name = expert(1, 3, "up")
    bare = Path(shutil.copytree(shared / "coded", tmp_path / "bare"))
    do.drop(name + "_scale_inv")(bare)
    note = why(bare, 3)
    assert (note["file"], note["tensor"]) == (shard_of(bare, name).name, name)


def test_a_file_that_is_not_read(shared: Path, tmp_path: Path) -> None:
    """Longer than its source of truth says, and sound in itself."""
    folder = Path(shutil.copytree(shared / "tiny", tmp_path / "tiny"))
    path = shard_of(folder, expert(1, 3, "up"))
    size = {"type": "file", "path": path.name, "size": path.stat().st_size - 2, "oid": "0" * 40}
    (tmp_path / "listing").write_text(json.dumps([size]))
    outcome = verify(folder, "--experts", "--against", tmp_path / "listing")
    assert ("size", path.name, None) in outcome.found()
    notes = [row for row in outcome.report["findings"] if row["category"] == "expert"]
    assert [(row["file"], row["failure"]) for row in notes] == [(path.name, False)]


def test_an_architecture_of_ones_own(shared: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared / "tiny", tmp_path / "own"))
    edit_json(folder / "config.json", lambda c: c.update(architectures=["Own"]))
    assert "unknown" in why(folder, 9)["message"]
    data = Path(__file__).parent.parent / "rust/data/architectures/bailing_moe_v2.toml"
    outcome = verify(folder, "--experts", "--arch", data)
    assert (outcome.code, outcome.report["experts"]["experts"]) == (9, 8)
