"""`experts stats` of a checkpoint, against numpy, and the faults it must name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingconv.reference import Tensor, open_checkpoint, read_config
from lingconv.reference.codec import decode
from lingconv.reference.storage import Entry, bytes_of, values_of
from planted import (
    EXPERTS,
    F64,
    FAULTS,
    GATE,
    HIDDEN,
    LAYERS,
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
from support import answer, lingconv, overwrite, rebuilt, refuse, succeed

PROJECTIONS = {"expert.gate": "gate", "expert.up": "up", "expert.down": "down"}


def stats(*arguments: str | Path, code: int = 0, **variables: str) -> Any:
    done = lingconv("experts", "stats", *arguments, "--json", **variables)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scales that differ by a factor of two or so between tensors; unrelated gate rows."""
    return synthetic(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def sound(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with gate rows that have something in common."""
    return trained(plain, tmp_path_factory.mktemp("sound") / "sound")


# The figures


def stored(entries: dict[str, Entry], name: str) -> F64:
    """Values of a weight, decoded to float32 where it is FP8."""
    entry = entries[name]
    if entry.dtype != "F8_E4M3":
        return entry.values().astype(np.float64)
    scale = next(entries[name + s] for s in ("_scale_inv", "_scale") if name + s in entries)
    scales = scale.values()
    codes = np.array([decode_one(code) for code in range(256)], dtype=np.float32)
    rows, cols = entry.shape
    wide = scales.reshape(rows, -1) if scales.size == rows else scales
    if wide.shape != (rows, 1):
        wide = np.repeat(np.repeat(wide, 128, 0)[:rows], 128, 1)[:, :cols]
    decoded: F64 = (codes[entry.read().reshape(rows, cols)] * wide).astype(np.float64)
    return decoded


def decode_one(code: int) -> float:
    """A code with scale 1, by the reference."""
    one = np.ones((1, 1), dtype=np.float32)
    raw = decode(np.array([[code]], dtype=np.uint8), one, "block")
    return float(values_of("BF16", bytes_of(raw))[0])


def check_layer(entries: dict[str, Entry], layer: dict[str, Any]) -> None:
    for projection in layer["projections"]:
        part = PROJECTIONS[projection["role"]]
        for index in range(EXPERTS):
            x = stored(entries, expert(layer["layer"], index, part))
            square = np.mean(x**2)
            figures = [np.sqrt(square), np.abs(x).max(), np.mean(x**4) / square**2]
            found = [projection[name][index] for name in ("rms", "absmax", "kurtosis")]
            np.testing.assert_allclose(found, figures, rtol=1e-12)
    gate = stored(entries, GATE.format(layer["layer"]))
    norms = np.linalg.norm(gate, axis=1)
    np.testing.assert_allclose(layer["router"]["norms"], norms, rtol=1e-12)
    cosines = gate @ gate.T / np.outer(norms, norms)
    np.fill_diagonal(cosines, np.nan)
    found = layer["router"]
    np.testing.assert_allclose(found["mean_cosine"], np.nanmean(cosines, axis=1), atol=1e-6)
    np.testing.assert_allclose(found["closest_cosine"], np.nanmax(cosines, axis=1), atol=1e-6)
    assert found["closest"] == np.nanargmax(cosines, axis=1).tolist()
    scaled = gate / np.sqrt(np.mean(gate**2, axis=0))
    scaled /= np.linalg.norm(scaled, axis=1, keepdims=True)
    likeness = ((scaled @ scaled.T).sum(axis=1) - 1) / (EXPERTS - 1)
    np.testing.assert_allclose(found["likeness"], likeness, atol=1e-12)
    bias = stored(entries, f"model.layers.{layer['layer']}.mlp.gate.expert_bias")
    assert layer["bias"]["mean"] == pytest.approx(bias.mean(), abs=1e-15)
    np.testing.assert_allclose(layer["bias"]["pressure"], bias - bias.mean(), atol=1e-12)
    assert not layer["bias"]["all_zero"]


def test_figures_of_bf16(sound: Path) -> None:
    found = stats(sound)
    assert found["schema"] == "lingconv.experts/1"
    assert (found["findings"], found["experts"]) == ([], EXPERTS)
    assert [layer["layer"] for layer in found["layers"]] == list(LAYERS)
    entries = open_checkpoint(sound)
    looked_at = [n for n in entries if ".mlp.experts." in n or ".mlp.gate." in n]
    assert found["bytes"] == sum(entries[name].size for name in looked_at)
    for layer in found["layers"]:
        check_layer(entries, layer)


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_figures_of_other_floats(sound: Path, tmp_path: Path, dtype: str) -> None:
    kind = np.float16 if dtype == "F16" else np.float32

    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype == "BF16":
                values = values_of("BF16", tensor.data).astype(kind)
                tensors[name] = tensor._replace(dtype=dtype, data=bytes_of(values))

    other = rebuilt(sound, tmp_path / "other", change)
    found = stats(other)
    assert found["findings"] == []
    for layer in found["layers"]:
        check_layer(open_checkpoint(other), layer)


@pytest.mark.parametrize("dialect", ["deepseek", "ling", "compressed-tensors-channel"])
def test_figures_of_fp8_and_its_error(sound: Path, tmp_path: Path, dialect: str) -> None:
    coded = tmp_path / "coded"
    succeed("quantize", "fp8", sound, "-o", coded, "--dialect", dialect)
    found, back = stats(coded, "--against", sound), stats(sound, "--against", coded)
    entries, before = open_checkpoint(coded), open_checkpoint(sound)
    assert found["findings"] == []
    for layer, reverse in zip(found["layers"], back["layers"], strict=True):
        check_layer(entries, layer)
        for projection, other in zip(layer["projections"], reverse["projections"], strict=True):
            assert projection["error"] == other["error"]
            for index in (0, 7):
                name = expert(layer["layer"], index, PROJECTIONS[projection["role"]])
                w, d = stored(before, name), stored(entries, name)
                noise = w - d
                sqnr = 10 * np.log10((w**2).sum() / (noise**2).sum())
                assert projection["error"]["sqnr_db"][index] == pytest.approx(sqnr, rel=1e-9)
                worst = np.abs(noise).max()
                assert projection["error"]["max_abs_error"][index] == pytest.approx(worst)
                suffix = "_scale" if dialect.startswith("compressed") else "_scale_inv"
                scales = entries[name + suffix].values()
                ends = [projection["scales"][end][index] for end in ("smallest", "largest")]
                assert ends == [scales.min(), scales.max()]
    plain = stats(coded)
    assert plain["layers"][0]["projections"][0]["error"] is None
    for layer, other in zip(plain["layers"], found["layers"], strict=True):
        for a, b in zip(layer["projections"], other["projections"], strict=True):
            assert a | {"error": None} == b | {"error": None}


def test_threads_kernels_and_cuts_change_no_figure(sound: Path, tmp_path: Path) -> None:
    whole = stats(sound)
    assert stats(sound, "--jobs", "1") == stats(sound, "--jobs", "7") == whole
    for level in ("scalar", "baseline"):
        assert stats(sound, LINGCONV_KERNEL=level) == whole
    for layout in (("--tp", "2", "--pp", "2"), ("--tp", "2", "--ep", "2"), ("--target", "hf")):
        cut = tmp_path / "-".join(layout)
        succeed("reshard", sound, "-o", cut, *layout)
        assert stats(cut) | {"bytes": 0} == whole | {"bytes": 0}


def test_a_synthetic_checkpoint_is_sound(plain: Path, shared: Path) -> None:
    """Experts whose scales differ by a factor of two, columns that are far larger than others."""
    assert stats(plain)["findings"] == []
    found = stats(shared / "tiny-mtp")
    assert found["findings"] == []
    assert [layer["mtp"] for layer in found["layers"]] == [False, False, True]


# Planted faults


@pytest.mark.parametrize(
    ("plant", "kind", "places", "words"), FAULTS, ids=lambda v: getattr(v, "__name__", "")
)
def test_planted_faults_are_named(
    sound: Path,
    tmp_path: Path,
    plant: Change,
    kind: str,
    places: list[tuple[int, int, str]],
    words: str,
) -> None:
    bad = rebuilt(sound, tmp_path / "bad", plant)
    found = stats(bad, code=3)["findings"]
    assert [(f["layer"], f["expert"], f["tensor"]) for f in found] == places
    assert {f["kind"] for f in found} == {kind}
    assert all(words in f["message"] for f in found)
    done = lingconv("experts", "stats", bad)
    assert done.returncode == 3
    assert f"{len(places)} {kind}" in done.stdout
    assert all(f"layer {layer} expert {e} {name}" in done.stdout for layer, e, name in places)


def test_all_faults_at_once(sound: Path, tmp_path: Path) -> None:
    def plant(tensors: dict[str, Tensor]) -> None:
        for change in (zeroed, duplicated, enlarged, with_nan, shuffled):
            change(tensors)

    found = stats(rebuilt(sound, tmp_path / "bad", plant), code=3)["findings"]
    expected = [(kind, *place) for _, kind, places, _ in FAULTS[:5] for place in places]
    assert sorted((f["kind"], f["layer"], f["expert"], f["tensor"]) for f in found) == sorted(
        expected
    )


def test_faults_of_fp8(sound: Path, tmp_path: Path) -> None:
    """A NaN code, a scale that is none, and scales a hundred times too large."""
    coded = tmp_path / "coded"
    succeed("quantize", "fp8", sound, "-o", coded)
    overwrite(coded, expert(1, 0, "up"), b"\x7f", at=77)
    overwrite(coded, expert(1, 1, "up") + "_scale_inv", np.float32(-1).tobytes(), at=4)
    entry = open_checkpoint(coded)[expert(2, 2, "gate") + "_scale_inv"]
    overwrite(coded, expert(2, 2, "gate") + "_scale_inv", (entry.values() * 100).tobytes())
    found = stats(coded, code=3)
    assert [(f["kind"], f["expert"], f["tensor"]) for f in found["findings"]] == [
        ("nonfinite", 0, expert(1, 0, "up")),
        ("nonfinite", 1, expert(1, 1, "up") + "_scale_inv"),
        ("outlier", 2, expert(2, 2, "gate")),
    ]
    assert "element 77" in found["findings"][0]["message"]
    assert "scale 1 is -1" in found["findings"][1]["message"]
    ups = next(p for p in found["layers"][0]["projections"] if p["role"] == "expert.up")
    assert ups["rms"][:2] == [None, None] != ups["rms"][2:4]


def test_a_bias_that_was_never_trained(sound: Path, tmp_path: Path) -> None:
    def plant(tensors: dict[str, Tensor]) -> None:
        tensor = tensors["model.layers.1.mlp.gate.expert_bias"]
        tensors[tensor.name] = tensor._replace(data=np.zeros_like(tensor.data))

    found = stats(rebuilt(sound, tmp_path / "zero", plant))
    assert [layer["bias"]["all_zero"] for layer in found["layers"]] == [True, False]
    assert "all zero" in succeed("experts", "stats", tmp_path / "zero").stdout


# What cannot be looked at


def test_refusals(sound: Path, tmp_path: Path) -> None:
    assert "--ep" in refuse(2, "experts", "stats", sound, "--ep", "4")["message"]
    loads = tmp_path / "loads.csv"
    loads.write_text("layer,expert,count\n0,0,1\n0,1,2\n")
    assert "--against" in refuse(2, "experts", "stats", loads, "--against", sound)["message"]
    assert "same kind" in refuse(5, "experts", "stats", sound, "--against", sound)["message"]
    refuse(2, "experts", "stats", sound, sound)
    dense = Path(shutil.copytree(sound, tmp_path / "dense"))
    config = read_config(sound) | {"architectures": ["Unknown"]}
    (dense / "config.json").write_text(json.dumps(config))
    assert "--arch" in refuse(5, "experts", "stats", dense)["hint"]


def test_fp8_without_scales_is_damaged(coded: Path) -> None:
    name = expert(1, 2, "up")

    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[name + "_scale_inv"]

    bad = rebuilt(coded, coded.parent / "bad", drop)
    assert refuse(4, "experts", "stats", bad)["tensor"] == name


def test_another_shape_in_the_comparison(sound: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    succeed("synth", "tiny", "-o", other, "--experts", "8", "--fp8")
    assert "in no file" in refuse(4, "experts", "stats", sound, "--against", other)["message"]


def test_the_table_has_what_there_is(sound: Path, coded: Path) -> None:
    plain, fp8 = (succeed("experts", "stats", folder).stdout for folder in (sound, coded))
    assert "bias pressure" in plain
    assert ("scale" in plain, "scale" in fp8) == (False, True)
    assert "nothing unsound found" in plain
    assert answer("experts", "stats", coded)["findings"] == []


def test_a_router_without_rows(sound: Path, tmp_path: Path) -> None:
    def plant(tensors: dict[str, Tensor]) -> None:
        empty = np.empty(0, dtype=np.uint8)
        name = GATE.format(1)
        tensors[name] = tensors[name]._replace(shape=(0, HIDDEN), data=empty)

    bad = rebuilt(sound, tmp_path / "bad", plant)
    assert [layer["router"] is None for layer in stats(bad)["layers"]] == [True, False]
    assert "nothing unsound found" in succeed("experts", "stats", bad).stdout
