"""Configurations, manifests and option files that somebody made to harm: each is refused by name.

None of them may end as an internal error, run what it holds, wait for ever or take much memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingconv import experts
from lingconv.errors import Error
from lingconv.report.manifest import read_manifest
from measure import cost_of_lingconv
from support import COMMAND, MANIFEST, environment, refuse, succeed

MOST_MEMORY = 300_000_000
COUNTS = [[1, 2, 3, 4], [4, 3, 2, 1]]


# config.json for --model.

CONFIG = {"num_hidden_layers": 2, "num_experts": 4, "n_group": 2, "topk_group": 1}


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_link_out(path: Path) -> None:
    target = path.parent.parent / "elsewhere.json"
    target.write_text(json.dumps(CONFIG))
    path.symlink_to(target)


def as_relative_link_out(path: Path) -> None:
    as_link_out(path)
    path.unlink()
    path.symlink_to("../elsewhere.json")


def as_descriptor(path: Path) -> None:
    path.symlink_to("/proc/self/fd/0")


def as_loop(path: Path) -> None:
    path.symlink_to(path)


CONFIGS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "objects": b"{" * 100_000,
    "numbers": b'{"z": [' + b"0," * 7_800_000 + b"0]}",
    "a key twice": b'{"num_experts": 4, "num_experts": 8, "num_hidden_layers": 2}',
    "NaN": b'{"num_experts": NaN, "num_hidden_layers": 2}',
    "digits": b'{"num_experts": ' + b"9" * 5000 + b', "num_hidden_layers": 2}',
    "a truth": b'{"num_experts": true, "num_hidden_layers": 2}',
    "UTF-16": json.dumps(CONFIG).encode("utf-16"),
    "blanks": b" " * (17 << 20),
}
FORMS: list[Callable[[Path], None]] = [
    os.mkfifo,
    as_device,
    as_link_out,
    as_relative_link_out,
    as_descriptor,
    as_loop,
]


def check_place_refuses(model: Path) -> None:
    loads, out = model.parent / "loads.json", model.parent / "map.json"
    loads.write_text(json.dumps(COUNTS))
    words = ("experts", "place", loads, "--ep", "2", "--model", model, "-o", out)
    cost = cost_of_lingconv(*words)
    assert (cost.code, str(model / "config.json") in cost.stderr) == (4, True), cost.stderr
    assert cost.peak < MOST_MEMORY
    assert not out.exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An empty folder."""
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.mark.parametrize("make", FORMS)
def test_a_configuration_that_is_no_file(model: Path, make: Callable[[Path], None]) -> None:
    make(model / "config.json")
    check_place_refuses(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_is_none(model: Path, name: str) -> None:
    (model / "config.json").write_bytes(CONFIGS[name])
    check_place_refuses(model)


@pytest.mark.parametrize("place", ["beside", "a cache"])
def test_links_that_stay_inside(tmp_path: Path, place: str) -> None:
    model = tmp_path / "models--a--b" / "snapshots" / "0"
    model.mkdir(parents=True)
    target = model / "real.json"
    if place == "a cache":
        target = model.parent.parent / "blobs" / "real"
        target.parent.mkdir()
    target.write_text(json.dumps(CONFIG))
    (model / "config.json").symlink_to(os.path.relpath(target, model))
    assert experts.read_routing(model) == experts.Routing(2, 4, 2)


# Manifests, as `report` reads them.


def manifest(**changes: Any) -> bytes:
    whole = {
        "schema": "lingconv.manifest/1",
        "tool": "x",
        "plan": "x",
        "source": {"digest": "x"},
        "request": {"reshard": None},
        "files": [],
        "sidecars": [],
        "dropped": [],
        "warnings": [],
    }
    return json.dumps(whole | changes).encode()


ERROR = {"sqnr_db": 1.0, "max_abs_error": 0, "saturated": 0, "underflowed": 0, "elements": 1}
LISTS_OF_NOTHING = manifest(z=0).replace(b'"z": 0', b'"z":[' + b"[]," * 8_000_000 + b"0]")
MANIFESTS: dict[str, bytes] = {
    "objects": manifest().replace(b'"dropped": []', b'"dropped":[' + b"{}," * 2_000_000 + b"{}]"),
    "files": manifest(files=[{"path": "", "size": 0, "tensors": []}] * 20_001),
    "warnings": manifest(warnings=["ab"]).replace(b'"ab"', b'"ab",' * 3_000_000 + b'"ab"'),
    "deep": manifest().replace(b'"x"', b"[" * 100_000, 1),
    "a deep request": manifest().replace(b"null", b"[" * 130 + b"]" * 130),
    "half a character": manifest().replace(b'"reshard"', b'"\\ud800"'),
    "a file of text": manifest(files=["x"]),
    "a size of text": manifest(files=[{"path": "x", "size": "1", "tensors": []}]),
    "a negative size": manifest(files=[{"path": "x", "size": -1, "tensors": []}]),
    "a truth as size": manifest(sidecars=[{"path": "x", "size": True}]),
    "an error of text": manifest(errors=[{"tensor": "x", "error": ERROR | {"saturated": "x"}}]),
    "half an error": manifest(errors=[{"tensor": "x", "error": {}}]),
    "warnings of nothing": manifest(warnings=None),
    "a request of nothing": manifest(request=None),
    "a key less": manifest().replace(b'"plan"', b'"plans"'),
    "UTF-16": manifest().decode().encode("utf-16"),
    "nothing": b"",
}


# Perhaps sound, and too large for a page.
LARGE_MANIFESTS = {"objects", "files"}


@pytest.fixture(scope="module")
def described(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a checkpoint to lay manifests into."""
    folder = tmp_path_factory.mktemp("described") / "model"
    return Path(shutil.copytree(shared / "tiny", folder))


def check_report_ends(folder: Path, page: Path) -> None:
    """The core reads manifests too, and may have refused this one before."""
    cost = cost_of_lingconv("report", folder, "-o", page)
    assert cost.code in (0, 4, 5), cost.stderr
    assert cost.peak < MOST_MEMORY


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_is_none(described: Path, tmp_path: Path, name: str) -> None:
    (described / MANIFEST).write_bytes(MANIFESTS[name])
    with pytest.raises(Error) as raised:
        read_manifest(described)
    code = 5 if name in LARGE_MANIFESTS else 4
    assert (raised.value.exit_code, raised.value.path) == (code, str(described / MANIFEST))
    check_report_ends(described, tmp_path / "page.html")


def test_what_a_manifest_holds_beside_is_not_built(described: Path, tmp_path: Path) -> None:
    (described / MANIFEST).write_bytes(LISTS_OF_NOTHING)
    found = read_manifest(described)
    assert found is not None
    assert (found.tool, found.files) == ("x", [])
    check_report_ends(described, tmp_path / "page.html")


@pytest.mark.parametrize("make", FORMS)
def test_a_manifest_that_is_no_file(model: Path, make: Callable[[Path], None]) -> None:
    make(model / MANIFEST)
    with pytest.raises(Error) as raised:
        read_manifest(model)
    assert raised.value.exit_code == 4


# Files that options name.


def through_a_pipe(data: bytes, *words: str | Path) -> tuple[int, str]:
    """Exit code and stderr of a command whose input is a pipe with these bytes."""
    done = subprocess.run(
        [*COMMAND, *map(str, words)],
        input=data,
        env=environment(),
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stderr.decode()


def test_a_plan_through_a_pipe(shared: Path, tmp_path: Path) -> None:
    plan, tiny = tmp_path / "plan.json", shared / "tiny"
    succeed("plan", "quantize", "fp8", tiny, "--save", plan)
    words = ("run", "/dev/stdin", "--source", tiny, "-o", tmp_path / "out", "--dry-run")
    code, text = through_a_pipe(plan.read_bytes(), *words)
    assert code == 0, text
    code, text = through_a_pipe(b" " * (33 << 20), *words)
    assert (code, "more than 33,554,432 bytes" in text) == (2, True), text


@pytest.mark.parametrize("option", ["--arch", "--dialect-file"])
@pytest.mark.parametrize("file", ["/dev/zero", "/dev/null", "LARGE", "UTF-16"])
def test_option_files_that_are_none(shared: Path, tmp_path: Path, option: str, file: str) -> None:
    made = {"LARGE": b"#" * (2 << 20), "UTF-16": "name = 'x'".encode("utf-16")}
    path = Path(file)
    if file in made:
        path = tmp_path / "file.toml"
        path.write_bytes(made[file])
    error = refuse(2, "quantize", "fp8", shared / "tiny", "--dry-run", option, path)
    assert error["path"] == str(path)
