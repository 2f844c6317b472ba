"""`verify` of sound folders: no false alarm, and nothing is called sound without a digest."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

import damage as do
from downloads import (
    COMMIT,
    OTHER_COMMIT,
    REPOSITORY,
    Outcome,
    files_of,
    hub_cache,
    hub_listing,
    hub_local,
    hub_records,
    modelscope_listing,
    record,
    small_checkpoint,
    sums,
    verify,
)
from lingconv.reference.storage import INDEX
from requirements import needs
from support import COMMAND, TIMEOUT, environment, lingconv, succeed

SHARD = "model-00006-of-00014.safetensors"
CONTENT = ("--level", "content")
FILES = 19
LISTED = {("missing", "README.md", None)}


def assert_clean(outcome: Outcome, truth: str, verified: int = FILES) -> None:
    assert (outcome.code, outcome.report["verdict"]) == (0, "ok"), outcome.report["findings"]
    assert outcome.found() == set()
    assert outcome.found(failures=False) <= LISTED
    assert truth in [used["kind"] for used in outcome.report["truths"]]
    assert outcome.report["verified"] == verified


@pytest.mark.parametrize("options", [(), CONTENT])
def test_a_local_download(tiny: Path, options: tuple[str, ...]) -> None:
    outcome = verify(hub_local(tiny), *options)
    assert_clean(outcome, "Hugging Face download records")
    assert outcome.found(failures=False) == LISTED
    truth = outcome.report["truths"][0]
    assert (truth["commit"], truth["covers"]) == (COMMIT, FILES)
    assert outcome.report["uncovered"] == []


def test_a_local_download_of_an_older_client(tiny: Path) -> None:
    outcome = verify(hub_records(tiny))
    assert_clean(outcome, "Hugging Face download records")
    assert "no stored listing of the commit" in outcome.report["truths"][0]["notes"][0]


def test_a_file_of_another_commit_that_did_not_change(tiny: Path) -> None:
    record(hub_local(tiny), SHARD, OTHER_COMMIT)
    assert_clean(verify(tiny), "Hugging Face download records")


def test_a_snapshot_of_the_cache(shared: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(shared / "tiny", tmp_path / "cache")
    outcome = verify(snapshot, state=tmp_path / "state")
    assert_clean(outcome, "Hugging Face cache")
    truth = outcome.report["truths"][0]
    assert (truth["commit"], truth["repository"]) == (COMMIT, REPOSITORY)


@pytest.mark.parametrize("listing", [modelscope_listing, hub_listing, sums])
def test_a_saved_listing(
    shared: Path, tmp_path: Path, listing: Callable[[Path, Path], Path]
) -> None:
    kinds = {"modelscope_listing": "ModelScope listing", "hub_listing": "Hugging Face listing"}
    truth = listing(shared / "tiny", tmp_path / "listing")
    outcome = verify(shared / "tiny", "--against", truth, state=tmp_path / "state")
    assert_clean(outcome, kinds.get(listing.__name__, "checksum file"))


def test_blake3_sums(tiny: Path) -> None:
    """Digests of the library that b3sum is made of, in the two forms that it writes."""
    held = {path.name: blake3(path.read_bytes()).hexdigest() for path in files_of(tiny)}
    for form in ("{digest}  {name}", "BLAKE3 ({name}) = {digest}"):
        lines = [form.format(name=name, digest=digest) for name, digest in held.items()]
        (tiny / "B3SUMS").write_text("\n".join(lines) + "\n")
        assert_clean(verify(tiny, "--fresh"), "checksum file")
    sums(tiny)
    assert_clean(verify(tiny, "--fresh"), "checksum file", verified=FILES + 1)
    do.flip(SHARD)(tiny)
    outcome = verify(tiny)
    assert (outcome.code, outcome.found()) == (3, {("checksum", SHARD, None)})
    messages = {row["message"].split(" is ")[0] for row in outcome.report["findings"]}
    assert messages <= {"BLAKE3", "SHA-256"}


def test_a_modelscope_folder(tiny: Path, tmp_path: Path) -> None:
    truth = modelscope_listing(tiny, tmp_path / "listing")
    for name in (".msc", ".mv", ".lock"):
        (tiny / name).write_bytes(b"\x80\x04x")
    assert_clean(verify(tiny, "--against", truth), "ModelScope listing")


def test_a_git_clone_with_its_data(tiny: Path) -> None:
    truth = sums(tiny)
    (tiny / ".git").mkdir()
    (tiny / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (tiny / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    assert_clean(verify(tiny), "checksum file")
    assert_clean(verify(tiny, "--against", truth), "checksum file")


@pytest.fixture(scope="module")
def outputs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("outputs")
    succeed("quantize", "fp8", shared / "tiny", "-o", base / "fp8")
    succeed("dequantize", base / "fp8", "-o", base / "bf16")
    return {"fp8": base / "fp8", "bf16": base / "bf16"}


@pytest.mark.parametrize("name", ["fp8", "bf16"])
@pytest.mark.parametrize("options", [(), CONTENT, ("--strict",)])
def test_our_own_outputs(
    outputs: dict[str, Path], tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    outcome = verify(outputs[name], *options, state=tmp_path)
    assert_clean(outcome, "lingconv manifest")
    assert_clean(outcome, "checksum file")
    assert all(truth["self_attested"] for truth in outcome.report["truths"])


def test_sha256sum_agrees(outputs: dict[str, Path]) -> None:
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"],
        cwd=outputs["fp8"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), CONTENT])
def test_a_node_that_holds_one_stage(tiny: Path, options: tuple[str, ...]) -> None:
    hub_local(tiny)
    held = {f"model-{number:05}-of-00014.safetensors" for number in (4, 5, 6)}
    for path in files_of(tiny):
        if path.name not in held:
            path.unlink()
    assert verify(tiny, *options).code == 3
    outcome = verify(tiny, "--files", "model-0000[456]-*", *options)
    assert_clean(outcome, "Hugging Face download records", verified=3)
    assert outcome.report["findings"] == []


def test_scales_may_lie_in_another_shard(shared: Path, tmp_path: Path) -> None:
    index = (shared / "coded" / INDEX).read_text()
    assert "attention.dense.weight_scale_inv" in index
    truth = sums(shared / "coded", tmp_path / "sums")
    outcome = verify(shared / "coded", "--against", truth, *CONTENT, state=tmp_path / "state")
    assert (outcome.code, outcome.report["findings"]) == (0, [])


def test_an_unknown_architecture_is_not_judged(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "model", [])
    sums(folder)
    assert_clean(verify(folder, *CONTENT), "checksum file", verified=2)


@pytest.mark.parametrize("options", [(), CONTENT, ("--strict",)])
def test_nothing_to_compare_with_is_never_ok(
    shared: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    outcome = verify(shared / "tiny", *options, state=tmp_path)
    assert (outcome.code, outcome.report["verdict"]) == (9, "unverifiable")
    assert outcome.report["verified"] == 0
    read = outcome.report["bytes"] > 0
    assert read == (options == CONTENT)
    done = lingconv("verify", shared / "tiny", XDG_STATE_HOME=str(tmp_path))
    assert done.returncode == 9
    assert "there is no digest to compare with" in done.stderr
    assert done.stdout.startswith("unverifiable · level checksums · ")


def test_headers_and_sizes_need_no_digest(shared: Path, tmp_path: Path) -> None:
    for level in ("headers", "sizes"):
        assert verify(shared / "tiny", "--level", level, state=tmp_path).code == 0


def test_a_second_run_takes_over_what_was_read(tiny: Path) -> None:
    hub_local(tiny)
    whole = sum(path.stat().st_size for path in files_of(tiny))
    first, second = verify(tiny).report, verify(tiny).report
    assert (first["resumed"], first["bytes"]) == (0, whole)
    assert (second["verified"], second["resumed"], second["bytes"]) == (FILES, FILES, 0)
    fresh = verify(tiny, "--fresh").report
    assert (fresh["resumed"], fresh["bytes"]) == (0, whole)
    deeper = verify(tiny, *CONTENT).report
    assert deeper["bytes"] >= sum(path.stat().st_size for path in tiny.glob("*.safetensors"))
    text = succeed("verify", tiny, XDG_STATE_HOME=str(tiny.parent / "state")).stdout
    assert f"{FILES} digests agree · {FILES} of them from an earlier run · 0 B read" in text


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_changed_byte_is_seen_though_times_are_restored(tiny: Path, at: float) -> None:
    hub_local(tiny)
    assert verify(tiny).code == 0
    path = tiny / SHARD
    before = path.stat()
    do.flip(SHARD, int(at * (before.st_size - 1)))(tiny)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    outcome = verify(tiny)
    assert outcome.code == 3
    assert {file for _, file, _ in outcome.found()} == {SHARD}
    assert outcome.report["resumed"] == FILES - 1


def test_what_failed_is_not_believed_from_memory(tiny: Path) -> None:
    do.flip(SHARD)(hub_local(tiny))
    for _ in range(2):
        outcome = verify(tiny)
        assert (outcome.code, outcome.found()) == (3, {("checksum", SHARD, None)})


def test_a_subset_is_the_same_every_time(tiny: Path) -> None:
    hub_local(tiny)
    first = verify(tiny, "--subset", "50%", "--fresh").report
    assert 0 < first["verified"] < FILES
    again = verify(tiny, "--subset", "50%", "--fresh").report
    assert (again["verified"], again["bytes"]) == (first["verified"], first["bytes"])


def test_ten_parts_are_the_whole(tiny: Path) -> None:
    hub_local(tiny)
    parts = [verify(tiny, "--subset", f"{part}/10", "--fresh").report for part in range(1, 11)]
    assert sum(part["verified"] for part in parts) == FILES
    whole = sum(path.stat().st_size for path in files_of(tiny))
    assert sum(part["bytes"] for part in parts) == whole
    do.flip(SHARD)(tiny)
    caught = [verify(tiny, "--subset", f"{part}/10", "--fresh").code for part in range(1, 11)]
    assert sorted(caught) == [0] * 9 + [3]


@pytest.mark.parametrize("subset", ["10%", "3/10"])
def test_a_part_reads_less(tiny: Path, subset: str) -> None:
    hub_local(tiny)
    outcome = verify(tiny, "--subset", subset)
    assert outcome.code in (0, 9)
    assert outcome.report["verified"] < FILES / 2


@pytest.mark.parametrize("subset", ["0%", "101%", "0/3", "4/3", "half", "1/x"])
def test_a_subset_that_is_none(shared: Path, tmp_path: Path, subset: str) -> None:
    assert verify(shared / "tiny", "--subset", subset, state=tmp_path).code == 2


def test_no_folder_and_no_checkpoint(tmp_path: Path) -> None:
    assert verify(tmp_path / "none").code == 4
    (tmp_path / "empty").mkdir()
    assert verify(tmp_path / "empty").code == 4


@needs("no-network")
def test_no_network_is_needed(tiny: Path) -> None:
    hub_local(tiny)
    done = subprocess.run(
        ["unshare", "-rn", *COMMAND, "verify", str(tiny)],
        env=environment(XDG_STATE_HOME=str(tiny.parent / "state")),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{FILES} digests agree" in done.stdout
