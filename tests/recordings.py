"""Files of expert loads, damaged at random."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from lingconv import experts
from lingconv.errors import Error


def damaged(raw: bytes, draw: random.Random) -> bytes:
    """A file some bytes of which were changed, removed or added."""
    result = bytearray(raw)
    for _ in range(draw.randrange(1, 5)):
        place = draw.randrange(len(result) or 1)
        kind = draw.randrange(3)
        if kind == 0:
            result[place : place + 1] = draw.randbytes(1)
        elif kind == 1:
            del result[place : place + draw.randrange(1, 20)]
        else:
            result[place:place] = draw.randbytes(draw.randrange(1, 9))
    return bytes(result)


def read_damaged(path: Path, draw: random.Random, times: int) -> Counter[int]:
    """How many damaged copies of a file were read (0) or refused, by exit code."""
    copy = path.with_stem(path.stem + "-damaged")
    outcomes: Counter[int] = Counter()
    for _ in range(times):
        copy.write_bytes(damaged(path.read_bytes(), draw))
        try:
            experts.read_loads(copy)
            outcomes[0] += 1
        except Error as error:
            outcomes[error.exit_code] += 1
    return outcomes
