"""Runs the command line as a user does, and makes checkpoints for it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lingconv.reference import Tensor, open_checkpoint, write_safetensors
from lingconv.reference.storage import INDEX, read_headers

COMMAND = (sys.executable, "-m", "lingconv")
MANIFEST = "lingconv.manifest.json"
TIMEOUT = 120
LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "RANK", "WORLD_SIZE", "JOB_COMPLETION_INDEX")
OWN_VARIABLES = ("LINGCONV_", "NO_COLOR", *LAUNCHERS)
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


def environment(**variables: str) -> dict[str, str]:
    """The environment without what changes how lingconv behaves, and with `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(OWN_VARIABLES)}
    return kept | variables


def lingconv(
    *arguments: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A finished command, whatever its exit code."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def on_a_terminal(*arguments: str | Path, stream: str = "stderr", **variables: str) -> str:
    """What a terminal of 30 lines shows of one stream of a command."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: side}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=environment(TERM="xterm", **variables), **streams
    )
    os.close(side)
    shown = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        shown += data
    os.close(main)
    process.wait()
    return shown.decode()


def succeed(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command that ends with 0."""
    done = lingconv(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done


def answer(*arguments: str | Path, **options: Any) -> Any:
    """The `--json` answer of a command that ends with 0."""
    return json.loads(succeed(*arguments, "--json", **options).stdout)


def refuse(code: int, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    """The error that a command ends with; the same for people and for machines."""
    plain = lingconv(*arguments, **options)
    done = lingconv(*arguments, "--json", **options)
    assert (plain.returncode, done.returncode) == (code, code), plain.stderr + done.stderr
    error: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])["error"]
    assert error["code"] == code
    assert f"error: {error['message']}" in plain.stderr
    assert "Traceback" not in plain.stderr + done.stderr
    assert done.stdout == ""
    assert not error["message"].endswith(".")
    if error["hint"]:
        assert plain.stderr.endswith(f"\n\nhint: {error['hint']}\n")
    return error


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def made_of_any(folder: Path) -> dict[str, Any]:
    """The same of a finished output, whichever files its source lay in."""
    files: dict[str, Any] = dict(contents(folder))
    manifest = json.loads(files[MANIFEST])
    assert manifest["source"].pop("files")
    return files | {MANIFEST: manifest}


def published(folder: Path) -> bool:
    """Whether a folder is a finished output."""
    return (folder / MANIFEST).exists()


def shard_of(folder: Path, tensor: str) -> Path:
    """The file that holds a tensor."""
    return open_checkpoint(folder)[tensor].path


def overwrite(folder: Path, tensor: str, data: bytes, at: int = 0) -> Path:
    """Change bytes of a tensor in place; the file that holds it."""
    entry = open_checkpoint(folder)[tensor]
    with entry.path.open("r+b") as file:
        file.seek(entry.start + at)
        file.write(data)
    return entry.path


def damage_copy(folder: Path, files: str, tensor: str) -> None:
    """Set the last byte of a tensor to 1 in those of the files that hold it."""
    for path in folder.glob(files):
        if entry := read_headers(path).get(tensor):
            with path.open("r+b") as file:
                file.seek(entry.start + entry.size - 1)
                file.write(b"\x01")


def rewrite_header(path: Path, change: Callable[[str], str]) -> None:
    """Change the JSON text of a file's header; the data stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    text = change(raw[8 : 8 + length].decode()).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def rebuilt(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a checkpoint in a single file, after `change` of its tensors."""
    tensors = {
        name: Tensor(name, entry.dtype, entry.shape, entry.read())
        for name, entry in open_checkpoint(source).items()
    }
    change(tensors)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    write_safetensors(folder / "model.safetensors", tensors.values())
    return folder
