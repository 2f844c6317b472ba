"""`verify` of hostile names and links: refused, and nothing outside the folder is opened."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from downloads import COMMIT, RECORDS, bf16, edit_json, small_checkpoint
from lingconv.reference.storage import INDEX
from support import MANIFEST, TIMEOUT, environment

FILE = "model.safetensors"
SECRET = "secret.safetensors"
ZEROS = "0" * 64
REFUSED = {2, 3, 4, 9}

# Verifies each folder of a list, against a file where one is named; prints codes as `verify` does.
RUNNER = """
import json, sys
from lingconv import api
from lingconv.errors import Error
codes = {"ok": 0, "failed": 3, "unverifiable": 9}
for folder, against in json.load(sys.stdin):
    try:
        code = codes[api.verify(folder, against=against, level="content", jobs=1).verdict]
    except Error as error:
        code = error.exit_code
    print(code)
"""


def forms(outside: Path) -> dict[str, str]:
    """Names of the file `secret.safetensors` in a folder beside the checkpoint, and worse."""
    up = f"../{outside.name}/{SECRET}"
    return {
        "parent": up,
        "parent below": f"x/../{up}",
        "this and parent": f"./{up}",
        "absolute": str(outside / SECRET),
        "host": f"//{outside}/{SECRET}",
        "address": f"file://{outside}/{SECRET}",
        "backslash": up.replace("/", "\\"),
        "drive": f"C:/{outside.name}/{SECRET}",
        "drive without root": "c:secret.safetensors",
        "drive and backslash": "C:\\secret.safetensors",
        "parent alone": "..",
        "this alone": ".",
        "double slash": "x//secret.safetensors",
        "slash last": "secret.safetensors/",
        "NUL": f"{FILE}\0/{up}",
        "nothing": "",
    }


def in_index(folder: Path, name: str) -> Path | None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    return None


def in_sums(folder: Path, name: str) -> Path | None:
    (folder / "SHA256SUMS").write_text(f"{ZEROS}  {name}\n")
    return None


def in_bsd_sums(folder: Path, name: str) -> Path | None:
    (folder / "B3SUMS").write_text(f"BLAKE3 ({name}) = {ZEROS}\n")
    return None


def in_escaped_sums(folder: Path, name: str) -> Path | None:
    escaped = name.replace("\\", "\\\\")
    (folder / "SHA256SUMS").write_text(f"\\{ZEROS} *{escaped}\n")
    return None


def in_manifest(folder: Path, name: str) -> Path | None:
    row = {"path": name, "size": 1, "sha256": ZEROS, "data_start": 0, "tensors": []}
    text = json.dumps({"schema": "lingconv.manifest/1", "files": [row]})
    (folder / MANIFEST).write_text(text)
    return None


def in_sidecars(folder: Path, name: str) -> Path | None:
    row = {"path": name, "size": 1, "sha256": ZEROS}
    text = json.dumps({"schema": "lingconv.manifest/1", "files": [], "sidecars": [row]})
    (folder / MANIFEST).write_text(text)
    return None


def in_tree(folder: Path, name: str) -> Path | None:
    file = folder / f".cache/huggingface/trees/{COMMIT}.json"
    file.parent.mkdir(parents=True)
    listed = {name: {"size": 1, "lfs_sha256": ZEROS}}
    file.write_text(json.dumps({"format_version": 1, "files": listed}))
    return None


def saved(folder: Path, listing: object) -> Path:
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(listing))
    return file


def in_hub_listing(folder: Path, name: str) -> Path | None:
    return saved(folder, [{"type": "file", "path": name, "size": 1, "lfs": {"oid": ZEROS}}])


def in_modelscope_listing(folder: Path, name: str) -> Path | None:
    row = {"Path": name, "Type": "blob", "Size": 1, "Sha256": ZEROS}
    return saved(folder, {"Code": 200, "Success": True, "Data": {"Files": [row]}})


def in_bundle(folder: Path, name: str) -> Path | None:
    row = {"name": name, "algorithm": "sha256", "digest": ZEROS}
    root = hashlib.sha256(bytes(32)).hexdigest()
    statement = {
        "predicateType": "https://model_signing/signature/v1.0",
        "subject": [{"name": "model", "digest": {"sha256": root}}],
        "predicate": {"resources": [row]},
    }
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    return saved(folder, {"dsseEnvelope": {"payload": payload}})


def in_auto_map(folder: Path, name: str) -> Path | None:
    def change(config: dict[str, Any]) -> None:
        config["auto_map"] = {"AutoConfig": f"{name}.Config"}

    edit_json(folder / "config.json", change)
    return None


PLACES: list[Callable[[Path, str], Path | None]] = [
    in_index,
    in_sums,
    in_bsd_sums,
    in_escaped_sums,
    in_manifest,
    in_sidecars,
    in_tree,
    in_hub_listing,
    in_modelscope_listing,
    in_bundle,
    in_auto_map,
]
LINKED_FILES = [FILE, "config.json", INDEX, "x.safetensors", "x.py", "README.md", "SHA256SUMS"]
LINKED_FILES += ["B3SUMS", MANIFEST, f"{RECORDS}/{FILE}.metadata"]
LINKED_FILES += [f".cache/huggingface/trees/{COMMIT}.json"]
LINKED_FOLDERS = ["x", ".cache", ".cache/huggingface", RECORDS, ".cache/huggingface/trees"]
LINKED_FOLDERS += ["._____temp"]


@dataclass(frozen=True)
class Attempt:
    """A hostile folder, and the file it is compared with."""

    name: str
    folder: Path
    against: Path | None


def link(folder: Path, name: str, target: Path) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def attempts(base: Path, outside: Path) -> Iterator[Attempt]:
    def fresh(number: int) -> Path:
        return small_checkpoint(base / f"{number}", [bf16("x", 2)])

    number = 0
    for place in PLACES:
        for form, name in forms(outside).items():
            number += 1
            folder = fresh(number)
            yield Attempt(f"{place.__name__}: {form}", folder, place(folder, name))
    for name in LINKED_FILES + LINKED_FOLDERS:
        number += 1
        folder = fresh(number)
        link(folder, name, Path(Path(name).name))
        yield Attempt(f"link {name} to itself", folder, None)
    for targets, names in (
        ([outside / SECRET, Path(f"../{outside.name}/{SECRET}")], LINKED_FILES),
        ([outside, Path("/")], LINKED_FOLDERS),
    ):
        for name in names:
            for target in targets:
                number += 1
                folder = fresh(number)
                link(folder, name, target)
                yield Attempt(f"link {name} to {target}", folder, None)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What nobody may open: files of all the names that links could lead to."""
    folder = tmp_path_factory.mktemp("hostile") / "outside"
    small_checkpoint(folder, [bf16("secret", 2)])
    for name in (SECRET, "huggingface/trees/x", "download/x", "trees/x", f"{RECORDS}/x.incomplete"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / FILE, folder / name)
    return folder


def test_hostile_names_are_refused_and_lead_nowhere(outside: Path) -> None:
    tried = list(attempts(outside.parent, outside))
    assert len(tried) >= 60
    command = [sys.executable, "-c", RUNNER]
    log = outside.parent / "opened"
    if shutil.which("strace"):
        traced = ["-f", "-q", "-y", "-s", "4096", "-e", "trace=open,openat,openat2"]
        command = ["strace", *traced, "-o", str(log), *command]
    done = subprocess.run(
        command,
        input=json.dumps([(str(a.folder), a.against and str(a.against)) for a in tried]),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    codes = dict(zip((a.name for a in tried), map(int, done.stdout.split()), strict=True))
    assert {name: code for name, code in codes.items() if code not in REFUSED} == {}
    if log.exists():
        opened = log.read_text().splitlines()
        assert sum(FILE in line for line in opened) > len(tried) / 2
        assert [line for line in opened if f"/{outside.name}" in line] == []
