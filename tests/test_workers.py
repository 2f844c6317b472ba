"""Which share of a plan a process takes by the variables of whatever started it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lingconv.errors import Error
from lingconv.workers import Share, parse_share
from support import answer, lingconv, published, refuse, succeed

Variables = dict[str, str]


def array(number: int, least: int, most: int, step: int, count: int) -> Variables:
    values = {"ID": number, "MIN": least, "MAX": most, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def without(variables: Variables, *names: str) -> Variables:
    left_out = {f"SLURM_ARRAY_TASK_{name}" for name in names}
    return {name: value for name, value in variables.items() if name not in left_out}


def tasks(own: int, count: int) -> Variables:
    return {"SLURM_PROCID": str(own), "SLURM_NTASKS": str(count)}


# A batch script's own task, as every element of an array has it.
ALONE = tasks(0, 1)
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4"}


def share(text: str, variables: Variables) -> str:
    return str(parse_share(text, variables))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (array(0, 0, 7, 1, 8) | ALONE, "1/8"),
        (array(2, 0, 7, 1, 8) | ALONE, "3/8"),
        (array(8, 1, 8, 1, 8) | ALONE, "8/8"),
        (array(10, 4, 10, 3, 3) | ALONE, "3/3"),
        (array(5, 5, 5, 1, 1) | ALONE, "1/1"),
        (array(2, 0, 7, 1, 8), "3/8"),
        (array(2, 0, 7, 1, 8) | {"SLURM_PROCID": "0"}, "3/8"),
        (without(array(3, 1, 8, 1, 8), "STEP", "COUNT"), "3/8"),
        (without(array(5, 1, 7, 2, 4), "COUNT"), "3/4"),
        (without(array(5, 1, 7, 2, 4), "STEP"), "3/4"),
        (without(array(5, 1, 7, 2, 4), "MAX"), "3/4"),
        (array(2, 0, 7, 1, 8) | tasks(3, 4), "12/32"),
        (array(0, 0, 1, 1, 2) | tasks(0, 4), "1/8"),
        (array(2, 0, 7, 1, 8) | tasks(3, 4) | {"PMI_RANK": "3", "PMI_SIZE": "4"}, "12/32"),
        (array(1, 0, 1, 1, 2) | ALONE | TORCHRUN, "7/8"),
        (tasks(3, 8), "4/8"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "2/2"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "1/2"),
        (TORCHRUN, "3/4"),
        (ALONE | TORCHRUN, "3/4"),
        (tasks(2, 4) | TORCHRUN, "3/4"),
        (tasks(2, 4) | {"RANK": "0", "WORLD_SIZE": "1"}, "3/4"),
        ({"SLURM_NTASKS": "4"} | TORCHRUN, "3/4"),
        (ALONE, "1/1"),
    ],
)
def test_what_launchers_say(variables: Variables, expected: str) -> None:
    assert share("auto", variables) == expected
    assert share(f"auto/{expected.partition('/')[2]}", variables) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"JOB_COMPLETION_INDEX": "0"}, "1/8"),
        ({"JOB_COMPLETION_INDEX": "7"}, "8/8"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "4/8"),
        ({"SLURM_PROCID": "5"}, "6/8"),
        ({"PMI_RANK": "5"}, "6/8"),
    ],
)
def test_a_number_alone(variables: Variables, expected: str) -> None:
    assert share("auto/8", variables) == expected
    with pytest.raises(Error) as refused:
        parse_share("auto", variables)
    (name, value), *_ = variables.items()
    assert refused.value.exit_code == 2
    assert f"{name}={value}" in str(refused.value)
    assert "auto/" in str(refused.value.hint)


REFUSED: dict[str, tuple[str, Variables]] = {
    "nothing": ("auto", {}),
    "nothing, of eight": ("auto/8", {}),
    "a list": ("auto", array(3, 0, 7, 1, 3)),
    "a list, first": ("auto", array(0, 0, 7, 1, 3)),
    "a list, of eight": ("auto/8", array(3, 0, 7, 1, 3)),
    "a list without a step": ("auto", without(array(0, 0, 7, 1, 3), "STEP")),
    "a list with a step": ("auto", array(0, 0, 7, 3, 3)),
    "between steps": ("auto", array(1, 0, 6, 2, 4)),
    "below the array": ("auto", array(1, 2, 9, 1, 8)),
    "above the array": ("auto", array(10, 2, 9, 1, 8)),
    "no step": ("auto", array(0, 0, 7, 0, 8)),
    "no elements": ("auto", array(0, 0, 7, 1, 0)),
    "upside down": ("auto", array(3, 7, 0, 1, 8)),
    "upside down, uncounted": ("auto", without(array(7, 7, 0, 1, 8), "COUNT")),
    "no least": ("auto", without(array(0, 0, 7, 1, 8), "MIN")),
    "no least, of eight": ("auto/8", without(array(0, 0, 7, 1, 8), "MIN")),
    "no end": ("auto", without(array(0, 0, 7, 1, 8), "MAX", "COUNT")),
    "another number of elements": ("auto/4", array(0, 0, 7, 1, 8)),
    "an element's tasks": ("auto", array(0, 0, 7, 1, 8) | {"SLURM_NTASKS": "4"}),
    "an element's task": ("auto", array(0, 0, 7, 1, 8) | {"SLURM_PROCID": "4"}),
    "beyond the element": ("auto", array(0, 0, 7, 1, 8) | tasks(4, 4)),
    "beyond the job": ("auto", tasks(8, 8)),
    "no tasks": ("auto", tasks(0, 0)),
    "half a launcher": ("auto", {"RANK": "0"}),
    "the other half": ("auto", {"WORLD_SIZE": "4"}),
    "two launchers": ("auto", tasks(0, 4) | TORCHRUN),
    "two sizes": ("auto", tasks(2, 8) | TORCHRUN),
    "two launchers in an element": ("auto", array(0, 0, 7, 1, 8) | tasks(0, 4) | TORCHRUN),
    "two numbers": ("auto/8", {"JOB_COMPLETION_INDEX": "1", "RANK": "2"}),
    "beyond the count": ("auto/8", {"JOB_COMPLETION_INDEX": "8"}),
    "another count": ("auto/8", TORCHRUN),
}
MISWRITTEN = ["", " 1", "1 ", "1\n", "-1", "+1", "1.0", "0x1", "one", "1_0", "²", "٣", "9" * 10]


@pytest.mark.parametrize("name", REFUSED)
def test_what_leaves_a_choice_is_refused(name: str) -> None:
    text, variables = REFUSED[name]
    with pytest.raises(Error) as refused:
        parse_share(text, variables)
    assert refused.value.exit_code == 2
    assert refused.value.hint
    # Launchers that say nothing are not named.
    named = [f"{name}={value}" in str(refused.value) for name, value in variables.items()]
    assert any(named) or name in ("nothing", "nothing, of eight", "the other half")


@pytest.mark.parametrize("value", MISWRITTEN)
@pytest.mark.parametrize(
    "name", ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_STEP", "SLURM_NTASKS", "PMI_RANK", "RANK"]
)
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    variables = array(2, 0, 7, 1, 8) | tasks(0, 1) if name.startswith("SLURM") else {}
    others = {"PMI_SIZE": "8"} if name == "PMI_RANK" else {"WORLD_SIZE": "8"}
    with pytest.raises(Error) as refused:
        parse_share("auto", variables | others | {name: value})
    assert refused.value.exit_code == 2
    assert f"{name}={value!r} is no number" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "1", "1/", "/2", "auto/", "auto/x", "auto/-1", "1/2/3", "²/3"]
)
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="none of I/N, auto and auto/N"):
        parse_share(text, {})


def test_every_element_and_task_has_its_own_share() -> None:
    shares = [
        parse_share("auto", array(number, 3, 15, 4, 4) | tasks(own, 3))
        for number in (3, 7, 11, 15)
        for own in range(3)
    ]
    assert [(found.index, found.count) for found in shares] == [(i, 12) for i in range(1, 13)]


def test_what_was_taken_is_kept() -> None:
    found = parse_share("auto", array(2, 0, 7, 1, 8) | ALONE)
    assert found.origin.startswith("SLURM_ARRAY_TASK_ID=2, SLURM_ARRAY_TASK_MIN=0, ")
    assert "SLURM_PROCID" not in found.origin
    assert parse_share("3/8", array(0, 0, 7, 1, 8)) == Share(3, 8)


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> list[str | Path]:
    """A saved plan, about to be run into `tmp_path / out`."""
    plan, tiny = tmp_path / "plan.json", shared / "tiny"
    succeed("plan", "quantize", "fp8", tiny, "--save", plan)
    return ["run", plan, "--source", tiny, "-o", tmp_path / "out"]


def test_an_array_writes_the_whole(run: list[str | Path], tmp_path: Path) -> None:
    for number in (1, 3, 5):
        element = array(number, 1, 5, 2, 3) | ALONE
        assert not published(tmp_path / "out")
        done = lingconv(*run, "--worker", "auto", "--json", **element)
        found, place = json.loads(done.stdout), (number + 1) // 2
        assert f"worker {place}/3 by SLURM_ARRAY_TASK_ID={number}, " in done.stderr
        by = {name: int(value) for name, value in array(number, 1, 5, 2, 3).items()}
        assert found["worker"] == {"index": place, "count": 3, "by": by}
    assert found["outcome"] == "complete"
    assert published(tmp_path / "out")


def test_an_indexed_job_writes_the_whole(run: list[str | Path]) -> None:
    assert "auto/" in refuse(2, *run, "--worker", "auto", JOB_COMPLETION_INDEX="0")["hint"]
    left = succeed(*run, "--worker", "auto/2", JOB_COMPLETION_INDEX="0")
    assert "share 1/2" in left.stdout
    found = answer(*run, "--worker", "auto/2", JOB_COMPLETION_INDEX="1")
    assert found["outcome"] == "complete"
    assert found["worker"] == {"index": 2, "count": 2, "by": {"JOB_COMPLETION_INDEX": 1}}


def test_nothing_is_written_where_the_share_is_not_known(
    run: list[str | Path], tmp_path: Path
) -> None:
    error = refuse(2, *run, "--worker", "auto", **array(3, 0, 7, 1, 3))
    assert "SLURM_ARRAY_TASK_ID=3, SLURM_ARRAY_TASK_MIN=0" in error["message"]
    assert "--worker 1/4" in error["hint"]
    assert not (tmp_path / "out").exists()


def test_a_share_named_by_hand_asks_no_variable(run: list[str | Path]) -> None:
    found = answer(*run, "--worker", "1/1", SLURM_PROCID="x")
    assert found["worker"] == {"index": 1, "count": 1, "by": {}}
