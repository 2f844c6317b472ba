"""Whatever is done to an output or its source between two runs: right bytes, or a refusal."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from invariants import JOURNALS, MANIFEST, Kept, move_clock, violations
from ordeal import FULL, Words, digests, quantize
from support import lingconv, succeed

# How a run may end that met tampering: right, or with a documented refusal.
ENDINGS = {0, 3, 4, 6, 7, 8}
PARTIAL: Words = ("--worker", "1/2")
SEEDS = range(40 if FULL else 1)
Damage = Callable[["Scene", random.Random], None]


@dataclass
class Scene:
    """A source, an output that half of it was converted to, and what the whole becomes."""

    source: Path
    output: Path
    plan: Path

    def words(self, *options: str) -> Words:
        return ("run", self.plan, "--source", self.source, "-o", self.output, *options)

    @property
    def journal(self) -> Path:
        return next((self.output / JOURNALS).glob("journal.*"))

    def data(self) -> list[Path]:
        return sorted(self.output.glob("*.safetensors"))

    def shards(self) -> list[Path]:
        """Source files of what is converted already."""
        return [self.source / path.name for path in self.data()]

    def expected(self) -> dict[str, str]:
        """What an undisturbed run makes of the source as it is now."""
        calm = self.output.with_name("calm")
        done = lingconv(*quantize(self.source, calm))
        return digests(calm) if done.returncode == 0 else {}


@pytest.fixture
def scene(tiny: Path, tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tiny, tmp_path / "out", tmp_path / "plan.json")
    succeed(*quantize(tiny, scene.output, "--dry-run", "--save", scene.plan))
    succeed(*scene.words(*PARTIAL))
    yield scene
    shutil.rmtree(tmp_path)


def flip(path: Path, chance: random.Random) -> None:
    """Flip a bit, and leave size and times as they were."""
    data, before = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    data[-1 - chance.randrange(len(data) // 2)] ^= 1 << chance.randrange(7)
    path.write_bytes(data)
    move_clock(path, before)


def journal_bit(scene: Scene, chance: random.Random) -> None:
    data = bytearray(scene.journal.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    scene.journal.write_bytes(data)


def journal_lines(change: Callable[[list[bytes], random.Random], list[bytes]]) -> Damage:
    def damage(scene: Scene, chance: random.Random) -> None:
        lines = scene.journal.read_bytes().splitlines(keepends=True)
        scene.journal.write_bytes(b"".join(change(lines, chance)))

    return damage


def output_file(change: Callable[[Path, random.Random], None]) -> Damage:
    return lambda scene, chance: change(chance.choice(scene.data()), chance)


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def extend(path: Path, chance: random.Random) -> None:
    with path.open("ab") as file:
        file.write(bytes(chance.randrange(1, 9_000)))


def linked(path: Path, chance: random.Random) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def folder_in_its_place(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe_in_its_place(path: Path, chance: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def swapped(scene: Scene, chance: random.Random) -> None:
    one, two = chance.sample(scene.data(), 2)
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


def source_bit(scene: Scene, chance: random.Random) -> None:
    flip(chance.choice(scene.shards()), chance)


def source_bit_through_a_link(scene: Scene, chance: random.Random) -> None:
    path = chance.choice(scene.shards())
    link = scene.source.with_name("link")
    link.hardlink_to(path)
    flip(link, chance)


def moved_then_changed(scene: Scene, chance: random.Random) -> None:
    scene.source = scene.source.rename(scene.source.with_name("moved"))
    flip(chance.choice(scene.shards()), chance)


def another_model(scene: Scene, chance: random.Random) -> None:
    config = (scene.source / "config.json").read_bytes()
    shutil.rmtree(scene.source)
    succeed("synth", "tiny", "-o", scene.source, "--seed", "1")
    assert (scene.source / "config.json").read_bytes() == config


def clock(moment: int) -> Damage:
    def damage(scene: Scene, chance: random.Random) -> None:
        for path in (*scene.shards(), *scene.data()):
            move_clock(path, moment)

    return damage


DAMAGES: dict[str, Damage] = {
    "nothing": lambda scene, chance: None,
    "journal: a bit": journal_bit,
    "journal: gone": lambda scene, chance: scene.journal.unlink(),
    "journal: a line less": journal_lines(
        lambda lines, c: lines[: (n := c.randrange(1, len(lines)))] + lines[n + 1 :]
    ),
    "journal: twice": journal_lines(lambda lines, c: lines * 2),
    "journal: another order": journal_lines(
        lambda lines, c: lines[:1] + c.sample(lines[1:], len(lines) - 1)
    ),
    "journal: cut": journal_lines(
        lambda lines, c: [(text := b"".join(lines))[: c.randrange(len(text))]]
    ),
    "output: a bit": output_file(flip),
    "output: cut": output_file(cut),
    "output: longer": output_file(extend),
    "output: gone": output_file(lambda path, c: path.unlink()),
    "output: a link": output_file(linked),
    "output: a folder": output_file(folder_in_its_place),
    "output: a pipe": output_file(pipe_in_its_place),
    "output: swapped": swapped,
    "source: a bit": source_bit,
    "source: a bit through a link": source_bit_through_a_link,
    "source: moved and a bit": moved_then_changed,
    "source: another model": another_model,
    "clock: 1970": clock(1),
    "clock: 2100": clock(4_102_444_800 * 10**9),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_between_two_runs(scene: Scene, damage: str, seed: int) -> None:
    DAMAGES[damage](scene, random.Random(seed))
    expected, kept = scene.expected(), Kept.of(scene.source)
    data = {name: value for name, value in expected.items() if name.endswith(".safetensors")}
    done = lingconv(*scene.words())
    assert done.returncode in ENDINGS, done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert violations(scene.output, data) == []
        assert (scene.output / MANIFEST).exists()
        found = digests(scene.output)
        assert {n: d for n, d in found.items() if n in data} == data
    else:
        assert not (scene.output / MANIFEST).exists(), done.stderr
        theirs = Kept.of(scene.output)
        again = lingconv(*quantize(scene.source, scene.output, "--force"))
        if again.returncode == 7:
            # Nothing says any more that lingconv wrote this folder: it stays as it is.
            assert theirs.violations() == []
        else:
            assert again.returncode == 0, (done.stderr, again.stderr)
            assert violations(scene.output, data) == []
    assert kept.violations() == []
