"""Checkpoints that tests share and must not change, and copies that they may."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import damage as do
from downloads import hub_cache, hub_local, hub_records, sums
from injection import INJECTIONS
from requirements import skip_what_is_lacking
from support import succeed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip by name what this machine cannot run."""
    skip_what_is_lacking(items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many system calls were made to fail."""
    passed = terminalreporter.getreports("passed")
    told = [value for done in passed for name, value in done.user_properties if name == INJECTIONS]
    if told:
        terminalreporter.write_line(f"{sum(told)} system calls failed or were the last of a run")


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


@pytest.fixture(scope="session")
def clean(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clean folders by layout."""
    base = tmp_path_factory.mktemp("clean")
    folders = {name: base / name for name in ("bare", "hub", "records", "sums")}
    for folder in folders.values():
        shutil.copytree(shared / "tiny", folder)
    hub_local(folders["hub"])
    hub_records(folders["records"])
    sums(folders["sums"])
    folders["coded"] = shared / "coded"
    folders["cache"] = hub_cache(shared / "tiny", base / "cache")
    folders["output"] = base / "output"
    succeed("quantize", "fp8", shared / "tiny", "-o", folders["output"])
    return folders


@pytest.fixture
def damaged(clean: dict[str, Path], tmp_path: Path) -> do.Copies:
    """Copies of the clean folders, damaged."""

    def make(folder: str, damage: do.Damage) -> Path:
        source = clean[folder]
        if folder == "cache":
            repository = source.parent.parent
            copied = shutil.copytree(repository, tmp_path / repository.name, symlinks=True)
            place = Path(copied) / "snapshots" / source.name
        else:
            place = Path(shutil.copytree(source, tmp_path / folder))
        damage(place)
        return place

    return make
