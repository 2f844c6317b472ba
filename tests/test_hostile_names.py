"""`--json` is JSON in ASCII, whatever the names of files, tensors and keys hold."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from downloads import sums
from ordeal import FULL, Words
from support import COMMAND, EXPERT, INDEX, environment, rewrite_header, shard_of, succeed

ROUNDS = range(300 if FULL else 8)
# Controls, ends of lines, turns of direction, halves of characters, and signs of JSON itself.
SIGNS = [*'\x7f\x1b\x00\n\t\x80\u2028\u202e\ufeff"\\é\ud800\udfff\U0001f600', "</script>"]
BYTES = [b"\x7f", b"\xff", b"\n", b'"', b"\\", b"\x1b", b"\xed\xa0\x80", b"\xe2\x80\xa8"]
TEXTS = [*BYTES, b"\\u007f", b"\\ud800", b"\\u0000", b"NaN", b"1e999"]
Damage = Callable[[Path, random.Random], object]


def one_of(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(folder.glob("*.safetensors")))


def flipped_bits(folder: Path, chance: random.Random) -> None:
    path = one_of(folder, chance)
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    for _ in range(chance.choice((1, 3))):
        raw[8 + chance.randrange(length)] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


def named_tensor(folder: Path, chance: random.Random) -> None:
    path, sign = one_of(folder, chance), chance.choice(SIGNS)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8:start])
    except ValueError:
        return  # An earlier damage has made it no header.
    name = chance.choice([name for name in header if name != "__metadata__"])
    at = chance.randrange(len(name))
    header[f"{name[:at]}{sign}{name[at:]}"] = header.pop(name)
    header.setdefault("__metadata__", {})[sign] = sign
    spelled = json.dumps(header, ensure_ascii=chance.random() < 0.5)
    text = spelled.encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])


def named_file(folder: Path, chance: random.Random) -> None:
    path, sign = one_of(folder, chance), os.fsdecode(chance.choice(BYTES))
    new = path.with_name(path.name[:3] + sign + path.name[3:])
    chance.choice((os.rename, shutil.copyfile))(path, new)


def edited_text(folder: Path, chance: random.Random) -> None:
    names = [INDEX, "config.json", "SHA256SUMS"]
    path = chance.choice([folder / name for name in names if (folder / name).exists()])
    raw = bytearray(path.read_bytes())
    at = chance.randrange(len(raw))
    raw[at:at] = chance.choice(TEXTS)
    path.write_bytes(raw)


DAMAGES: list[Damage] = [flipped_bits, named_tensor, named_file, edited_text]


def commands(folder: Path, new: Path) -> list[Words]:
    return [
        ("inspect", folder),
        ("inspect", folder, "--tree"),
        ("verify", folder),
        ("verify", folder, "--level", "content", "--experts", "--write-sums", new / "sums"),
        ("quantize", "fp8", folder, "-o", new / "out", "--dry-run"),
        ("quantize", "fp8", folder, "-o", new / "out", "--progress", "json"),
        ("reshard", folder, "--tp", "2", "-o", new / "out", "--dry-run"),
        ("experts", "stats", folder),
        ("report", folder, "-o", new / "page.html"),
    ]


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def value_of(text: bytes) -> Any:
    return json.loads(text.decode("ascii"), parse_constant=refuse_constant)


def check_json(words: Words, what: object) -> None:
    done = subprocess.run(
        [*COMMAND, *words, "--json"], env=environment(), capture_output=True, check=False
    )
    assert done.returncode not in (1, 2), (what, done)
    assert done.returncode >= 0, (what, done)
    said = done.stderr.splitlines()
    if done.stdout:
        assert value_of(done.stdout)["schema"].startswith("lingconv."), what
    else:
        assert value_of(said[-1])["error"]["code"] == done.returncode, (what, done)
    for line in said:
        assert not line.startswith(b"{") or value_of(line), (what, done)


@pytest.fixture(scope="module")
def sources(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("names")
    whole = Path(shutil.copytree(shared / "tiny", folder / "whole"))
    sums(whole)
    succeed("reshard", whole, "--tp", "2", "-o", folder / "cut")
    return [whole, folder / "cut", shared / "coded"]


@pytest.mark.parametrize("seed", ROUNDS)
def test_json_of_damaged_checkpoints(sources: list[Path], tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    folder = tmp_path / os.fsdecode(b"named " + chance.choice([b"", *BYTES]))
    shutil.copytree(chance.choice(sources), folder)
    damages = chance.choices(DAMAGES, k=chance.choice((1, 2)))
    for damage in damages:
        damage(folder, chance)
    chosen = commands(folder, tmp_path)
    for words in chosen if FULL else (chosen[seed % len(chosen)], chosen[2]):
        check_json(words, (seed, [damage.__name__ for damage in damages], words))


def test_one_flipped_bit_hides_nothing(sources: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(sources[0], folder)
    path = shard_of(folder, EXPERT)
    rewrite_header(path, lambda text: text.replace("up_proj", "up\x7fproj", 1))
    done = subprocess.run(
        [*COMMAND, "verify", folder, "--json"], env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 3
    found = value_of(done.stdout)["findings"]
    assert [f["file"] for f in found if f["category"] == "checksum"] == [path.name]
    assert "\x7f" in json.dumps(found, ensure_ascii=False)
