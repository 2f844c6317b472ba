"""Downloads as hubs and git leave them on disk, and what `verify` says of a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lingconv.reference import Tensor, write_safetensors
from lingconv.reference.storage import read_headers
from ordeal import digest
from support import lingconv

COMMIT = "4a0b" * 10
OTHER_COMMIT = "77e1" * 10
REPOSITORY = "org/tiny"
RECORDS = ".cache/huggingface/download"
# Listed by the hub, and not in the folder: what `--include` leaves out of a download.
ABSENT = {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"# tiny\n"}


@dataclass(frozen=True)
class Outcome:
    """How a verification ended."""

    code: int
    report: dict[str, Any]
    stderr: str

    def found(self, *, failures: bool = True) -> set[tuple[str, str, str | None]]:
        """Category, file and tensor of the failures, or of the notes."""
        rows = (row for row in self.report["findings"] if row["failure"] is failures)
        return {(row["category"], row["file"], row["tensor"]) for row in rows}


def verify(folder: Path, *options: str | Path, state: Path | None = None) -> Outcome:
    """What the command says of a folder; it remembers digests in `state`, or beside the folder."""
    home = state or folder.parent / "state"
    done = lingconv("verify", folder, *options, "--json", XDG_STATE_HOME=str(home))
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout) if done.stdout else {"verdict": "refused", "findings": []}
    return Outcome(done.returncode, report, done.stderr)


def small_checkpoint(folder: Path, tensors: Iterable[Tensor]) -> Path:
    """A single file of an architecture that nothing is known of."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Unknown"]}')
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def bf16(name: str, elements: int, first: int = 0x3F80) -> Tensor:
    """A vector of ones in BF16, but for its first element."""
    data = np.full(elements, 0x3F80, dtype="<u2")
    data[0] = first
    return Tensor(name, "BF16", (elements,), data.view(np.uint8))


def rewrite_shard(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Writes a file again after `change` of its tensors."""
    tensors = {
        name: Tensor(name, entry.dtype, entry.shape, np.array(entry.read()))
        for name, entry in read_headers(path).items()
    }
    change(tensors)
    write_safetensors(path, tensors.values())


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Changes the value that a JSON file holds."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2))


def blob_id(data: bytes) -> str:
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def etag(path: Path) -> str:
    """The entity tag of a file on the hub: SHA-256 of LFS files, else the git object."""
    return digest(path) if path.suffix == ".safetensors" else blob_id(path.read_bytes())


def pointer(path: Path) -> str:
    """The git-lfs pointer of a file."""
    return (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{digest(path)}\nsize {path.stat().st_size}\n"
    )


def files_of(folder: Path) -> list[Path]:
    """The files of a download, without what its tool keeps."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def write_tree(folder: Path, file: Path) -> None:
    """The listing of the commit as the hub's client stores it."""
    listed: dict[str, Any] = {
        name: {"size": len(data), "blob_id": blob_id(data)} for name, data in ABSENT.items()
    }
    for path in files_of(folder):
        size = path.stat().st_size
        lfs = {"lfs_sha256": digest(path), "lfs_size": size}
        is_lfs = path.suffix == ".safetensors"
        pointer_id = blob_id(pointer(path).encode()) if is_lfs else etag(path)
        listed[path.name] = {"size": size, "blob_id": pointer_id, **(lfs if is_lfs else {})}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"format_version": 1, "files": listed}))


def record(folder: Path, name: str, commit: str = COMMIT, tag: str | None = None) -> None:
    """What `hf download --local-dir` notes of one file."""
    file = folder / RECORDS / f"{name}.metadata"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{commit}\n{tag or etag(folder / name)}\n1790000000.0\n")


def hub_records(folder: Path) -> Path:
    """The folder as an older client leaves it: a record of each file."""
    for path in files_of(folder):
        record(folder, path.name)
    return folder


def hub_local(folder: Path) -> Path:
    """The folder as `hf download --local-dir` leaves it."""
    write_tree(folder, folder / f".cache/huggingface/trees/{COMMIT}.json")
    return hub_records(folder)


def hub_cache(source: Path, cache: Path) -> Path:
    """The snapshot of a shared Hugging Face cache that holds the files of `source`."""
    repository = cache / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in files_of(source):
        tag = etag(path)
        shutil.copy(path, repository / "blobs" / tag)
        (snapshot / path.name).symlink_to(f"../../blobs/{tag}")
    return snapshot


def modelscope_listing(folder: Path, file: Path) -> Path:
    """The answer of ModelScope's `repo/files`, saved."""
    rows: list[dict[str, Any]] = [
        {
            "Path": path.name,
            "Type": "blob",
            "Size": path.stat().st_size,
            "Sha256": digest(path),
            "Revision": COMMIT,
        }
        for path in files_of(folder)
    ]
    for name, data in ABSENT.items():
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append({"Path": name, "Type": "blob", "Size": len(data), "Sha256": sha256})
    committer = {"Id": COMMIT, "ShortId": COMMIT[:8]}
    listed = {"Files": rows, "LatestCommitter": committer}
    file.write_text(json.dumps({"Code": 200, "Success": True, "Message": "", "Data": listed}))
    return file


def hub_listing(folder: Path, file: Path) -> Path:
    """The answer of the Hugging Face tree API, saved."""
    rows = []
    for path in files_of(folder):
        row: dict[str, Any] = {"type": "file", "path": path.name, "size": path.stat().st_size}
        if path.suffix == ".safetensors":
            row |= {"oid": "0" * 40, "lfs": {"oid": digest(path), "size": path.stat().st_size}}
        else:
            row |= {"oid": etag(path)}
        rows.append(row)
    file.write_text(json.dumps(rows))
    return file


def sums(folder: Path, file: Path | None = None) -> Path:
    """SHA256SUMS of the folder, in it or elsewhere."""
    lines = [f"{digest(path)}  {path.name}\n" for path in files_of(folder)]
    place = file or folder / "SHA256SUMS"
    place.write_text("".join(lines))
    return place
