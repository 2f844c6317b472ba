"""System calls that fail, and processes that die at one: nothing is lost or made up.

Every call that a command makes on its source, its plan and its output fails once, with what a disk
or a network answers. However the run ends, its exit code says why, what lies in the output is right
as far as it goes, nothing else was touched, and the same command ends what was begun.
"""

from __future__ import annotations

import errno
import itertools
import json
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from injection import DIRECT, INJECTIONS, Answer, Call, Effect, from_then_on, once
from loops import disk
from ordeal import FULL
from requirements import needs
from scenes import Expected, Ordeal, Scene, Stage, expected_of
from support import MANIFEST

pytestmark = needs("watched-calls")

SCENES = ("quantize", "direct", "reshard", "hardlink", "auto", "resume", "finish", "join", "force")
EFFECTS: tuple[Effect, ...] = (
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE),
    *(errno.EINTR, errno.EAGAIN, errno.EOPNOTSUPP, signal.SIGKILL),
)
# Of a scene in the ordinary run; the kinds of calls take turns from scene to scene.
SAMPLE = 4
# Kinds of which a scene has no more calls than this meet every effect at every call; of the others
# each call meets one, in turn.
FEW = 3
# The whole list of a scene is cut in so many tests, which can run beside one another; a prime, so
# that each of them has every effect.
PARTS = 7 if FULL else 1
# Disks that do not recover.
STAYING = (errno.EIO, errno.ENOSPC, errno.ESTALE)
LACKING = [
    ("flock", errno.EOPNOTSUPP),
    ("flock", errno.ENOLCK),
    ("fallocate", errno.EOPNOTSUPP),
    ("fallocate", errno.ENOSYS),
    ("set O_DIRECT", errno.EINVAL),
    ("fadvise64", errno.ENOSYS),
]
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("faults")
    yield Stage(folder).build()
    shutil.rmtree(folder)


def by_kind(scene: Scene) -> dict[tuple[str, str], list[Call]]:
    """The calls of a scene by folder and name."""
    kinds: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in scene.calls:
        kinds[call.root, call.name].append(call)
    return kinds


def disturbances(scene: Scene, turn: int) -> list[tuple[Call, Effect]]:
    """What happens to which calls: something to all of them, or to a sample."""
    kinds = by_kind(scene)
    if not FULL:
        chosen = []
        for number in range(turn * SAMPLE, (turn + 1) * SAMPLE):
            calls = kinds[sorted(kinds)[number % len(kinds)]]
            chosen.append((calls[number % len(calls)], EFFECTS[number % len(EFFECTS)]))
        return chosen
    found: list[tuple[Call, Effect]] = []
    for calls in kinds.values():
        few = len(calls) <= FEW
        found += itertools.product(calls, EFFECTS) if few else zip(calls, itertools.cycle(EFFECTS))
    return found


def inject(
    scene: Scene,
    chosen: Sequence[tuple[Call, Effect]],
    record: Record,
    how: Callable[[Call, Effect], Answer] = once,
) -> None:
    """Run the scene once for each; some of the runs must have met what was meant for them."""

    def one(numbered: tuple[int, tuple[Call, Effect]]) -> Ordeal:
        number, (call, effect) = numbered
        name = f"{how.__name__}-{number}-{call.name}-{call.path.name}-{call.nth}-{effect}"
        return scene.ordeal(name, how(call, effect), expected_of(scene, call, effect))

    with ThreadPoolExecutor(2) as pool:
        ordeals = list(pool.map(one, enumerate(chosen)))
    record(INJECTIONS, len(ordeals))
    assert [problem for done in ordeals for problem in done.problems] == []
    assert any(done.code for done in ordeals)


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", SCENES)
def test_a_call_that_fails(stage: Stage, name: str, part: int, record_property: Record) -> None:
    scene = stage.scene(name)
    inject(scene, disturbances(scene, SCENES.index(name))[part::PARTS], record_property)


@pytest.mark.parametrize("name", SCENES if FULL else ["reshard"])
def test_a_fault_that_stays(stage: Stage, name: str, record_property: Record) -> None:
    scene = stage.scene(name)
    calls = [calls[len(calls) // 2] for _, calls in sorted(by_kind(scene).items())]
    if not FULL:
        calls = calls[:: len(calls) // SAMPLE]
    chosen = zip(calls, itertools.cycle(STAYING), strict=False)
    inject(scene, list(chosen), record_property, from_then_on)


@pytest.mark.parametrize(("name", "number"), LACKING)
def test_what_a_file_system_lacks(stage: Stage, name: str, number: int) -> None:
    scene = stage.scene("direct" if name == "set O_DIRECT" else "quantize")
    made = next(call for call in scene.calls if call.name == name)
    done = scene.ordeal(f"no-{name}-{number}", from_then_on(made, number), Expected({0}))
    assert done.problems == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("kind", [("source", "pread64"), ("output", "pwrite64")])
def test_direct_io_that_is_refused_midway(stage: Stage, kind: tuple[str, str], number: int) -> None:
    scene, (root, name) = stage.scene("direct"), kind
    made = by_kind(scene)[root, name + DIRECT][0]
    done = scene.ordeal(f"refused-{root}-{number}", once(made, number), Expected({0}))
    assert done.problems == []


@pytest.mark.parametrize(("name", "number"), [("newfstatat", errno.EIO), ("read", errno.EAGAIN)])
def test_a_plan_that_cannot_be_read_now(stage: Stage, name: str, number: int) -> None:
    scene = stage.scene("resume")

    def answer(call: Call) -> int | None:
        return number if (call.root, call.name) == ("plan", name) else None

    done = scene.run(scene.fresh(f"plan-{name}"), answer)
    assert any(answer(call) for call in done.calls)
    assert done.returncode == 8, done.stderr


def test_a_claim_of_publication_that_could_not_be_written(stage: Stage) -> None:
    scene = stage.scene("share")
    output = scene.fresh("unlocked")

    def unlocked(call: Call) -> int | None:
        return errno.EOPNOTSUPP if call.name == "flock" else None

    def full(call: Call) -> int | None:
        claim = (call.name, call.path.name) == ("write", "finish")
        return errno.ENOSPC if claim else unlocked(call)

    done = scene.run(output, full)
    assert done.returncode == 6, done.stderr
    assert scene.problems(output) == []
    done = scene.run(output, unlocked)
    assert done.returncode == 0, done.stderr
    assert scene.is_finished(output), done.stderr


def test_a_file_system_that_cannot_sync_folders(stage: Stage, tmp_path: Path) -> None:
    scene = stage.scene("quantize")

    def refused(call: Call) -> int | None:
        folder = call.path.suffix == "" and call.name == "fsync"
        return errno.EINVAL if folder else None

    done = scene.run(tmp_path / "out", refused)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot sync folders") == 1
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert any("cannot sync folders" in warning for warning in manifest["warnings"])


@needs("reflinks")
def test_calls_that_fail_where_blocks_are_shared(tmp_path: Path, record_property: Record) -> None:
    with disk(tmp_path, "btrfs", 256 << 20) as place:
        scene = Stage(place).build().scene("reflink")
        clone = by_kind(scene)["output", "FICLONE"][0]
        others = disturbances(scene, 0) if FULL else []
        chosen = [(clone, effect) for effect in EFFECTS[:: 1 if FULL else 2]]
        inject(scene, [*chosen, *others], record_property)
