"""Files of loads that somebody made to harm: each is refused by name.

None of them may end as an internal error, run what it holds, wait for ever or take much memory.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lingconv import experts
from lingconv.errors import Error
from lingconv.experts import archives, recorder
from measure import cost_of_lingconv

MEMBER = "logical_count.npy"
GOOD = [[1, 2, 3, 4], [4, 3, 2, 1]]
MOST_MEMORY = 300_000_000
Cases = Iterator[tuple[str, bytes]]

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("sprung"),)


# JSON.


def json_cases() -> Cases:
    for name, count in {
        "null": "null",
        "truth": "true",
        "text": '"1"',
        "long text": json.dumps("x" * 1_000_000),
        "object": "{}",
        "list": "[1]",
        "NaN": "NaN",
        "infinity": "Infinity",
        "minus infinity": "-Infinity",
        "overflow": "1e999",
        "digits": "9" * 5000,
        "2**63": str(2**63),
        "2**64": str(2**64),
        "2**53": str(2**53 + 1),
        "negative": "-1",
        "negative fraction": "-0.5",
        "minus 2**63": str(-(2**63) - 1),
        "hexadecimal": "0x1",
        "leading zero": "01",
        "nothing": "",
    }.items():
        yield f"{name} as a count", f"[[1, 2], [3, {count}]]".encode()
        yield f"{name} as a row", f"[[1, 2], {count}]".encode()
        yield f"{name} as all", f'{{"logical_count": {count}}}'.encode()
    yield "a fraction and digits", b"[[0.5, " + b"9" * 400 + b"]]"
    yield "a long text among short ones", json.dumps([["x" * 1_000_000] + ["a"] * 300]).encode()
    yield "a key twice", b'{"logical_count": [[1, 2]], "logical_count": [[3, 4]]}'
    yield "another key twice", b'{"a": 1, "a": 2, "logical_count": [[1, 2]]}'
    yield "no key", b'{"physical_count": [[1, 2]]}'
    yield "half a character as a key", b'{"\\ud800": [[1, 2]]}'
    yield "four levels", b"[[[[1, 2]]]]"
    yield "ragged experts", b"[[[1, 2], [3]], [[1, 2], [3, 4]]]"
    yield "ragged layers", b"[[[1, 2]], [[1, 2], [3, 4]]]"
    yield "mixed depths", b"[[[1, 2]], [3, 4]]"
    yield "mixed depths again", b"[[1, 2], [[3], [4]]]"
    yield "nothing", b""
    yield "blanks", b" \n\t"
    yield "NULs", bytes(100)
    yield "cut", json.dumps(GOOD).encode()[:-1]
    yield "more behind", json.dumps(GOOD).encode() + b"]"
    yield "UTF-16", json.dumps(GOOD).encode("utf-16")
    yield "UTF-32", json.dumps(GOOD).encode("utf-32")
    yield "Latin-1", '{"é": 1}'.encode("latin-1")
    yield "a half surrogate in UTF-8", b'{"\xed\xa0\x80": 1}'
    for depth in (1_000, 100_000):
        yield f"{depth} deep", b"[" * depth + b"1" + b"]" * depth
        yield f"{depth} objects deep", b'{"a":' * depth + b"1" + b"}" * depth
    yield "too many experts", json.dumps([[1] * 5000]).encode()
    yield "too many layers", json.dumps([[1]] * 5000).encode()
    yield "lists of nothing", b"[" + b"[]," * 4_000_000 + b"[]]"
    yield "objects of nothing", b"[" + b"{}," * 4_000_000 + b"{}]"
    yield "short texts", b"[" + b'"ab",' * 3_000_000 + b'"ab"]'
    yield "objects of one key", b"[" + b'{"a":1},' * 1_500_000 + b"{}]"
    yield "large numbers", b"[[" + b"999," * 4_000_000 + b"1]]"
    yield "too long", b" " * (16 << 20) + b"[[1, 2]]"


# CSV.


def csv_cases() -> Cases:
    head = b"layer,expert,count\n"
    fields = {
        "empty": b"",
        "a word": b"one",
        "a fraction": b"1.5",
        "negative": b"-1",
        "2**63": str(2**63).encode(),
        "digits": b"9" * 5000,
        "long": b"9" * 200_000,
        "quoted and long": b'"' + b"9" * 200_000 + b'"',
        "NUL": b"\0",
        "a quote that never ends": b'"1',
        "a quote inside": b'"1"2',
        "NaN": b"nan",
        "not UTF-8": b"\xff",
    }
    for (name, field), place in itertools.product(fields.items(), range(3)):
        row = [b"0", b"0", b"1"]
        row[place] = field
        yield f"{name} in column {place}", head + b",".join(row) + b"\n"
    yield "two columns", head + b"0,0\n"
    yield "four columns", head + b"0,0,1,1\n"
    yield "another head", b"expert,layer,count\n0,0,1\n"
    yield "no head", b"0,0,1\n"
    yield "the head alone", head
    yield "nothing", b""
    yield "NULs", bytes(100)
    yield "UTF-16", (head + b"0,0,1\n").decode().encode("utf-16")
    yield "one line", b"0" * (4 << 20)
    yield "one quoted text of lines", head + b'"' + b"0,0,1\n" * 100_000
    yield "far away", head + b"4095,4095,1\n"
    yield "a cell twice", head + b"0,0,1\n0,0,1\n"
    yield "ragged", head + b"0,0,1\n0,1,1\n1,0,1\n"
    yield "too long", head + b"0,0,1\n" * (3 << 20)


# npy.


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npy_of(head: bytes, data: bytes = bytes(64), version: int = 1) -> bytes:
    """A file with any header."""
    length = struct.pack("<H" if version == 1 else "<I", len(head))
    return b"\x93NUMPY" + bytes((version, 0)) + length + head + data


def npy_head(descr: str = "'<i8'", order: str = "False", shape: str = "(2, 4)") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()


def npy_cases() -> Cases:
    shapes = ["(True, 2)", "(2, True)", "(False,)", "(-1, 4)", "(-2, -4)", "(0, 4)", "(2, 0)", "()"]
    shapes += ["(8,)", "(1, 1, 2, 4)", f"({2**70}, 2, 4)", f"({2**62}, 2, 4)", "(5000, 4)", "8"]
    shapes += ["(2.0, 4)", "('2', 4)", "(2, 4", "[2, 4]", "(2,) * 4", "None", f"(2, {2**63})"]
    for shape in shapes:
        yield f"shape {shape}", npy_of(npy_head(shape=shape))
    descriptions = ["'|O'", "'O'", "'<U4'", "'|S8'", "'|b1'", "'<c16'", "'<M8[s]'", "'<f16'"]
    descriptions += ["[('a', '<i4'), ('b', '<i4')]", "('<i4', (2,))", "'<i9'", "'x'", "None", "8"]
    for descr in [*descriptions, "'|V8'"]:
        yield f"type {descr}", npy_of(npy_head(descr=descr))
    for order in ("None", "1", "'no'"):
        yield f"order {order}", npy_of(npy_head(order=order))
    yield "code", npy_of(b"__import__('os').system('touch sprung')\n")
    yield "no dictionary", npy_of(b"[1, 2]\n")
    yield "a key more", npy_of(npy_head().replace(b"}", b", 'x': 1}"))
    yield "parentheses", npy_of(b"(" * 9_000 + b"\n")
    yield "a pickle", npy(np.array([Trap()], dtype=object), allow_pickle=True)
    yield "version 3", npy_of(npy_head(), version=3)
    yield "version 9", npy_of(npy_head(), version=9)
    yield "a header beyond the end", b"\x93NUMPY\1\0\xff\xff" + npy_head()
    yield "a header of gigabytes", b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(1 << 20)
    yield "a long header", npy_of(npy_head().rstrip() + b" " * 50_000 + b"\n")
    yield "nothing", b""
    yield "the magic alone", b"\x93NUMPY"
    yield "an archive", b"PK\3\4" + bytes(100)
    yield "a byte less", npy(np.array(GOOD))[:-1]
    yield "a byte more", npy(np.array(GOOD)) + b"\0"
    yield "NaN", npy(np.array([[1, np.nan]]))
    yield "infinity", npy(np.array([[1, -np.inf]]))
    yield "negative", npy(-np.array(GOOD))
    yield "the least number", npy(np.array([[1, -(2**63)]]))
    yield "2**63 steps of it", npy(np.full((3, 1, 2), 2**63, np.uint64))
    yield "zeros", npy(np.zeros((2, 4), int))


# npz.


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return stream.getvalue()


def patched(data: bytes, field: int, value: bytes) -> bytes:
    """An archive of one member with another field in its list."""
    at = data.rindex(b"PK\1\2") + field
    return data[:at] + value + data[at + len(value) :]


def npz_cases() -> Cases:
    good = npy(np.array(GOOD))
    yield "nothing", b""
    yield "no archive", good
    yield "an empty archive", archive()
    yield "no counts", archive(("other.npy", good))
    yield "a cut archive", archive((MEMBER, good))[:-10]
    yield "a name below", archive(("a/" + MEMBER, good))
    yield "a member twice", archive((MEMBER, good), (MEMBER, good))
    yield "another member twice", archive((MEMBER, good), ("x", b""), ("x", b""))
    yield "members", archive(*((f"{number:060}", b"") for number in range(20_000)))
    for name, method in (("bzip2", zipfile.ZIP_BZIP2), ("LZMA", zipfile.ZIP_LZMA)):
        yield name, archive((MEMBER, good), method=method)
    for method in (12, 14, 93, 99, 0xFFFF):
        yield f"method {method}", patched(archive((MEMBER, good)), 10, struct.pack("<H", method))
    yield "encrypted", patched(archive((MEMBER, good)), 8, b"\1\0")
    yield "another checksum", patched(archive((MEMBER, npy(np.ones((9, 9, 9))))), 16, bytes(4))
    for size in (0, 10, 2**31, 2**32 - 2):
        for name, field in (("packed", 20), ("whole", 24)):
            data = patched(archive((MEMBER, good)), field, struct.pack("<I", size))
            yield f"{name} of {size} bytes", data
    yield "an offset beyond the end", patched(archive((MEMBER, good)), 42, struct.pack("<I", 2**31))
    zeros = npy_of(npy_head(shape="(1000000, 4, 4)"), bytes(128_000_000))
    yield "a bomb", archive((MEMBER, zeros))
    yield "a bomb that says little", patched(archive((MEMBER, zeros)), 24, struct.pack("<I", 1000))
    yield "a bomb in a bomb", archive((MEMBER, archive((MEMBER, zeros))))
    for name, data in npy_cases():
        yield f"{name} in an archive", archive((MEMBER, data))


def other_files(suffix: str) -> Cases:
    """Files of other kinds under this name."""
    good = json.dumps(GOOD).encode()
    yield "gzip", gzip.compress(good)
    yield "cut gzip", gzip.compress(good)[:-8]
    if suffix != ".npz":
        yield "an archive", archive((MEMBER, npy(np.array(GOOD))))
    if suffix != ".npy":
        yield "an array", npy(np.array(GOOD))
    yield "a web page", b"<!doctype html><html><body>404</body></html>"
    yield "a pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


KINDS: dict[str, Callable[[], Cases]] = {
    ".json": json_cases,
    ".csv": csv_cases,
    ".npy": npy_cases,
    ".npz": npz_cases,
}


def refused(path: Path) -> Error:
    """What a file ends with; it is named."""
    with pytest.raises(Error) as raised:
        experts.read_loads(path)
    assert (raised.value.exit_code, raised.value.path) == (4, str(path))
    str(raised.value).encode()
    return raised.value


@pytest.mark.parametrize("suffix", KINDS)
def test_every_malformed_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path, count = tmp_path / f"loads{suffix}", 0
    for name, data in itertools.chain(KINDS[suffix](), other_files(suffix)):
        path.write_bytes(data)
        try:
            refused(path)
        except BaseException as error:
            raise AssertionError(f"{suffix}: {name}: {error!r}") from error
        count += 1
    assert count > 50
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("x.json", b"[[1, 2], [3, null]]", "[1][1]"),
        ("x.json", b"[[1, 2], [3]]", "[1]"),
        ("x.json", b"[[[1, 2], [3]]]", "[0][1]"),
        ("x.json", b"[[1, 2], [3, 99999999999999999999]]", "[1][1]"),
        ("x.json", b"[[1, 2],\n[3 4]]", "line 2 column 4"),
        ("x.json", b"[[1, -2]]", "layer 0, expert 1"),
        ("x.csv", b"layer,expert,count\n0,0,1\n0,1,x\n", "line 3"),
        ("x.csv", b"layer,expert,count\n0,0," + b"1" * 200_000, "line 2"),
        ("x.npy", npy(np.array([[1, 2], [np.nan, 1]])), "layer 1, expert 0"),
    ],
)
def test_the_place_is_named(tmp_path: Path, name: str, data: bytes, place: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert place in refused(tmp_path / name).message


def sparse(path: Path, head: bytes) -> None:
    """A file of terabytes that takes no disk."""
    path.write_bytes(head)
    os.truncate(path, 1 << 42)


UNUSUAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "terabytes": lambda path: sparse(path, b" "),
    "terabytes of an array": lambda path: sparse(path, npy_of(npy_head())),
}


@pytest.mark.parametrize("what", UNUSUAL)
@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_no_file_of_loads(tmp_path: Path, suffix: str, what: str) -> None:
    path = tmp_path / f"loads{suffix}"
    UNUSUAL[what](path)
    refused(path)


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (".json", "lists of nothing"),
        (".json", "objects of nothing"),
        (".json", "short texts"),
        (".json", "objects of one key"),
        (".json", "large numbers"),
        (".json", "a long text among short ones"),
        (".csv", "one line"),
        (".csv", "too long"),
        (".npy", "a header of gigabytes"),
        (".npz", "members"),
        (".npz", "a bomb"),
        (".npz", "a bomb in a bomb"),
    ],
)
def test_the_command_takes_little_memory(tmp_path: Path, suffix: str, name: str) -> None:
    path = tmp_path / f"loads{suffix}"
    path.write_bytes(next(data for found, data in KINDS[suffix]() if found == name))
    cost = cost_of_lingconv("experts", "stats", path, "--ep", "2")
    assert (cost.code, str(path) in cost.stderr) == (4, True), cost.stderr
    assert cost.peak < MOST_MEMORY


def test_an_archive_lists_its_members_within_bounds(tmp_path: Path) -> None:
    """The dumps of a recorder are archives too, of a file for each tensor."""
    path = tmp_path / "dump.pt"
    path.write_bytes(archive(*((f"{number:060}", b"") for number in range(2_000))))
    with archives.regular(str(path)) as file:
        assert len(archives.listed(file, str(path), most=1 << 20).namelist()) == 2_000
    with (
        pytest.raises(Error) as raised,
        archives.reading(str(path)),
        archives.regular(str(path)) as file,
    ):
        archives.listed(file, str(path), most=1 << 16)
    assert raised.value.exit_code == 4


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (archive(("a/data.pkl", bytes(100))), "compressed"),
        (
            archive(("a/data.pkl", bytes(5 << 20)), method=zipfile.ZIP_STORED),
            "objects of 5,242,880 bytes",
        ),
        (archive(method=zipfile.ZIP_STORED)[:-1], "damaged archive"),
        (b"\x80\x02}q\0.", "damaged archive"),
        (bytes(1 << 20), "damaged archive"),
    ],
)
def test_dumps_that_torch_is_not_asked_about(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "expert_distribution_recorder_0.pt"
    path.write_bytes(data)
    with pytest.raises(Error, match=words) as raised:
        recorder.check_archive(str(path))
    assert (raised.value.exit_code, raised.value.path) == (4, str(path))


def test_what_compresses_well_is_no_bomb(tmp_path: Path) -> None:
    """Most of a recorder's buffer may be unused."""
    counts = np.zeros((2_000, 8, 64), np.int64)
    counts[7] = 1
    np.savez_compressed(tmp_path / "loads.npz", logical_count=counts)
    loads = experts.read_loads(tmp_path / "loads.npz")
    assert (loads.steps, loads.idle_steps) == (2_000, 1_999)
    assert (loads.counts == 1).all()
