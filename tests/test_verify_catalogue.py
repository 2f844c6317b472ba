"""`verify` finds everything that goes wrong in real downloads, and names it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import damage as do
from damage import Copies
from downloads import (
    OTHER_COMMIT,
    RECORDS,
    bf16,
    hub_listing,
    modelscope_listing,
    record,
    small_checkpoint,
    sums,
    verify,
)
from lingconv.reference.storage import INDEX
from support import EXPERT, MANIFEST, overwrite

Listing = Callable[[Path, Path], Path]
SHARD = "model-00006-of-00014.safetensors"
OTHER = "model-00007-of-00014.safetensors"
OTHER_EXPERT = "model.layers.1.mlp.experts.5.up_proj.weight"
CODED = "model-00004-of-00008.safetensors"
SCALE = EXPERT + "_scale_inv"
BIAS = "model.layers.1.mlp.gate.expert_bias"
BIAS_SHARD = "model-00004-of-00014.safetensors"
CODE = "configuration_bailing_moe_v2.py"
TOKENIZER = "tokenizer_config.json"
SUMS = "SHA256SUMS"
NAN, INFINITY = b"\xc0\x7f", b"\x80\x7f"
F32_NAN, F32_INFINITY = b"\0\0\xc0\x7f", b"\0\0\x80\x7f"
CONTENT = ("--level", "content")
HEADERS = ("--level", "headers")
SIZES = ("--level", "sizes")
STRICT = ("--strict",)
EDITS = ("--allow-config-edits",)
AUTO_MAP = do.in_config(auto_map={"AutoConfig": f"{CODE.removesuffix('.py')}.TinyConfig"})
YARN = do.in_config(rope_scaling={"type": "yarn", "factor": 4.0})


@dataclass(frozen=True)
class Case:
    """A damage, the clean folder it is done to, and what must be among the failures."""

    name: str
    folder: str
    damage: do.Damage
    category: str
    file: str
    tensor: str | None = None
    options: tuple[str, ...] = ()


def shard(name: str, damage: do.Damage, category: str, folder: str = "bare") -> Case:
    return Case(name, folder, damage, category, SHARD, options=HEADERS)


def scale(name: str, damage: do.Damage, tensor: str = EXPERT, level: str = "headers") -> Case:
    return Case(name, "coded", damage, "scale", CODED, tensor, ("--level", level))


def config(name: str, damage: do.Damage, tensor: str | None = None, folder: str = "bare") -> Case:
    return Case(name, folder, damage, "config", "config.json", tensor, HEADERS)


WRONG_BYTES = [
    Case("listed", "hub", do.flip(SHARD), "checksum", SHARD),
    Case("content level", "hub", do.flip(SHARD), "checksum", SHARD, options=CONTENT),
    Case("recorded", "records", do.flip(SHARD), "checksum", SHARD),
    Case("summed", "sums", do.flip(SHARD), "checksum", SHARD),
    Case("in the cache", "cache", do.flip(SHARD), "checksum", SHARD),
    Case("one file", "hub", do.flip(SHARD), "checksum", SHARD, options=("--files", SHARD)),
    Case("git object", "hub", do.flip(TOKENIZER), "checksum", TOKENIZER),
    Case("remote code", "hub", do.flip(CODE), "checksum", CODE),
    Case("index", "hub", do.flip(INDEX), "checksum", INDEX),
    Case("header", "output", do.flip(SHARD, 200), "checksum", SHARD),
    Case("a tensor of ours", "output", do.flip_tensor(EXPERT), "checksum", SHARD, EXPERT),
    Case("a range of zeros", "hub", do.zero(SHARD, 8_192, 20_480), "checksum", SHARD),
]
CUT = [
    shard("data", do.cut(SHARD, -1), "truncated"),
    shard("header", do.cut(SHARD, 100), "truncated"),
    shard("length", do.cut(SHARD, 5), "truncated"),
    shard("everything", do.cut(SHARD, 0), "truncated"),
    shard("listed", do.cut(SHARD, -4_096), "truncated", "hub"),
    Case("summed", "sums", do.cut(SHARD, -4_096), "truncated", SHARD),
    Case("small", "hub", do.cut(TOKENIZER, 10), "truncated", TOKENIZER, options=SIZES),
    Case("small, recorded", "records", do.cut(TOKENIZER, 10), "checksum", TOKENIZER),
    shard("longer", do.append(SHARD), "header"),
    Case("small and longer", "hub", do.append(TOKENIZER), "size", TOKENIZER, options=SIZES),
]
IN_PLACE_OF_DATA = [
    shard("pointer", do.to_pointer(SHARD), "lfs-pointer"),
    shard("pointer, listed", do.to_pointer(SHARD), "lfs-pointer", "hub"),
    Case("small pointer", "hub", do.to_pointer(TOKENIZER), "lfs-pointer", TOKENIZER),
    Case("small pointer, bare", "bare", do.to_pointer(TOKENIZER), "lfs-pointer", TOKENIZER),
    shard("page", do.write(SHARD, do.HTML), "error-page"),
    shard("page, listed", do.write(SHARD, do.HTML), "error-page", "hub"),
    Case("small page", "hub", do.write(TOKENIZER, do.HTML), "error-page", TOKENIZER),
    shard("message", do.write(SHARD, do.JSON_ERROR), "error-page"),
    Case("page for the index", "bare", do.write(INDEX, do.HTML), "index", INDEX),
    config("page for the config", do.write("config.json", do.HTML)),
    shard("zeroed header", do.zero_header(SHARD), "zeroed-header"),
    shard("zeroed page", do.zero(SHARD, 0, 4_096), "zeroed-header"),
    shard("zeroed file", do.zero(SHARD, 0), "zeroed-header"),
    shard("zeroed, listed", do.zero(SHARD, 0), "zeroed-header", "hub"),
    shard("a folder", do.both(do.remove(SHARD), do.write(f"{SHARD}/x", "")), "unreadable"),
    shard("a pipe", do.pipe(SHARD), "unreadable"),
    shard("a link out", do.link(SHARD, "/etc/hostname"), "unreadable"),
    shard("a link to nothing", do.link(SHARD, "nothing"), "missing"),
]
VALUES = [
    Case("NaN", "bare", do.fill(EXPERT, NAN, 640), "non-finite", SHARD, EXPERT, CONTENT),
    Case("infinity", "bare", do.fill(EXPERT, INFINITY), "non-finite", SHARD, EXPERT, CONTENT),
    Case("F32", "bare", do.fill(BIAS, F32_NAN), "non-finite", BIAS_SHARD, BIAS, CONTENT),
    Case("FP8", "coded", do.fill(EXPERT, b"\x7f"), "non-finite", CODED, EXPERT, CONTENT),
    Case("zeros", "bare", do.zero_tensor(EXPERT), "zero-tensor", SHARD, EXPERT, CONTENT),
    Case("FP8 zeros", "coded", do.zero_tensor(EXPERT), "zero-tensor", CODED, EXPERT, CONTENT),
]
FILES = [
    Case("shard", "bare", do.remove(SHARD), "missing", SHARD),
    Case("shard, listed", "hub", do.remove(SHARD), "missing", SHARD, options=HEADERS),
    Case("shard, no index", "hub", do.both(do.remove(SHARD), do.remove(INDEX)), "missing", SHARD),
    Case("index, listed", "hub", do.remove(INDEX), "missing", INDEX),
    Case("config", "bare", do.remove("config.json"), "missing", "config.json"),
    Case("remote code", "bare", do.both(do.remove(CODE), AUTO_MAP), "missing", CODE),
    Case("tokenizer", "hub", do.remove(TOKENIZER), "missing", TOKENIZER),
    Case("other, strict", "hub", do.nothing, "missing", "README.md", options=STRICT),
    Case("extra, strict", "hub", do.write("notes.txt", "x"), "extra", "notes.txt", options=STRICT),
    Case("pickle", "hub", do.write("x.bin", "x"), "unsafe-format", "x.bin", options=STRICT),
    Case("aria2", "hub", do.write("x.aria2", ""), "leftover", "x.aria2", options=STRICT),
    Case(
        "incomplete",
        "hub",
        do.write(f"{RECORDS}/x.incomplete", ""),
        "leftover",
        f"{RECORDS}/x.incomplete",
        options=STRICT,
    ),
    Case(
        "temporary", "hub", do.write("._____temp/x", ""), "leftover", "._____temp/x", None, STRICT
    ),
]
INDEXED = [
    Case("no JSON", "bare", do.write(INDEX, "{"), "index", INDEX),
    Case("no map", "bare", do.write(INDEX, "{}"), "index", INDEX),
    Case("absent tensor", "bare", do.in_index(lambda i: i.update(x=SHARD)), "index", SHARD, "x"),
    Case(
        "absent file",
        "bare",
        do.in_index(lambda i: i.update(x="x.safetensors")),
        "missing",
        "x.safetensors",
    ),
    Case("stale", "bare", do.in_index(lambda i: i.pop(EXPERT)), "index", SHARD, EXPERT),
    Case("elsewhere", "bare", do.move(EXPERT, OTHER_EXPERT), "index", OTHER, EXPERT),
    Case("twice", "bare", do.repeat(EXPERT, OTHER_EXPERT), "duplicate", OTHER, EXPERT),
    Case(
        "a file twice",
        "bare",
        do.copy(SHARD, "x.safetensors"),
        "duplicate",
        "x.safetensors",
        EXPERT,
    ),
]
SCALES = [
    scale("none", do.drop(SCALE)),
    scale("shape", do.reshape(SCALE, (2, 2))),
    scale("flat", do.reshape(SCALE, (6,))),
    scale("dtype", do.retype(SCALE, "I32")),
    scale("two", do.add(SCALE, EXPERT + "_scale")),
    scale("alone", do.drop(EXPERT), SCALE),
    scale("zero", do.fill(SCALE, bytes(4)), SCALE, "content"),
    scale("negative", do.fill(SCALE, b"\0\0\x80\xbf", 8), SCALE, "content"),
    scale("NaN", do.fill(SCALE, F32_NAN, 20), SCALE, "content"),
    scale("infinity", do.fill(SCALE, F32_INFINITY, 4), SCALE, "content"),
]
CONFIGS = [
    config("no JSON", do.write("config.json", "{")),
    config("shape", do.in_config(hidden_size=384), EXPERT),
    config("more experts", do.in_config(num_experts=9), EXPERT.replace(".3.", ".8.")),
    config("fewer experts", do.in_config(num_experts=4)),
    config("more layers", do.in_config(num_hidden_layers=4), "model.layers.3.mlp.gate.weight"),
    config("fewer layers", do.in_config(num_hidden_layers=2)),
    config("a tensor less", do.drop(EXPERT), EXPERT),
    config(
        "a tensor more",
        do.add(EXPERT, "model.layers.1.mlp.x.weight"),
        "model.layers.1.mlp.x.weight",
    ),
    config("not quantized", do.in_config(quantization_config={"quant_method": "fp8"})),
    Case(
        "quantized",
        "coded",
        do.in_json("config.json", lambda c: c.pop("quantization_config")),
        "config",
        "config.json",
        # The first by name, whatever order tensors are looked at in.
        "model.layers.0.attention.dense.weight",
    ),
    Case("edited", "hub", YARN, "config-edited", "config.json"),
    Case("edited, recorded", "records", YARN, "config-edited", "config.json"),
    Case(
        "edited, same size",
        "hub",
        do.in_json("config.json", lambda c: c.update(eos_token_id=2)),
        "config-edited",
        "config.json",
    ),
]
TRUTHS = [
    Case("sums", "sums", do.write(SUMS, "nonsense\n"), "damaged-truth", SUMS),
    Case("manifest", "output", do.cut(MANIFEST, -100), "damaged-truth", MANIFEST),
    Case(
        "contradiction",
        "sums",
        do.append(SUMS, f"{'0' * 64}  {SHARD}\n".encode()),
        "damaged-truth",
        SUMS,
    ),
    Case(
        "revision",
        "records",
        lambda folder: record(folder, SHARD, OTHER_COMMIT),
        "mixed-revisions",
        SHARD,
    ),
    Case(
        "revision, listed",
        "hub",
        lambda folder: record(folder, SHARD, OTHER_COMMIT, "7" * 64),
        "mixed-revisions",
        SHARD,
    ),
]
ROWS = {
    "wrong bytes": WRONG_BYTES,
    "cut": CUT,
    "in place of data": IN_PLACE_OF_DATA,
    "values": VALUES,
    "files": FILES,
    "index": INDEXED,
    "scales": SCALES,
    "config": CONFIGS,
    "truth": TRUTHS,
}
CASES = [
    pytest.param(case, id=f"{row}: {case.name}") for row, cases in ROWS.items() for case in cases
]


@pytest.mark.parametrize("case", CASES)
def test_a_damage_is_found_and_named(case: Case, damaged: Copies, tmp_path: Path) -> None:
    folder = damaged(case.folder, case.damage)
    outcome = verify(folder, *case.options, state=tmp_path / "state")
    assert (outcome.code, outcome.report["verdict"]) == (3, "failed"), outcome.stderr
    named = {(category, file) for category, file, _ in outcome.found()}
    assert (case.category, case.file) in named
    if case.tensor:
        assert (case.category, case.file, case.tensor) in outcome.found()


ACCEPTED = [
    Case("edits", "hub", YARN, "config-edited", "config.json", options=EDITS),
    Case("edits, strict", "sums", YARN, "config-edited", "config.json", None, EDITS + STRICT),
    Case("edits, recorded", "records", YARN, "config-edited", "config.json", options=EDITS),
    Case("other files", "hub", do.nothing, "missing", "README.md"),
    Case("extra", "hub", do.write("notes.txt", "x"), "extra", "notes.txt"),
    Case("pickle", "hub", do.write("x.bin", "x"), "unsafe-format", "x.bin"),
    Case("leftover", "hub", do.write("x.aria2", ""), "leftover", "x.aria2"),
]


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case.name)
def test_what_is_accepted_is_still_noted(case: Case, damaged: Copies) -> None:
    outcome = verify(damaged(case.folder, case.damage), *case.options)
    assert outcome.code == 0
    assert outcome.found() == set()
    assert (case.category, case.file, None) in outcome.found(failures=False)


UNSEEN = [
    ("hub", do.flip(SHARD), SIZES, 0),
    ("hub", do.cut(TOKENIZER, 10), HEADERS, 0),
    ("hub", do.flip(SHARD), ("--files", OTHER), 0),
    ("hub", do.remove(SHARD), ("--files", OTHER), 0),
    ("bare", do.fill(EXPERT, NAN), (), 9),
    ("bare", do.flip(SHARD), (), 9),
]


@pytest.mark.parametrize(("name", "damage", "options", "code"), UNSEEN)
def test_nothing_is_said_of_what_was_not_looked_at(
    damaged: Copies, name: str, damage: do.Damage, options: tuple[str, ...], code: int
) -> None:
    outcome = verify(damaged(name, damage), *options)
    assert (outcome.code, outcome.found()) == (code, set())


@pytest.mark.parametrize("listing", [hub_listing, modelscope_listing, sums])
def test_a_saved_listing_finds_wrong_bytes(
    clean: dict[str, Path], damaged: Copies, tmp_path: Path, listing: Listing
) -> None:
    truth = listing(clean["bare"], tmp_path / "listing")
    folder = damaged("bare", do.both(do.flip(SHARD), do.flip(TOKENIZER)))
    outcome = verify(folder, "--against", truth)
    assert outcome.code == 3
    wrong = {("checksum", SHARD, None), ("checksum", TOKENIZER, None)}
    assert outcome.found() == wrong


def test_a_clone_without_its_data(damaged: Copies) -> None:
    names = [f"model-{number:05}-of-00014.safetensors" for number in range(1, 15)]
    outcome = verify(damaged("bare", do.both(*map(do.to_pointer, names))))
    assert outcome.code == 3
    assert outcome.found() == {("lfs-pointer", name, None) for name in names}


def test_a_hole_in_a_tensor(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", [bf16("x", 2 << 20)])
    overwrite(folder, "x", bytes(3 << 19), at=1 << 20)
    hole = ("zero-range", "model.safetensors", "x")
    noted = verify(folder, *CONTENT)
    assert (noted.code, noted.found(failures=False)) == (9, {hole})
    strict = verify(folder, *CONTENT, *STRICT)
    assert (strict.code, strict.found()) == (3, {hole})
