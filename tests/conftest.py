"""Checkpoints that tests share and must not change, and copies that they may."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support import succeed


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `tiny`, `tiny-mtp` and, in FP8, `coded`."""
    folder = tmp_path_factory.mktemp("shared")
    succeed("synth", "tiny", "-o", folder / "tiny")
    succeed("synth", "tiny", "-o", folder / "tiny-mtp", "--mtp")
    succeed("synth", "tiny", "-o", folder / "coded", "--fp8")
    return folder


@pytest.fixture
def tiny(shared: Path, tmp_path: Path) -> Path:
    """A BF16 checkpoint of 16 files, of one's own."""
    return Path(shutil.copytree(shared / "tiny", tmp_path / "tiny"))


@pytest.fixture
def tiny_mtp(shared: Path, tmp_path: Path) -> Path:
    """The same with a prediction layer."""
    return Path(shutil.copytree(shared / "tiny-mtp", tmp_path / "tiny-mtp"))


@pytest.fixture
def coded(shared: Path, tmp_path: Path) -> Path:
    """An FP8 checkpoint."""
    return Path(shutil.copytree(shared / "coded", tmp_path / "coded"))
