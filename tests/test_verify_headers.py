"""`verify` of malformed headers: never looser than `safetensors`, never a crash."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors

from downloads import bf16, small_checkpoint, verify
from lingconv import api
from measure import cost_of_lingconv
from ordeal import FULL

SAMPLE = 10_000 if FULL else 500
MAX_HEADER = 100_000_000
PEAK = 300 << 20
FILE = "model.safetensors"
A = '"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'
GOOD = "{" + A + ',"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'


def one(body: str) -> str:
    return '{"a":{' + body + "}}"


def ranged(dtype: str, shape: str, offsets: str) -> str:
    return one(f'"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}')


def framed(text: str | bytes, data: int, length: int | None = None) -> bytes:
    """A file: length, JSON, and so many bytes of data."""
    raw = text.encode() if isinstance(text, str) else text
    size = len(raw) if length is None else length
    return (size % (1 << 64)).to_bytes(8, "little") + raw + b"\1" * data


MALFORMED = {
    "empty": b"",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "length only": b"\2\0\0\0\0\0\0\0",
    "length of zero": framed("", 12, 0),
    "length of one": framed("{", 12, 1),
    "length past the end": framed(GOOD, 12, len(GOOD) + 13),
    "length above the limit": framed(GOOD, 12, MAX_HEADER + 1),
    "length of 2^63": framed(GOOD, 12, 1 << 63),
    "length of 2^64 - 1": framed(GOOD, 12, (1 << 64) - 1),
    "length that wraps": framed(GOOD, 12, (1 << 64) - 8),
    "length too short": framed(GOOD, 12, len(GOOD) - 1),
    "zeros": framed(bytes(64), 12),
    "spaces first": framed(" " + GOOD, 12),
    "byte order mark": framed("\ufeff" + GOOD, 12),
    "an array": framed("[]", 0),
    "a string": framed('"a"', 0),
    "null": framed("null", 0),
    "no UTF-8": framed(b'{"\xff":' + GOOD.encode()[5:], 12),
    "UTF-16": framed(GOOD.encode("utf-16"), 12),
    "cut JSON": framed(GOOD[:-1], 12),
    "text after it": framed(GOOD + "x", 12),
    "a comma too many": framed(GOOD[:-1] + ",}", 12),
    "a comment": framed(GOOD[:-1] + "/* */}", 12),
    "deep nesting": framed('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", 0),
    "the same name": framed("{" + A + "," + A + "}", 4),
    "the same name, escaped": framed("{" + A + "," + A.replace('"a"', '"\\u0061"') + "}", 4),
    "metadata twice": framed('{"__metadata__":{},"__metadata__":{},' + A + "}", 4),
    "a number in the metadata": framed('{"__metadata__":{"x":1},' + A + "}", 4),
    "nested metadata": framed('{"__metadata__":{"x":{}},' + A + "}", 4),
    "a field twice": framed(one('"dtype":"U8",' + A[5:-1]), 4),
    "no dtype": framed(one('"shape":[4],"data_offsets":[0,4]'), 4),
    "no shape": framed(one('"dtype":"U8","data_offsets":[0,4]'), 4),
    "no offsets": framed(one('"dtype":"U8","shape":[4]'), 4),
    "unknown dtype": framed(ranged('"Q4"', "[4]", "[0,4]"), 4),
    "dtype in lower case": framed(ranged('"u8"', "[4]", "[0,4]"), 4),
    "a number for the dtype": framed(ranged("1", "[4]", "[0,4]"), 4),
    "negative shape": framed(ranged('"U8"', "[-4]", "[0,4]"), 4),
    "broken shape": framed(ranged('"U8"', "[4.5]", "[0,4]"), 4),
    "shape that overflows": framed(ranged('"U8"', "[4294967296,4294967296]", "[0,0]"), 0),
    "shape above 64 bits": framed(ranged('"U8"', "[18446744073709551616]", "[0,0]"), 0),
    "shape that wraps in bytes": framed(ranged('"F64"', "[2305843009213693952]", "[0,0]"), 0),
    "shape against range": framed(ranged('"U8"', "[5]", "[0,4]"), 4),
    "half a byte": framed(ranged('"F4"', "[3]", "[0,1]"), 1),
    "reversed range": framed(ranged('"U8"', "[4]", "[4,0]"), 4),
    "negative range": framed(ranged('"U8"', "[4]", "[-4,0]"), 4),
    "range of one": framed(ranged('"U8"', "[4]", "[4]"), 4),
    "range of three": framed(ranged('"U8"', "[4]", "[0,4,4]"), 4),
    "a hole": framed("{" + A + "," + A.replace('"a"', '"b"').replace("[0,4]", "[8,12]") + "}", 12),
    "a hole before": framed(ranged('"U8"', "[4]", "[4,8]"), 8),
    "an overlap": framed(
        "{" + A + "," + A.replace('"a"', '"b"').replace("[0,4]", "[2,6]") + "}", 6
    ),
    "the same range": framed("{" + A + "," + A.replace('"a"', '"b"') + "}", 4),
    "data missing": framed(GOOD, 11),
    "no data": framed(GOOD, 0),
    "data too long": framed(GOOD, 13),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("headers") / "model", [bf16("x", 2)])


def accepted_by_safetensors(folder: Path, data: bytes) -> bool:
    (folder / FILE).write_bytes(data)
    try:
        with safetensors.safe_open(folder / FILE, framework="numpy"):
            return True
    except safetensors.SafetensorError:
        return False


def accepted(folder: Path, data: bytes) -> bool:
    """Whether a file with these bytes passes."""
    (folder / FILE).write_bytes(data)
    found = api.verify(folder, level="headers", jobs=1)
    failures = [finding for finding in found.findings if finding.failure]
    assert (found.verdict == "ok") == (not failures)
    assert {finding.file for finding in failures} <= {FILE}
    return found.verdict == "ok"


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_refused(folder: Path, name: str) -> None:
    assert not accepted(folder, MALFORMED[name])


@pytest.mark.parametrize("name", ["empty", "deep nesting", "length of 2^64 - 1", "no UTF-8"])
def test_the_command_says_so(folder: Path, name: str) -> None:
    (folder / FILE).write_bytes(MALFORMED[name])
    outcome = verify(folder)
    assert outcome.code == 3
    assert {file for _, file, _ in outcome.found()} == {FILE}


SOUND = {
    "two tensors": framed(GOOD, 12),
    "none": framed("{}", 0),
    "padded": framed(GOOD + "   ", 12),
    "metadata": framed('{"__metadata__":{"format":"pt"},' + A + "}", 4),
    "no metadata": framed('{"__metadata__":null,' + A + "}", 4),
    "a scalar": framed(ranged('"F32"', "[]", "[0,4]"), 4),
    "no elements": framed(ranged('"F32"', "[0]", "[0,0]"), 0),
    "another alphabet": framed(GOOD.replace('"a"', '"层"'), 12),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_header_passes(folder: Path, name: str) -> None:
    assert accepted_by_safetensors(folder, SOUND[name])
    assert accepted(folder, SOUND[name])


# What the library takes and we do not look into.
TOO_LARGE = {
    "nine dimensions": framed(ranged('"U8"', "[1,1,1,1,1,1,1,1,4]", "[0,4]"), 4),
    "a long name": framed(GOOD.replace('"a"', f'"{"a" * 2_000}"'), 12),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_above_a_bound_is_not_called_damaged(folder: Path, name: str) -> None:
    assert accepted_by_safetensors(folder, TOO_LARGE[name])
    for options in ((), ("--level", "headers")):
        outcome = verify(folder, *options)
        assert outcome.code == 9
        notes = {(category, file) for category, file, _ in outcome.found(failures=False)}
        assert notes == {("too-large", FILE)}
    sums = subprocess.run(["sha256sum", FILE], cwd=folder, capture_output=True, check=True).stdout
    (folder / "SHA256SUMS").write_bytes(sums)
    try:
        assert verify(folder).code == 0
        assert verify(folder, "--level", "headers").code == 9
    finally:
        (folder / "SHA256SUMS").unlink()


# As text: each use is a value of its own.
ODD = """
null true -1 0 1 3 4294967296 9223372036854775808 18446744073709551616 0.5 1e300
"" "U8" "BF16" "x" [] {} [0] [4] [0,4] [4,0] [0,0,0] [1,1,1,1,1,1,1,1,1] {"x":"y"}
"""


def odd_value(chance: random.Random) -> Any:
    return json.loads(chance.choice(ODD.split()))


def odd_header(chance: random.Random) -> str:
    """The good header with values exchanged, keys added or taken away."""
    header: dict[str, Any] = json.loads(GOOD)
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(["a", "b", "c", "__metadata__"])
        if name not in header or chance.random() < 0.2:
            header[name] = odd_value(chance)
        elif isinstance(header[name], dict):
            field = chance.choice(["dtype", "shape", "data_offsets", "x"])
            if chance.random() < 0.2:
                header[name].pop(field, None)
            elif isinstance(header[name].get(field), list) and header[name][field]:
                at = chance.randrange(len(header[name][field]))
                header[name][field][at] = odd_value(chance)
            else:
                header[name][field] = odd_value(chance)
    return json.dumps(header)


def odd_bytes(chance: random.Random) -> bytes:
    """The bytes of the good header changed in a few places."""
    raw = bytearray(GOOD.encode())
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw))
        end = min(len(raw), at + chance.randint(1, 8))
        match chance.randrange(4):
            case 0:
                raw[at] = chance.randrange(256)
            case 1:
                del raw[at : min(end, len(raw) - 1)]
            case 2:
                raw[at:at] = raw[at:end]
            case _:
                raw[at:at] = chance.choice([b"0", b"9", b",", b"{", b"}", b'"', b" ", b"\\", b"["])
    return bytes(raw)


def generated(chance: random.Random) -> bytes:
    text: str | bytes = odd_header(chance) if chance.random() < 0.5 else odd_bytes(chance)
    size = len(text.encode() if isinstance(text, str) else text)
    data = chance.choice([12, 12, 12, 0, 4, 8, 13])
    length = chance.choice([None] * 8 + [size - 1, size + 1, size + data, 1 << 63])
    return framed(text, data, length)


def test_generated_headers_are_never_accepted_where_the_library_refuses(folder: Path) -> None:
    chance = random.Random(SAMPLE)
    theirs = ours = 0
    for _ in range(SAMPLE):
        data = generated(chance)
        known = accepted_by_safetensors(folder, data)
        passed = accepted(folder, data)
        assert known or not passed, data
        theirs, ours = theirs + known, ours + passed
    assert 0 < ours <= theirs < SAMPLE / 2


@pytest.mark.parametrize("repeated", [False, True])
def test_a_header_at_the_limit_is_cheap(tmp_path: Path, repeated: bool) -> None:
    """99 MB of one-byte tensors; the common library takes 1.3 GB for them."""
    folder = small_checkpoint(tmp_path / "model", [])
    count = 900_000
    rows = (
        f'"{0 if repeated else at:040}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{at + 1}]}}'
        for at in range(count)
    )
    text = "{" + ",".join(rows) + "}"
    assert 0.9 * MAX_HEADER < len(text) <= MAX_HEADER
    (folder / FILE).write_bytes(framed(text, count))
    cost = cost_of_lingconv("verify", folder, "--level", "headers", "-q")
    assert cost.code == (3 if repeated else 0), cost.stderr
    assert cost.peak < PEAK
    assert cost.cpu < 2 or not FULL
