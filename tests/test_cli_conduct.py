"""What holds for every command: help, streams, exit codes, errors, logs."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from pathlib import Path

import pytest

from lingconv.cli.contents import COMMANDS
from lingconv.errors import EXIT_CODES
from ordeal import FULL, Words
from support import COMMAND, answer, environment, lingconv, on_a_terminal, refuse, succeed


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["plan", "dequantize"]])
def test_every_help_page_ends_with_the_exit_codes(command: list[str]) -> None:
    done = succeed(*command, "--help")
    assert done.stderr == ""
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^ +{code}  {re.escape(meaning)}$", done.stdout, re.MULTILINE)


def test_the_group_lists_every_command() -> None:
    text = succeed("-h").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)


def test_without_arguments_help_goes_to_stderr() -> None:
    for command in ([], ["plan"]):
        done = lingconv(*command)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("Usage: lingconv")


def test_version() -> None:
    assert re.fullmatch(r"lingconv \d+\.\d+\.\d+\n", succeed("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["paint"], "No such command 'paint'"),
        (["inspect", "--loud"], "No such option '--loud'"),
        (["quantize", "int4", "x"], "'int4'"),
        (["quantize", "fp8", "x", "--memory", "lots"], "'lots' is no size"),
        (["quantize", "fp8", "x", "-j", "0"], "'0' is no number of jobs"),
        (["run", "no-such-plan.json"], "no-such-plan.json"),
        (["reshard", "x", "--experts", "no-such-map.json"], "no-such-map.json"),
        (["completion", "tcsh"], "'tcsh'"),
        (["synth", "tiny"], "'--output'"),
        (["quantize", "fp8", "hf://inclusionAI/Ling-1T"], "hub"),
    ],
)
def test_usage_errors_end_with_2_and_a_hint(arguments: list[str], said: str) -> None:
    error = refuse(2, *arguments)
    assert error["kind"] == "usage"
    assert said in f"{error['message']} ({error['path']})"
    assert error["hint"]


def test_the_hint_for_a_hub_source_downloads_it() -> None:
    error = refuse(2, "inspect", "hf://inclusionAI/Ling-1T")
    assert "hf download inclusionAI/Ling-1T --local-dir Ling-1T" in error["hint"]


def test_answer_on_stdout_and_the_rest_on_stderr(tiny: Path) -> None:
    done = succeed("quantize", "fp8", tiny)
    assert done.stdout.startswith(f"{tiny}-fp8: complete")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("Plan ")
    assert done.stderr.endswith(f"hint: see what it holds: `lingconv inspect {tiny}-fp8`\n")


def test_quiet_leaves_the_answer(tiny: Path) -> None:
    done = succeed("quantize", "fp8", tiny, "-q")
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tiny}-fp8: complete")


def test_quiet_leaves_warnings(tiny_mtp: Path) -> None:
    done = succeed("quantize", "fp8", tiny_mtp, "-q")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["warning"]


def test_every_json_answer_names_its_schema(tiny: Path) -> None:
    plan = tiny.parent / "plan.json"
    out = tiny.parent / "out"
    conversion = ["quantize", "fp8", tiny, "-o", out]
    commands = {
        "synth": ["synth", "tiny", "-o", tiny.parent / "other"],
        "inspect": ["inspect", tiny],
        "plan": [*conversion, "--dry-run", "--save", plan],
        "explain": [*conversion, "--explain", "lm_head.weight"],
        "run": conversion,
        "status": ["run", plan, "--source", tiny, "-o", out, "--status"],
        "finish": ["run", plan, "--source", tiny, "-o", out, "--finish"],
        "env": ["env"],
        "completion": ["completion", "bash"],
    }
    for name, arguments in commands.items():
        assert answer(*arguments)["schema"] == f"lingconv.{name}/1"


def test_a_reader_that_leaves_is_no_error(tiny: Path) -> None:
    for arguments in (["inspect", tiny, "--tree"], ["inspect", tiny, "--json"], ["--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
        os.close(write)
        assert done.returncode == 0
        assert "error" not in done.stderr
        assert "Exception" not in done.stderr


def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, "env", "--json"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False
        )
    assert done.returncode == 8
    assert done.stderr.startswith("error: ")
    assert "Exception" not in done.stderr


def test_closed_streams_do_not_swallow_files(tiny: Path) -> None:
    out = f"{tiny}-fp8"
    script = f"{' '.join(COMMAND)} quantize fp8 {tiny} >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], env=environment(), check=False).returncode == 0
    assert answer("inspect", out)["problems"] == []


def test_a_log_holds_what_was_said_with_times(tiny: Path) -> None:
    log = tiny.parent / "log"
    succeed("quantize", "fp8", tiny, "-q", "--log", log)
    refuse(2, "quantize", "fp8", tiny, "-o", tiny, "--log", log)
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines[1:2])
    text = log.read_text()
    assert f"lingconv quantize fp8 {tiny} -q --log {log}" in text
    assert "Plan " in text
    assert "error 2: " in text


def test_a_log_that_cannot_be_written(tiny: Path) -> None:
    error = refuse(2, "inspect", tiny, "--log", tiny / "no" / "log")
    assert error["path"] == str(tiny / "no" / "log")


def test_tracebacks_are_for_debugging_only(tiny: Path) -> None:
    missing = tiny / "missing"
    assert "Traceback" not in lingconv("inspect", missing).stderr
    done = lingconv("inspect", missing, LINGCONV_DEBUG="1")
    assert done.returncode == 4
    assert "Traceback" in done.stderr


def test_a_terminal_gets_a_bar_and_colours(tiny: Path) -> None:
    shown = on_a_terminal("quantize", "fp8", tiny)
    assert "100%|" in shown
    assert "\x1b[36mhint:" in shown


def test_no_bar_with_verbose(tiny: Path) -> None:
    shown = on_a_terminal("quantize", "fp8", tiny, "-v")
    assert "%|" not in shown
    assert "kernel" in shown


def test_no_color(tiny: Path) -> None:
    assert "\x1b[" not in on_a_terminal("inspect", tiny, NO_COLOR="1")
    assert "\x1b[36m" in on_a_terminal("inspect", tiny)


def test_progress_none_and_json(tiny: Path) -> None:
    out = tiny.parent / "out"
    done = succeed("quantize", "fp8", tiny, "-o", out, LINGCONV_PROGRESS="json")
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {line["schema"] for line in lines} == {"lingconv.progress/1"}
    assert lines[-1]["written"] == lines[-1]["total"] > 0
    done = succeed("quantize", "fp8", tiny, "-o", f"{out}2", "--progress", "none")
    assert "{" not in done.stderr.splitlines()[-2]


def test_env_says_where_settings_come_from() -> None:
    found = answer("env", LINGCONV_JOBS="2", LINGCONV_MEMORY="256M")
    assert found["settings"]["jobs"] == {"value": 2, "origin": "environment LINGCONV_JOBS"}
    assert found["settings"]["memory"]["value"] == 256 << 20
    assert found["settings"]["kernel"]["origin"] == "default"
    assert found["kernels"]["detected"] in found["kernels"]["available"]
    text = succeed("env", LINGCONV_JOBS="2").stdout
    assert "environment LINGCONV_JOBS" in text
    assert "deepseek" in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    assert "_LINGCONV_COMPLETE" in succeed("completion", shell).stdout


def test_completion_knows_commands_and_dialects() -> None:
    def completed(words: str, count: int) -> str:
        instruction = {"_LINGCONV_COMPLETE": "bash_complete", "COMP_CWORD": str(count)}
        return succeed(**instruction, COMP_WORDS=words).stdout

    assert "plain,quantize" in completed("lingconv q", 1)
    assert "plain,ling" in completed("lingconv quantize fp8 --dialect l", 4)
    assert "plain,tiny" in completed("lingconv synth t", 2)


def test_synth_tells_how_far_it_is(tmp_path: Path) -> None:
    done = succeed("synth", "tiny", "-o", tmp_path / "made", "--progress", "json")
    samples = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert samples[-1]["total"] == samples[-1]["written"] > 0


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["inspect"], "--tensor"),
        (["quantize", "fp8"], "--explain"),
        (["quantize", "fp8"], "--dialect"),
        (["reshard"], "--target"),
        (["verify"], "--files"),
    ],
)
def test_a_word_that_is_no_text_is_refused(tiny: Path, command: list[str], option: str) -> None:
    error = refuse(2, *command, tiny, option, os.fsdecode(b"name-\xff"))
    assert "name-\\udcff" in error["message"]


def test_a_dialect_is_no_part_of_a_path(tiny: Path) -> None:
    assert "/dev/full" in refuse(2, "quantize", "fp8", tiny, "--dialect", "/dev/full")["message"]


def test_a_log_that_ends_early_is_said(tiny: Path) -> None:
    done = succeed("inspect", tiny, "--log", "/dev/full")
    assert done.stderr.startswith("warning: the log ends here: No space left on device\n")


COMPLETING = {"_LINGCONV_COMPLETE": "bash_complete", "COMP_WORDS": "lingconv q", "COMP_CWORD": "1"}
# What a shell may do to the streams, and the codes of commands that have something to answer.
STREAMS = {
    "2>&-": {0},
    "0<&-": {0},
    ">&-": {0},
    "<&- >&- 2>&-": {0},
    ">/dev/full": {6, 8},
    "2>/dev/full": {0},
    ">/dev/full 2>/dev/full": {6, 8},
    "1</dev/null 2</dev/null": {8},
}
ENCODINGS: list[dict[str, str]] = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1:strict"},
    {"PYTHONUNBUFFERED": "1"},
]


def answering(tiny: Path) -> list[tuple[Words, dict[str, str]]]:
    """Commands of all kinds, with the variables that they need."""
    words: list[Words] = [
        ("--help",),
        ("--version",),
        ("experts", "place", "--help"),
        ("inspect", tiny),
        ("inspect", tiny, "--json"),
        ("quantize", "fp8", tiny, "--dry-run"),
        ("completion", "bash"),
    ]
    return [*((each, {}) for each in words), ((), COMPLETING)]


def check_said(done: subprocess.CompletedProcess[str], what: object) -> None:
    for word in ("Traceback", "Exception ignored", "error: internal"):
        assert word not in done.stdout + done.stderr, (what, done)


@pytest.mark.parametrize("redirection", STREAMS)
def test_streams_that_are_full_or_closed(tiny: Path, redirection: str) -> None:
    chance = random.Random(redirection)
    for words, variables in answering(tiny) if FULL else chance.sample(answering(tiny), 3):
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *map(str, words)],
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in STREAMS[redirection], (words, done)
        check_said(done, words)


@pytest.mark.parametrize("variables", ENCODINGS)
def test_streams_of_any_encoding(tiny: Path, variables: dict[str, str]) -> None:
    for words, own in answering(tiny) if FULL else answering(tiny)[2::2]:
        done = subprocess.run(
            [*COMMAND, *map(str, words)],
            env=environment(**variables, **own),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, (words, done)
        assert done.stdout
        check_said(done, words)


@pytest.mark.parametrize(
    "variables",
    [
        {"_LINGCONV_COMPLETE": "bash_complete"},
        {**COMPLETING, "COMP_CWORD": "one"},
        {"_LINGCONV_COMPLETE": "tcsh_source"},
        {"_LINGCONV_COMPLETE": "1"},
    ],
)
def test_a_completion_that_makes_no_sense(variables: dict[str, str]) -> None:
    done = lingconv(**variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: _LINGCONV_COMPLETE=")
    check_said(done, variables)
