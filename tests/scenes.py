"""What is done to an output in several ways; in each of them any call may fail."""

from __future__ import annotations

import errno
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from downloads import sums
from injection import DIRECT, Answer, Call, Done, Effect, watch
from invariants import JOURNALS, MANIFEST, SUMS, Kept, violations
from ordeal import Words, digests
from support import lingconv, succeed

FOREIGN = "notes.txt"
SIZE: Words = ("--layers", "2", "--experts", "4", "--shard-size", "2M")
ONE_JOB: Words = ("--jobs", "1", "-q")
STAGES: Words = ("--target", "hf", "--pp", "2")
# Calls of one kind on one file of which all are alike, as the pages of a sample.
MANY = 8
# Calls that are made again when a signal comes in between.
MADE_AGAIN = {
    *("read", "pread64", "write", "pwrite64", f"pread64{DIRECT}", f"pwrite64{DIRECT}"),
    *("fsync", "fdatasync", "ftruncate", "fallocate", "flock", "FICLONE"),
}
# Calls that only make it faster, and those that a file system need not have.
HINTS = {"fadvise64", "set O_DIRECT"}
NOT_NEEDED = {"flock", "fallocate", f"pread64{DIRECT}", f"pwrite64{DIRECT}"}
LINKING = {"FICLONE", "linkat"}
# Scenes that copy where they cannot link.
LINK_AUTO = {"auto", "join"}
FULL_DISK = {errno.ENOSPC, errno.EDQUOT}

Command = Callable[[Path], Words]


@dataclass(frozen=True)
class Expected:
    """How a disturbed run may end."""

    codes: set[int]
    # What its message must name.
    file: str = ""
    # Files that tell what the file system could not do.
    free: frozenset[str] = frozenset()
    # What is said where it ends with 0 and leaves the rest to another process.
    left: str = ""


@dataclass(frozen=True)
class Ordeal:
    """How a disturbed run ended, and what was wrong with that."""

    code: int
    problems: list[str]


@dataclass
class Scene:
    """A command, the folder that it finds, and what it makes of that undisturbed."""

    name: str
    roots: dict[str, Path]
    command: Command
    # Copied to where the output goes before each run; None: there is nothing yet.
    begun: Path | None
    workplace: Path
    expected: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    kept: Kept = field(default_factory=lambda: Kept({}))

    def rehearse(self) -> Scene:
        """Run undisturbed."""
        output = self.fresh("calm")
        done = self.run(output)
        assert done.returncode == 0, (self.name, done.stderr)
        self.calls, self.expected = done.calls, digests(output)
        self.kept = Kept.of(self.roots["source"])
        shutil.rmtree(output.parent)
        return self

    def fresh(self, name: str) -> Path:
        """An output folder as the command finds it."""
        output = self.workplace / self.name / name / "out"
        output.parent.mkdir(parents=True)
        if self.begun:
            shutil.copytree(self.begun, output, symlinks=True)
            (output / FOREIGN).write_text("mine")
        return output

    def run(self, output: Path, answer: Answer = lambda _: None) -> Done:
        """A watched run."""
        return watch(self.command(output), self.roots | {"output": output}, answer)

    def problems(self, output: Path) -> list[str]:
        """What no run may leave, however it ended."""
        data = {n: d for n, d in self.expected.items() if n.endswith(".safetensors")}
        found = violations(output, data) + self.kept.violations()
        if self.begun and (output / FOREIGN).read_text() != "mine":
            found.append(f"{FOREIGN} has other bytes")
        return found

    def is_finished(self, output: Path, free: frozenset[str] = frozenset()) -> bool:
        """Whether everything is there, byte for byte but for `free`, and nothing is left over."""
        if not output.is_dir() or (output / JOURNALS).exists():
            return False
        found = digests(output)
        same = {name for name in found if found[name] == self.expected.get(name)}
        return found.keys() == self.expected.keys() and same | free >= found.keys()

    def ordeal(self, name: str, answer: Answer, expected: Expected) -> Ordeal:
        """A run that is disturbed, and, if that did not end it, one that is not."""
        output = self.fresh(name)
        done = self.run(output, answer)
        found = self.problems(output)
        if done.returncode not in expected.codes or "Traceback" in done.stderr:
            found.append(f"{done.returncode}, not one of {expected.codes}: {done.stderr}")
        if done.returncode in (6, 8) and expected.file not in done.stderr:
            found.append(f"{expected.file} is not named: {done.stderr}")
        if not self.is_finished(output, expected.free):
            if done.returncode == 0 and not (expected.left and expected.left in done.stderr):
                found.append("ended with 0, and is not finished")
            again = lingconv(*self.command(output))
            found += self.problems(output)
            if again.returncode != 0 or not self.is_finished(output, expected.free):
                found.append(f"not finished by another run: {again.returncode} {again.stderr}")
        shutil.rmtree(output.parent)
        return Ordeal(done.returncode, [f"{self.name}, {name}: {problem}" for problem in found])


def expected_of(scene: Scene, call: Call, effect: Effect) -> Expected:
    """How a run may end in which that happens to a call."""
    if isinstance(effect, signal.Signals):
        return Expected({-effect})
    made_again = effect == errno.EINTR and call.name in MADE_AGAIN
    refused = effect == errno.EOPNOTSUPP
    if call.name in HINTS or made_again or (refused and call.name in NOT_NEEDED):
        return Expected({0})
    codes, free, left = {0, 6 if effect in FULL_DISK else 8}, set(), ""
    if call.name == "flock" and effect == errno.EAGAIN:
        codes.add(7)
        left = "another process is at work here; the last one publishes"
    if call.name == "fsync" and refused:
        # Of a folder: told among the warnings.
        free = {MANIFEST}
    if call.name in LINKING and refused and scene.name in LINK_AUTO:
        # Copied instead, and with digests.
        free = {MANIFEST, SUMS}
    elif call.name in LINKING and refused:
        codes.add(5)
    return Expected(codes, call.file, frozenset(free), left)


@dataclass
class Stage:
    """One source, and what was begun with it."""

    folder: Path
    _begun: set[Call] = field(default_factory=set)
    _scenes: dict[str, Scene] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def plan(self) -> Path:
        return self.folder / "plan.json"

    def build(self) -> Stage:
        """Make the source, with the sums that a download leaves."""
        succeed("synth", "tiny", *SIZE, "-o", self.source)
        sums(self.source)
        save: Words = ("--dry-run", "--save", self.plan, "-o", self.folder / "none")
        succeed("quantize", "fp8", self.source, *save)
        return self

    def scene(self, name: str) -> Scene:
        """A scene by its name, rehearsed."""
        if name in self._scenes:
            return self._scenes[name]
        command, begun = self._commands()[name]
        roots = {"source": self.source, "plan": self.plan}
        made = Scene(name, roots, command, begun and begun(), self.folder / "runs")
        made.rehearse()
        # Opening one source takes the same calls, whatever is done with it.
        before = made.calls[: next(i for i, c in enumerate(made.calls) if c.root == "output")]
        known = self._begun & set(before)
        made.calls = [call for call in thinned(made.calls) if call not in known]
        self._begun |= set(before)
        self._scenes[name] = made
        return made

    def _commands(self) -> dict[str, tuple[Command, Callable[[], Path] | None]]:
        run: Words = ("run", self.plan, "--source", self.source, *ONE_JOB)

        def quantized(*options: str | Path) -> Command:
            return lambda output: (
                *("quantize", "fp8", self.source, "-o", output),
                *(*ONE_JOB, *options),
            )

        def cut(*options: str | Path) -> Command:
            return lambda output: ("reshard", self.source, "-o", output, *ONE_JOB, *options)

        def planned(*options: str | Path) -> Command:
            return lambda output: (*run, "-o", output, *options)

        def half() -> Path:
            return self._prepared("share", [planned("--worker", "1/2")])

        def halfway() -> Path:
            shares = [planned("--worker", "1/2"), planned("--worker", "2/2")]
            return self._prepared("resume", shares, "model-00002-of-00003.safetensors.part")

        def unpublished() -> Path:
            return self._prepared("finish", [planned()], f"{SUMS}.part")

        def one_rank() -> Path:
            return self._prepared("join", [cut(*STAGES, "--rank", "pp0")])

        def complete() -> Path:
            return self._prepared("force", [quantized()])

        return {
            "quantize": (quantized(), None),
            "direct": (quantized("--io", "direct", "--paranoid"), None),
            "reshard": (cut("--tp", "2"), None),
            "hardlink": (cut(*STAGES, "--link", "hardlink"), None),
            "reflink": (cut(*STAGES, "--link", "reflink"), None),
            "auto": (cut(*STAGES), None),
            "resume": (planned(), halfway),
            "share": (planned("--worker", "2/2"), half),
            "finish": (planned("--finish"), unpublished),
            "join": (cut(*STAGES, "--rank", "pp1"), one_rank),
            "force": (quantized("--force"), complete),
        }

    def _prepared(self, name: str, steps: Sequence[Command], die_at: str = "") -> Path:
        """What commands leave, the last of which dies where it gives a file its final name."""
        output = self.folder / "begun" / name
        for step in steps:
            last = bool(die_at) and step is steps[-1]
            done = watch(step(output), {"output": output}, _dying(die_at if last else ""))
            assert done.returncode == (-signal.SIGKILL if last else 0), done.stderr
        return output


def _dying(name: str) -> Answer:
    def answer(call: Call) -> signal.Signals | None:
        return signal.SIGKILL if call.name == "rename" and call.path.name == name else None

    return answer


def thinned(calls: Sequence[Call]) -> list[Call]:
    """Without most of those that are one of many on the same file."""
    counts = Counter((call.name, call.root, call.path) for call in calls)

    def is_kept(call: Call) -> bool:
        count = counts[call.name, call.root, call.path]
        return count <= MANY or call.nth in (1, count) or call.nth % (count * 2 // MANY) == 0

    return [call for call in calls if is_kept(call)]
