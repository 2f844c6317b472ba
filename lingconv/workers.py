"""Shares of a plan: which one is this process's, as it is told or as a launcher's variables say.

A wrong guess makes several processes write the same files, or none: variables that leave a choice
are refused by name and value, and what was taken is kept to be shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from lingconv.errors import usage_error

# An own zero-based number and the number of processes, in the order in which they are asked.
_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("RANK", "WORLD_SIZE"),
)
_ARRAY = "SLURM_ARRAY_TASK_"
_COMPLETION = "JOB_COMPLETION_INDEX"
_NUMBER = re.compile(r"[0-9]{1,9}")
_BY_HAND = "name the share: --worker 1/4"


@dataclass(frozen=True)
class Share:
    """Worker `index` of `count`, from 1; `by` holds the variables that said so."""

    index: int = 1
    count: int = 1
    by: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether there is no other share."""
        return self.count == 1

    @property
    def origin(self) -> str:
        """The variables in words."""
        return _words(self.by)


WHOLE = Share()


def parse_share(text: str, environment: Mapping[str, str] = os.environ) -> Share:
    """A share from `I/N`, `auto` or `auto/N`; a text that is none of them is a `ValueError`.

    Raises `Error` 2 where variables do not say which share it is.
    """
    first, slash, last = text.partition("/")
    count = int(last) if _NUMBER.fullmatch(last) else None
    if slash and count is None:
        raise ValueError(f"{text!r} is none of I/N, auto and auto/N")
    if first == "auto":
        return launched_share(count, environment)
    if count is None or not _NUMBER.fullmatch(first):
        raise ValueError(f"{text!r} is none of I/N, auto and auto/N")
    return Share(int(first), count)


def launched_share(count: int | None, environment: Mapping[str, str]) -> Share:
    """The share of this process by the variables of whatever started it; `count` of them if given.

    A process of an array job is one of the array's, times those of its own launcher. Of launchers
    that contradict one another none is believed, but one that started a single process says
    nothing that could contradict.
    """
    variables = _Variables(environment)
    if f"{_ARRAY}ID" in environment:
        share = _of_array(variables, count)
    else:
        share = _of_processes(variables) or _of_an_index(variables, count)
    if count is not None and share.count != count:
        _refuse(f"--worker auto/{count}, but one of {share.count:,} by", share.by)
    return share


@dataclass(frozen=True)
class _Variables:
    """Numbers that variables hold."""

    environment: Mapping[str, str]

    def find(self, name: str) -> int | None:
        """The number in a variable, if that is set."""
        text = self.environment.get(name)
        if text is not None and not _NUMBER.fullmatch(text):
            raise usage_error(f"{name}={text[:50]!r} is no number from 0", hint=_BY_HAND)
        return None if text is None else int(text)

    def take(self, *names: str) -> dict[str, int]:
        """Those of the variables that are set."""
        found = {name: self.find(name) for name in names}
        return {name: number for name, number in found.items() if number is not None}


def _of_array(variables: _Variables, count: int | None) -> Share:
    """An element of a Slurm array, times the processes that were started in each element."""
    element = _of_element(variables, count)
    own, tasks = (variables.find(name) for name in _LAUNCHERS[0])
    if (own is None and (tasks or 0) > 1) or (tasks is None and (own or 0) > 0):
        _refuse("which task of its element this is is not known:", variables.take(*_LAUNCHERS[0]))
    inner = _of_processes(variables) or WHOLE
    by = element.by if inner.is_whole else element.by | inner.by
    return Share((element.index - 1) * inner.count + inner.index, element.count * inner.count, by)


def _of_element(variables: _Variables, count: int | None) -> Share:
    by = variables.take(*(f"{_ARRAY}{name}" for name in ("ID", "MIN", "MAX", "STEP", "COUNT")))
    number, least, most, step, elements = (
        by.get(f"{_ARRAY}{name}") for name in ("ID", "MIN", "MAX", "STEP", "COUNT")
    )
    assert number is not None, "asked before"
    if least is None or (most is None and (step is None or elements is None)):
        if count is None or len(by) > 1:
            _refuse("what numbers the array has is not known:", by, auto=len(by) == 1)
        return _checked(number, count, by)
    if step is None:
        step = _step(least, most, elements)
    if elements is None and most is not None and step:
        elements = (most - least) // step + 1
    # A list such as 0,3,7 has no step with which this would be so.
    regular = step and elements and most in (None, least + step * (elements - 1))
    if not step or not elements or not regular:
        _refuse("the array's numbers have no common step:", by)
    place, rest = divmod(number - least, step)
    if rest:
        _refuse("no number of the array's:", by)
    return _checked(place, elements, by)


def _step(least: int, most: int | None, elements: int | None) -> int:
    """The step of an array that does not tell it; 0 if there is none."""
    if most is None or elements is None or elements == 1:
        return 1
    step, rest = divmod(most - least, elements - 1) if elements else (0, 0)
    return 0 if rest else step


def _of_processes(variables: _Variables) -> Share | None:
    """One of the processes that a launcher started."""
    found = []
    for launcher in _LAUNCHERS:
        by = variables.take(*launcher)
        if len(by) == len(launcher):
            index, count = by.values()
            found.append(_checked(index, count, by))
    told = [share for share in found if not share.is_whole] or found[:1]
    for other in told[1:]:
        if (other.index, other.count) != (told[0].index, told[0].count):
            finest = max(told, key=lambda share: share.count)
            names = tuple(finest.by)
            _refuse(
                "launchers contradict one another:",
                {name: number for share in told for name, number in share.by.items()},
                hint=f"name the share: `--worker $(({names[0]} + 1))/${names[1]}`",
            )
    return told[0] if told else None


def _of_an_index(variables: _Variables, count: int | None) -> Share:
    """A process that knows its number and not of how many."""
    found = variables.take(*(index for index, _ in _LAUNCHERS), _COMPLETION)
    if count is None:
        known = ", ".join(" and ".join(names) for names in _LAUNCHERS)
        text = f"--worker auto needs {_ARRAY}ID, or both of {known}"
        if not found:
            raise usage_error(text, hint=_BY_HAND)
        _refuse("of how many processes this is one is not known:", found, auto=True)
    if not found:
        known = ", ".join((f"{_ARRAY}ID", *(index for index, _ in _LAUNCHERS), _COMPLETION))
        raise usage_error(f"--worker auto/{count} needs one of {known}", hint=_BY_HAND)
    if len(set(found.values())) > 1:
        _refuse("launchers contradict one another:", found)
    return _checked(next(iter(found.values())), count, found)


def _checked(index: int, count: int, by: Mapping[str, int]) -> Share:
    """A share from a zero-based number."""
    if not 0 <= index < count:
        _refuse(f"number {index:,} of {count:,}, counted from 0, by", by)
    return Share(index + 1, count, dict(by))


def _words(by: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={number}" for name, number in by.items())


def _refuse(
    what: str, by: Mapping[str, int], *, auto: bool = False, hint: str = _BY_HAND
) -> NoReturn:
    """`auto`: what is missing is the number of shares."""
    if auto:
        hint = "say of how many: --worker auto/4"
    raise usage_error(f"{what} {_words(by)}", hint=hint)
