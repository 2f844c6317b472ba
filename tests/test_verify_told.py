"""What `verify` tells people: a line a finding, and the command that repairs."""

from __future__ import annotations

import shutil
from pathlib import Path

import damage as do
from damage import Copies
from downloads import COMMIT, REPOSITORY, modelscope_listing, record, verify
from support import lingconv

SHARD = "model-00006-of-00014.safetensors"
TOKENIZER = "tokenizer_config.json"
YARN = do.in_config(rope_scaling={"type": "yarn", "factor": 4.0})


def told(folder: Path, *options: str | Path) -> str:
    """The hint at the end of what a failed verification says."""
    done = lingconv("verify", folder, *options, XDG_STATE_HOME=str(folder.parent / "state"))
    assert done.returncode == 3
    return done.stderr.rsplit("hint: ", 1)[1].strip()


def test_the_repairing_command_fits_the_download(
    clean: dict[str, Path], damaged: Copies, tmp_path: Path
) -> None:
    cached = damaged("cache", do.flip(TOKENIZER))
    repository = f"hf download {REPOSITORY} {TOKENIZER} --revision {COMMIT}"
    assert told(cached) == f"repair: `{repository} --cache-dir {tmp_path} --force-download`"
    below = damaged("hub", do.nothing)
    (below / "code").mkdir()
    (below / "code" / "my file.py").write_text("x = 1\n")
    record(below, "code/my file.py", tag="0" * 40)
    shutil.rmtree(below / ".cache/huggingface/trees")
    command = f"hf download ORG/NAME 'code/my file.py' --revision {COMMIT} --local-dir {below}"
    assert told(below) == f"repair: `{command} --force-download`"
    bare = damaged("bare", do.flip(SHARD))
    listing = modelscope_listing(clean["bare"], tmp_path / "listing")
    line = f"modelscope download --model ORG/NAME {SHARD} --revision {COMMIT} --local_dir {bare}"
    assert told(bare, "--against", listing) == f"repair: `{line}`"
    ours = damaged("output", do.flip(SHARD))
    assert told(ours) == "write the folder again: the command that made it, with --force"


def test_the_keys_of_an_edited_config_are_named(damaged: Copies) -> None:
    """A digest does not tell which; what we wrote ourselves we know."""

    def message(folder: str) -> str:
        outcome = verify(damaged(folder, do.both(YARN, do.in_config(eos_token_id=7))))
        assert outcome.found() == {("config-edited", "config.json", None)}
        return str(outcome.report["findings"][0]["message"])

    assert "only its digest is known" in message("hub")
    named = message("output")
    assert named.endswith("; keys that differ: eos_token_id (changed), rope_scaling (added)")


def test_every_finding_is_told_with_the_command_that_repairs(damaged: Copies) -> None:
    folder = damaged("hub", do.both(do.flip(SHARD), do.remove(TOKENIZER)))
    done = lingconv("verify", folder, XDG_STATE_HOME=str(folder.parent / "state"))
    assert done.returncode == 3
    assert f"FAIL  checksum        {SHARD}: SHA-256 is " in done.stdout
    assert f"FAIL  missing         {TOKENIZER}: " in done.stdout
    assert "failures 2: 1 checksum, 1 missing" in done.stdout
    pinned = f"hf download ORG/NAME {SHARD} {TOKENIZER} --revision {COMMIT}"
    command = f"{pinned} --local-dir {folder} --force-download"
    assert f"hint: repair: `{command}`" in done.stderr
