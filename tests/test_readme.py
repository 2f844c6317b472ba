"""The commands and the code of the README work, in their order, in one folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lingconv.errors import EXIT_CODES
from support import environment, succeed

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user would be: beside a checkpoint called Ling-1T and its recorded loads."""
    folder = tmp_path_factory.mktemp("readme")
    succeed("synth", "tiny", "-o", "Ling-1T", cwd=folder)
    loads = {"logical_count": [[0] * 8, [90, 80, 2, 3, 4, 5, 6, 1], [5] * 8]}
    (folder / "loads.json").write_text(json.dumps(loads))
    return folder


def test_commands_then_code(folder: Path) -> None:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert len(lines) > 10
    for line in lines:
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "lingconv")
        succeed(*arguments, cwd=folder)
    assert (folder / "Ling-1T-fp8-bf16").is_dir()
    assert (folder / "Ling-1T-shared" / "lingconv.manifest.json").exists()
    for code in blocks("python"):
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), check=True)


def test_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), meaning) for code, meaning in EXIT_CODES.items()]


def test_every_make_target_named_exists() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_named_on_the_pages_exist() -> None:
    top = Path(__file__).parents[1]
    pages = [top / "README.md", top / "CONTRIBUTING.md", *(top / "docs").glob("*.md")]
    for page in pages:
        named = re.findall(r"`((?:rust|tests|lingconv|docs)/[\w./-]+)`", page.read_text("utf-8"))
        missing = [n for n in named if "NAME" not in n and not (top / n).exists()]
        assert not missing, page
