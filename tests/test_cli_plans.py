"""Saved plans: reviewed here, run there, by one process or several."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

import pytest

from support import (
    MANIFEST,
    answer,
    contents,
    lingconv,
    overwrite,
    published,
    refuse,
    succeed,
)


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Path:
    """A saved plan to quantize `tiny`."""
    path = tmp_path / "plan.json"
    succeed("quantize", "fp8", tiny, "--dry-run", "--save", path)
    return path


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != MANIFEST}


def test_a_saved_plan_does_what_the_command_does(tiny: Path, plan: Path, tmp_path: Path) -> None:
    succeed("run", plan, "--source", tiny, "-o", tmp_path / "run")
    succeed("quantize", "fp8", tiny, "-o", tmp_path / "direct")
    assert without_manifest(tmp_path / "run") == without_manifest(tmp_path / "direct")


def test_the_hint_after_saving_runs_the_plan(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = succeed("plan", "quantize", "fp8", tiny, "--save", path)
    assert f"`lingconv run {path} --source {tiny} -o {tiny}-fp8`" in done.stderr


def test_a_plan_is_small_and_names_no_folder(tiny: Path, plan: Path) -> None:
    text = plan.read_text()
    assert len(text) < 20_000
    assert str(tiny.parent) not in text


def test_a_plan_runs_on_a_copy_elsewhere(tiny: Path, plan: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny, tmp_path / "elsewhere" / "copy")
    succeed("run", plan, cwd=copy)
    assert published(tmp_path / "elsewhere" / "copy-fp8")


def test_saving_and_running_at_once(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    succeed("quantize", "fp8", tiny, "--save", path)
    again = answer("run", path, "--source", tiny, "-o", f"{tiny}-fp8")
    assert again["outcome"] == "already_complete"


def test_run_prints_its_plan(tiny: Path, plan: Path) -> None:
    saved = json.loads(plan.read_text())
    found = answer("run", plan, "--source", tiny, "--dry-run")
    assert found["digest"] == saved["plan_digest"]
    assert found["output"] == f"{tiny}-fp8"


def test_a_changed_source_is_refused(tiny: Path, plan: Path) -> None:
    config = tiny / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 1}))
    error = refuse(3, "run", plan, "--source", tiny)
    assert "source" in error["message"]
    assert error["path"] == str(tiny)
    assert not Path(f"{tiny}-fp8").exists()


def test_a_changed_plan_is_refused(tiny: Path, plan: Path) -> None:
    saved = json.loads(plan.read_text())
    saved["request"]["experts_only"] = True
    plan.write_text(json.dumps(saved))
    assert "plan" in refuse(3, "run", plan, "--source", tiny)["message"]
    assert not Path(f"{tiny}-fp8").exists()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "lingconv.saved-plan/1"}', "\0"])
def test_what_is_no_plan(tiny: Path, plan: Path, text: str) -> None:
    plan.write_text(text)
    assert refuse(2, "run", plan, "--source", tiny)["kind"] == "usage"


def test_three_workers(tiny: Path, plan: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    run = ["run", plan, "--source", tiny, "-o", out]
    written = 0
    for index in (1, 2, 3):
        found = answer(*run, "--worker", f"{index}/3")
        assert found["outcome"] == ("complete" if index == 3 else "share_complete")
        assert published(out) == (index == 3)
        written += found["written"]
        status = answer(*run, "--status")
        assert status["bytes_done"] == written
        assert status["published"] == (index == 3)
    assert status["done"] == status["tasks"]
    succeed("quantize", "fp8", tiny, "-o", whole)
    assert without_manifest(out) == without_manifest(whole)


def test_status_in_words(tiny: Path, plan: Path, tmp_path: Path) -> None:
    run = ["run", plan, "--source", tiny, "-o", tmp_path / "out"]
    assert "0 of 14 files done" in succeed(*run, "--status").stdout
    succeed(*run, "--worker", "1/2")
    text = succeed(*run, "--status").stdout
    assert " of 14 files done" in text
    assert "0 of 14" not in text
    succeed(*run, "--worker", "2/2")
    assert "published" in succeed(*run, "--status").stdout


def test_finish_refuses_until_all_shares_are_done(tiny: Path, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = ["run", plan, "--source", tiny, "-o", out]
    succeed(*run, "--worker", "2/3")
    error = refuse(2, *run, "--finish")
    assert any(line.endswith(".safetensors") for line in error["details"])
    assert not published(out)
    for index in (1, 3):
        succeed(*run, "--worker", f"{index}/3")
    assert answer(*run, "--finish")["outcome"] == "already_complete"


@pytest.mark.parametrize("way", ["the same worker again", "--finish"])
def test_a_worker_that_died_while_publishing(
    tiny: Path, plan: Path, tmp_path: Path, way: str
) -> None:
    out = tmp_path / "out"
    run = ["run", plan, "--source", tiny, "-o", out]
    succeed(*run, "--worker", "1/2")
    (out / ".lingconv" / "finish").write_text("1/2\n")
    with (out / ".lingconv" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        left = succeed(*run, "--worker", "2/2")
        assert "at work" in refuse(7, *run, "--finish")["message"]
    assert "share 2/2 complete" in left.stdout
    assert "the last one publishes" in left.stderr
    assert not published(out)
    again = ("--finish",) if way == "--finish" else ("--worker", "1/2")
    assert answer(*run, *again)["outcome"] == "complete"
    assert published(out)


@pytest.mark.parametrize("worker", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_workers_that_cannot_be(tiny: Path, plan: Path, worker: str) -> None:
    refuse(2, "run", plan, "--source", tiny, "--worker", worker)


def test_questions_exclude_one_another(tiny: Path, plan: Path) -> None:
    refuse(2, "run", plan, "--source", tiny, "--status", "--finish")
    refuse(2, "run", plan, "--source", tiny, "--status", "--worker", "1/2")


def test_another_plan_in_the_folder(tiny: Path, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeed("run", plan, "--source", tiny, "-o", out, "--worker", "1/2")
    error = refuse(7, "quantize", "fp8", tiny, "-o", out, "--dialect", "ling")
    assert "unfinished run of another plan" in error["message"]
    succeed("quantize", "fp8", tiny, "-o", out, "--dialect", "ling", "--force")
    assert answer("inspect", out)["problems"] == []


def test_no_resume_begins_anew(tiny: Path, plan: Path, tmp_path: Path) -> None:
    run = ["run", plan, "--source", tiny, "-o", tmp_path / "out"]
    first = answer(*run, "--worker", "1/2")
    found = answer(*run, "--no-resume")
    assert first["written"] > 0
    assert found["resumed"] == 0


def test_a_source_file_that_changed_is_done_again(tiny: Path, plan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = ["run", plan, "--source", tiny, "-o", out]
    succeed(*run, "--worker", "1/2")
    done = next(path.name for path in out.glob("*.safetensors"))
    tensor = next(
        t["name"]
        for t in answer("inspect", tiny, "--tensor", "*.weight")["selected"]
        if t["file"] == done
    )
    overwrite(tiny, tensor, b"\x00\x40")
    resumed = lingconv(*run)
    assert resumed.returncode == 0
    assert f"warning: {done}" in resumed.stderr
    succeed("quantize", "fp8", tiny, "-o", tmp_path / "whole")
    assert without_manifest(out) == without_manifest(tmp_path / "whole")
