"""`experts stats` of recorded loads: measures, readers, refusals."""

from __future__ import annotations

import io
import json
import math
import random
import re
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lingconv import experts
from lingconv.errors import Error
from ordeal import FULL
from recordings import read_damaged
from support import answer, lingconv, on_a_terminal, refuse, succeed

Counts = NDArray[np.int64]


def random_counts(seed: int, *shape: int) -> Counts:
    """Counts as skewed as recordings are, with ties and unused experts."""
    generator = np.random.default_rng(seed)
    counts: Counts = generator.poisson(np.exp(generator.normal(size=shape)) * 3)
    counts[..., 0] += 1
    return counts


def adversarial() -> dict[str, list[int]]:
    return {
        "even": [7] * 8,
        "one hot": [0, 0, 0, 900, 0, 0, 0, 0],
        "ties": [3, 1, 3, 1, 3, 1, 3, 1],
        "ends": [1, 2, 4, 8, 16, 32, 64, 2**50],
    }


def by_definition(values: list[int]) -> dict[str, float]:
    """The measures as their formulas say, in exact arithmetic up to the square root."""
    n = len(values)
    mean = Fraction(sum(values), n)
    variance = sum((value - mean) ** 2 for value in values) / n
    differences = sum(abs(a - b) for a in values for b in values)
    return {
        "mean": float(mean),
        "max": float(max(values)),
        "balancedness": float(mean / max(values)),
        "max_over_mean": float(max(values) / mean),
        "cv": math.sqrt(variance) / float(mean),
        "gini": float(differences / (2 * n**2 * mean)),
    }


@pytest.mark.parametrize("values", adversarial().values(), ids=adversarial())
def test_measures_of_hard_layers(values: list[int]) -> None:
    found = experts.balance(np.array([values]))
    for name, expected in by_definition(values).items():
        assert getattr(found, name)[0] == pytest.approx(expected, rel=1e-12, abs=1e-15), name


def test_measures_of_random_layers() -> None:
    counts = random_counts(1, 30, 48)
    for parts in (48, 16, 3, 1):
        loads = experts.grouped(counts, parts)
        found = experts.balance(loads)
        for layer, row in enumerate(counts.tolist()):
            width = 48 // parts
            ranks = [sum(row[r * width : (r + 1) * width]) for r in range(parts)]
            assert loads[layer].tolist() == ranks
            for name, expected in by_definition(ranks).items():
                assert getattr(found, name)[layer] == pytest.approx(expected, rel=1e-12), name


def test_measures_by_hand() -> None:
    # Ranks hold 1+3 and 4+8: mean 8, maximum 12. Gini of 1, 3, 4, 8: the six pairs differ by 22
    # in all, 44 / (2 · 16 · 4). Variance: (9 + 1 + 0 + 16) / 4.
    counts = np.array([[1, 3, 4, 8]])
    found = experts.balance(counts)
    assert found.gini[0] == pytest.approx(44 / 128)
    assert found.cv[0] == pytest.approx(math.sqrt(26 / 4) / 4)
    ranks = experts.balance(experts.grouped(counts, 2))
    assert (ranks.balancedness[0], ranks.max_over_mean[0], ranks.slowdown) == (8 / 12, 1.5, 1.5)


@pytest.fixture
def counts() -> Counts:
    """Five steps of six layers, two of them dense; step 3 was never recorded."""
    counts = random_counts(2, 5, 6, 16)
    counts[:, :2] = 0
    counts[3] = 0
    return counts


def write(folder: Path, name: str, counts: Counts) -> Path:
    """The counts in the form that a file's name says."""
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, counts)
    elif name == "deflated.npz":
        np.savez_compressed(path, logical_count=counts, other=np.arange(3))
    elif name.endswith(".npz"):
        np.savez(path, logical_count=counts)
    elif name == "bare.json":
        path.write_text(json.dumps(counts.tolist()))
    else:
        path.write_text(json.dumps({"note": "x", "logical_count": counts.tolist()}))
    return path


@pytest.mark.parametrize(
    "name", ["loads.npy", "stored.npz", "deflated.npz", "loads.json", "bare.json"]
)
def test_files_of_steps(tmp_path: Path, counts: Counts, name: str) -> None:
    path = write(tmp_path, name, counts)
    loads = experts.read_loads(path)
    assert np.array_equal(loads.counts, counts.sum(axis=0))
    assert (loads.steps, loads.idle_steps) == (5, 1)
    assert loads.moe_layers.tolist() == [2, 3, 4, 5]
    part = experts.read_loads(path, steps=(1, 4))
    assert np.array_equal(part.counts, counts[1:4].sum(axis=0))
    assert (part.steps, part.idle_steps) == (3, 1)


@pytest.mark.parametrize("dtype", ["<i4", ">i8", "<u2", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_types(tmp_path: Path, counts: Counts, dtype: str, order: Any) -> None:
    np.save(tmp_path / "x.npy", np.asarray(counts, dtype, order=order))
    found = experts.read_loads(tmp_path / "x.npy").counts
    assert np.array_equal(found, counts.sum(axis=0))
    assert found.dtype == (np.float64 if "f" in dtype else np.int64)


def test_npy_is_read_in_windows(tmp_path: Path) -> None:
    counts = np.arange(70 * 40 * 2000, dtype=np.int64).reshape(70, 40, 2000)
    np.save(tmp_path / "x.npy", counts)
    source = experts.tables.read_npy(str(tmp_path / "x.npy"), archived=False)
    windows = [window.copy() for window in source.windows(3, 69)]
    assert len(windows) > 2
    assert np.array_equal(np.concatenate(windows), counts[3:69])


def test_csv(tmp_path: Path) -> None:
    rows = [f"{layer},{e},{10 * layer + e}" for e in (2, 0, 1) for layer in (3, 1)]
    path = tmp_path / "loads.csv"
    path.write_text("layer,expert,count\n" + "\n".join(rows) + "\n")
    loads = experts.read_loads(path)
    assert loads.counts.tolist() == [[0, 0, 0], [10, 11, 12], [0, 0, 0], [30, 31, 32]]
    assert loads.dense_layers.tolist() == [0, 2]


def test_several_files_follow_one_another(tmp_path: Path, counts: Counts) -> None:
    first, second = write(tmp_path, "a.npy", counts[:2]), write(tmp_path, "b.json", counts[2:])
    loads = experts.read_loads([first, second], steps=(1, None))
    assert np.array_equal(loads.counts, counts[1:].sum(axis=0))
    assert (loads.steps, loads.idle_steps) == (4, 1)
    assert refuse(2, "experts", "stats", first, first)["message"] == "named twice"
    other = write(tmp_path, "c.npy", counts[:, :5])
    assert "5 layers × 16 experts" in refuse(4, "experts", "stats", first, other)["message"]


def test_answers_agree(tmp_path: Path, counts: Counts) -> None:
    path = write(tmp_path, "loads.npy", counts)
    found = answer("experts", "stats", path, "--ep", "4", "--nodes", "2")
    summed = counts.sum(axis=0)[2:]
    assert found["schema"] == "lingconv.experts.loads/1"
    assert (found["steps"], found["idle_steps"], found["dense_layers"]) == (5, 1, [0, 1])
    assert [layer["layer"] for layer in found["moe_layers"]] == [2, 3, 4, 5]
    for row, layer in zip(summed.tolist(), found["moe_layers"], strict=True):
        order = sorted(range(16), key=lambda expert: (-row[expert], expert))
        assert [place["expert"] for place in layer["hottest"]] == order[:5]
        assert [place["expert"] for place in layer["coldest"]] == order[::-1][:5]
        assert layer["unused"] == [expert for expert in range(16) if row[expert] == 0]
        ranks = [sum(row[start : start + 4]) for start in range(0, 16, 4)]
        nodes = [sum(row[:8]), sum(row[8:])]
        for part, loads in (("experts", row), ("ranks", ranks), ("nodes", nodes)):
            expected = by_definition(loads)
            assert layer[part] == pytest.approx(expected), part
    balancedness = [by_definition(row)["balancedness"] for row in summed.tolist()]
    assert found["summary"]["experts"]["balancedness"] == pytest.approx(np.mean(balancedness))


def test_the_picture(tmp_path: Path) -> None:
    counts = np.ones((3, 256), int)
    counts[0] = 0
    counts[1, 40:48] = 0
    counts[2, 77] = 1000
    path = write(tmp_path, "loads.npy", counts)
    lines = succeed("experts", "stats", path).stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "hottest of 4 experts a column" in lines[1]
    picture = {line[:3]: line[4:68] for line in lines if line.startswith("L0")}
    assert picture["L01"] == "▅" * 10 + "··" + "▅" * 52
    assert picture["L02"] == "▁" * 19 + "█" + "▁" * 44
    assert next(line for line in lines if line.startswith("L01")).endswith("  1.03     8")
    assert "\x1b" not in "".join(lines)


def test_layers_in_words(tmp_path: Path) -> None:
    path = write(tmp_path, "loads.npy", np.array([[0, 0, 0, 0], [4, 0, 1, 3], [1, 1, 5, 1]]))
    shown = succeed("experts", "stats", path, "-v", "--ep", "2").stdout
    table = [line.split() for line in shown.splitlines() if re.match(r" +[12] ", line)]
    # Of 4, 0, 1, 3: the mean is 2, ranks hold 4 and 4; deviations 4, 4, 1, 1; differences 14.
    first = ["1", "2", "4", "2.00", f"{math.sqrt(10 / 4) / 2:.3f}", f"{28 / 64:.3f}", "1.00"]
    assert table[0] == [*first, *"0321", *"1230"]
    assert table[1][:4] == ["2", "2", "5", "2.50"]


def test_colours_say_the_same_as_heights(tmp_path: Path, counts: Counts) -> None:
    stats = ("experts", "stats", write(tmp_path, "loads.npy", counts))
    shown = on_a_terminal(*stats, stream="stdout")
    colours: dict[str, set[str]] = {}
    for style, block in re.findall(r"\x1b\[([\d;]+)m([▁▂▃▄▅▆▇█]+)\x1b", shown):
        for height in block:
            colours.setdefault(height, set()).add(style)
    assert len(colours) > 4
    assert all(len(styles) == 1 for styles in colours.values())
    assert len(set(map(frozenset, colours.values()))) > 3
    plain = on_a_terminal(*stats, stream="stdout", NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", plain)
    bare = re.compile(r"\x1b\[[\d;]*m")
    assert bare.sub("", plain) == bare.sub("", shown)


def test_threshold(tmp_path: Path) -> None:
    path = write(tmp_path, "loads.npy", np.array([[0, 0, 0, 0], [1, 1, 1, 1], [5, 1, 1, 1]]))
    # Layer 2: experts 5 / 2 = 2.5 times the mean, ranks 6 / 4 = 1.5 times.
    for arguments, code in (
        (["--max-imbalance", "2.4"], 3),
        (["--max-imbalance", "2.5"], 0),
        (["--max-imbalance", "1.4", "--ep", "2"], 3),
        (["--max-imbalance", "1.5", "--ep", "2"], 0),
    ):
        done = lingconv("experts", "stats", path, *arguments, "--json")
        check = json.loads(done.stdout)["check"]
        assert (done.returncode, check["passed"]) == (code, code == 0), arguments
        assert [row["layer"] for row in check["above"]] == ([2] if code else [])
    refuse(2, "experts", "stats", path, "--max-imbalance", "0.5")


def npy_bytes(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def header_alone(shape: tuple[int, ...]) -> bytes:
    """An npy file that says much and holds nothing."""
    stream = io.BytesIO()
    head = {"descr": "<i4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, head)
    return stream.getvalue()


class Bomb:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("unpickled"),)


REFUSED = {
    "negative.json": b"[[1, -1]]",
    "nan.json": b"[[1.0, NaN]]",
    "infinite.json": b"[[1e999, 1]]",
    "ragged.json": b"[[1, 2], [3]]",
    "empty.json": b"[]",
    "empty rows.json": b"[[], []]",
    "zeros.json": b"[[0, 0]]",
    "flat.json": b"[1, 2]",
    "deep.json": b"[" * 100_000 + b"]" * 100_000,
    "deep and good.json": b"[[[[1, 2]]]]",
    "words.json": b'[["1", "2"]]',
    "flags.json": b"[[true, false]]",
    "huge.json": b"[[1e300, 1]]",
    "whole and huge.json": b"[[99999999999999999999999, 1]]",
    "a map.json": b'{"physical_to_logical_map": [[0, 1]]}',
    "not JSON.json": b"\x93NUMPY",
    "not UTF-8.json": b"\xff\xfe",
    "negative.csv": b"layer,expert,count\n0,0,1\n0,1,-1\n",
    "ragged.csv": b"layer,expert,count\n0,0,1\n0,1,2\n1,0,3\n",
    "twice.csv": b"layer,expert,count\n0,0,1\n0,0,2\n",
    "far.csv": b"layer,expert,count\n99999999999,0,1\n",
    "word.csv": b"layer,expert,count\n0,zero,1\n",
    "headless.csv": b"0,0,1\n",
    "empty.csv": b"",
    "pickle.npy": npy_bytes(np.array([Bomb()], dtype=object), allow_pickle=True),
    "fields.npy": npy_bytes(np.zeros((2, 2), [("a", "i4")])),
    "complex.npy": npy_bytes(np.zeros((2, 2), complex)),
    "negative.npy": npy_bytes(np.array([[1, 2], [3, -4]])),
    "nan.npy": npy_bytes(np.array([[1, np.nan]])),
    "short.npy": npy_bytes(np.ones((9, 9)))[:-1],
    "long.npy": npy_bytes(np.ones((9, 9))) + b"0",
    "vast.npy": header_alone((2**40, 80, 256)),
    "wide.npy": header_alone((2**20, 2**20)),
    "no magic.npy": b"PK",
    "not zip.npz": b"NUMPY",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REFUSED[name])
    with pytest.raises(Error) as refused:
        experts.read_loads(path)
    assert (refused.value.exit_code, refused.value.path) == (4, str(path))
    assert not Path("unpickled").exists()


def test_archive_that_unpacks_to_much_more(tmp_path: Path) -> None:
    """What the archive says of a member, the header of its counts has to say too."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logical_count.npy", header_alone((2**30, 4, 4)) + bytes(50_000_000))
    error = refuse(4, "experts", "stats", path)
    assert "holds not the 68,719,476,736 bytes" in error["message"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.npy", npy_bytes(np.ones((2, 2))))
    assert "holds no logical_count" in refuse(4, "experts", "stats", path)["message"]


def test_refused_requests(tmp_path: Path, counts: Counts) -> None:
    path = write(tmp_path, "loads.npy", counts)
    assert "do not divide" in refuse(5, "experts", "stats", path, "--ep", "3")["message"]
    assert (
        "does not divide"
        in refuse(5, "experts", "stats", path, "--ep", "4", "--nodes", "3")["message"]
    )
    refuse(2, "experts", "stats", path, "--nodes", "2")
    refuse(2, "experts", "stats", path, "--steps", "2:2")
    refuse(2, "experts", "stats", path, "--steps", "4:9")
    refuse(2, "experts", "stats", path, "--steps", "x")
    refuse(2, "experts", "stats", tmp_path / "absent.npy")
    refuse(2, "experts", "stats", write(tmp_path, "loads.txt", counts))
    assert (
        refuse(4, "experts", "stats", path, "--steps", "3:4")["message"] == "no token was counted"
    )


def test_recorder_dumps_need_torch(tmp_path: Path) -> None:
    """The environment of these tests is without torch; tests/torch reads dumps."""
    (tmp_path / "loads.pt").write_bytes(b"PK")
    error = refuse(2, "experts", "stats", tmp_path / "loads.pt")
    assert error["hint"] == "`pip install 'lingconv[torch]'`"


@pytest.mark.parametrize("name", ["x.npy", "stored.npz", "deflated.npz", "x.json", "x.csv"])
def test_damaged_files(tmp_path: Path, counts: Counts, name: str) -> None:
    """Bytes changed, added or removed: read all the same, or refused with 4."""
    path = tmp_path / name
    if name == "x.csv":
        rows = [f"{layer},{e},{layer * e}" for layer in range(3) for e in range(9)]
        path.write_text("layer,expert,count\n" + "\n".join(rows) + "\n")
    else:
        write(tmp_path, name, counts[:, 2:4, :9])
    outcomes = read_damaged(path, random.Random(name), 3000 if FULL else 150)
    assert outcomes[4] > 50
    assert set(outcomes) <= {0, 4}
