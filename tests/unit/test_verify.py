"""`data verify` finds every fault, says where it is, and finds none where there is none."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import ArraySource, write_dataset
from rated_support import write_rated

from dml_hpc.cli import main
from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.manifest import FILE, read_manifest
from dml_hpc.data.shard import Keys
from dml_hpc.data.verification import examine_csr, findings, untrusted
from dml_hpc.data.verification.verify import Problem, verify
from dml_hpc.errors import AgreedError
from dml_hpc.files import file_sha256
from dml_hpc.mpi import Alone

RNG = np.random.default_rng(3)
X = (RNG.standard_normal((40, 7)) * (RNG.random((40, 7)) < 0.6)).astype(np.float32)
Y = np.arange(40) % 3


def make(folder: Path, kind: str, compression: str | None = None) -> Path:
    if kind == "ratings":
        # 9 users and 6 items in 2 × 2 blocks; each pair at most once.
        place = np.arange(54)
        return write_rated(folder, place // 6, place % 6, place % 7 / 2, grid=(2, 2), shards=2, compression=compression)
    return write_dataset(folder, X if kind == "dense" else sparse(X), Y, [15, 0, 25], compression=compression)


def found(*paths: Path, keys: Keys | None = None) -> list[tuple[str, str]]:
    """Return (file name, where) of every problem."""
    return [(Path(problem.file).name, problem.where) for problem in problems(*paths, keys=keys)]


def problems(*paths: Path, keys: Keys | None = None) -> list[Problem]:
    listed = verify(Alone(), paths, keys).problems
    assert all("\n" not in problem.problem and problem.problem for problem in listed)
    return listed


def edit(folder: Path, change: Callable[[h5py.File], None], number: int = 0) -> Path:
    """Change a shard and make its manifest entry fit the changed bytes, so that only its content is wrong."""
    path = folder / f"part-{number:05d}.h5"
    with h5py.File(path, "r+") as file:
        change(file)
    table = json.loads((folder / FILE).read_text())
    entry = table["shards"][number]
    entry.update(sha256=file_sha256(path), bytes=path.stat().st_size,
                 head_sha256=file_sha256(path, entry["head_bytes"]))
    (folder / FILE).write_text(json.dumps(table))
    return folder


def put(name: str, place: object, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][place] = value
    return change


def replace(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = make(file[name][()])
        del file[name]
        file[name] = values
    return change


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("kind", ["dense", "csr", "ratings"])
def test_a_whole_data_set_has_no_problem(tmp_path: Path, kind: str, compression: str | None) -> None:
    folder = make(tmp_path / "d", kind, compression)
    verdict = verify(Alone(), [folder])
    assert verdict == (2 if kind == "ratings" else 3, 54 if kind == "ratings" else 40, [])
    assert found(folder / "part-00001.h5", folder / "part-00000.h5") == []


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_figures_of_many_blocks_agree(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "BLOCK_BYTES", 64)
    monkeypatch.setattr(examine_csr, "BLOCK_BYTES", 64)
    assert found(make(tmp_path / "d", kind)) == []
    assert found(make(tmp_path / "e", kind, "lzf")) == []


FIRST = np.argwhere(X[:15])[0].tolist()
DAMAGE = {
    "nan in X": ("dense", put("X", (3, 2), np.nan), ["X[3, 2]"]),
    "infinity in X": ("dense", put("X", (14, 6), -np.inf), ["X[14, 6]"]),
    "another value in X": ("dense", put("X", (3, 2), 1e6), ["statistics"]),
    "nan in y": ("dense", put("y", 4, np.nan), ["y[4]"]),
    "another label": ("dense", put("y", 4, 5), ["y[4]"]),
    "a row less": ("dense", replace("X", lambda x: x[:-1]), ["X", "y"]),
    "a label less": ("dense", replace("y", lambda y: y[:-1]), ["y"]),
    "a column less": ("dense", replace("X", lambda x: x[:, :-1]), ["X"]),
    "X of another type": ("dense", replace("X", lambda x: x.astype(np.float64)), ["X"]),
    "y of words": ("dense", replace("y", lambda y: y.astype("S4")), ["y"]),
    "X in three dimensions": ("dense", replace("X", lambda x: x[None]), ["X"]),
    "no X": ("dense", lambda file: file.__delitem__("X"), ["X"]),
    "a negative weight": ("dense", lambda file: file.create_dataset("weight", data=-np.ones(15)), ["weight[0]"]),
    "nan in data": ("csr", put("X/data", 0, np.nan), [f"X[{FIRST[0]}, {FIRST[1]}]"]),
    "a column out of range": ("csr", put("X/indices", 5, 7), ["X/indices[5]"]),
    "a negative column": ("csr", put("X/indices", 5, -1), ["X/indices[5]"]),
    "a column twice": ("csr", lambda file: file["X/indices"].__setitem__(
        slice(0, 2), file["X/indices"][0]), [f"X[{FIRST[0]}, {FIRST[1]}]"]),
    "indptr falls": ("csr", put("X/indptr", 3, 40), ["X/indptr[4]"]),
    "indptr begins late": ("csr", put("X/indptr", 0, 1), ["X/indptr[0]"]),
    "indptr ends early": ("csr", put("X/indptr", 15, 50), ["X/indptr[15]"]),
    "indptr is short": ("csr", replace("X/indptr", lambda p: p[:-1]), ["X", "X/indptr[14]", "y"]),
    "fewer indices": ("csr", replace("X/indices", lambda i: i[:-1]), ["X/indices"]),
    "indptr of floats": ("csr", replace("X/indptr", lambda p: p.astype(float)), ["X/indptr"]),
    "a user too many": ("ratings", put("user", 7, 5), ["user[7]"]),
    "a negative item": ("ratings", put("item", 0, -1), ["item[0]"]),
    "a pair twice": ("ratings", lambda file: [file[name].__setitem__(1, file[name][0]) for name in ("user", "item")],
                     ["user[0]"]),
    "users of another type": ("ratings", replace("user", lambda user: user.astype(np.int64)), ["user"]),
    "nan in a rating": ("ratings", put("rating", 8, np.nan), ["rating[8]"]),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_wrong_is_found_where_it_is(tmp_path: Path, how: str) -> None:
    kind, change, where = DAMAGE[how]
    folder = edit(make(tmp_path / "d", kind), change)
    places = found(folder)
    if where == ["statistics"]:
        assert set(places) == {(FILE, "statistics")}
    else:
        assert places == [*(("part-00000.h5", place) for place in where),
                          *([(FILE, "statistics")] * 2 if how == "a row less" else [])]


def test_all_problems_are_listed_not_the_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "csr")
    def change(file: h5py.File) -> None:
        file["X/indptr"][3] = 40
        file["X/indices"][60] = 99
        file["X/data"][1:3] = np.inf
        file["y"][0] = np.nan
    edit(folder, change)
    edit(folder, put("y", 2, 17.0), 2)
    (folder / "part-00003.h5").write_bytes(b"")
    assert found(folder) == [
        ("part-00003.h5", "file"), ("part-00000.h5", "X/indptr[4]"), ("part-00000.h5", "X/data[1]"),
        ("part-00000.h5", "X/indices[60]"), ("part-00000.h5", "y[0]"), ("part-00002.h5", "y[2]")]
    counted = [problem.problem for problem in problems(folder) if problem.where == "X/data[1]"]
    assert counted == ["is inf; 2 values of X/data are not finite"]


@pytest.mark.parametrize("kind", ["dense", "csr", "ratings"])
def test_changed_bytes_are_named_and_the_rest_is_still_read(tmp_path: Path, kind: str) -> None:
    folder = make(tmp_path / "d", kind)
    path = folder / "part-00000.h5"
    with h5py.File(path, "r+") as file:
        file["rating" if kind == "ratings" else "y"][3] = np.nan
    assert found(folder) == [(path.name, "checksum"), (path.name, "rating[3]" if kind == "ratings" else "y[3]")]
    path.write_bytes(path.read_bytes()[:-4])
    assert found(folder)[0] == (path.name, "size")
    path.write_bytes(b"not HDF5" * 1000)
    assert found(folder) == [(path.name, "size"), (path.name, "file")]
    path.unlink()
    assert (path.name, "file") in found(folder)


def test_statistics_that_are_not_those_of_the_rows(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "dense")
    table = json.loads((folder / FILE).read_text())
    for name in ("mean", "deviation", "minimum", "maximum"):
        table["statistics"][name][4] += 0.001
    table["statistics"]["mean"][0] *= 1 + 1e-12
    (folder / FILE).write_text(json.dumps(table))
    listed = problems(folder)
    assert [problem.where for problem in listed] == ["statistics"] * 4
    assert all("'x4'" in problem.problem and "1 features" in problem.problem for problem in listed)
    # Of some of the shards nobody can say.
    assert found(folder / "part-00000.h5") == []


def test_a_manifest_that_is_not_whole_does_not_hide_the_files(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "dense")
    (folder / FILE).write_text("{}")
    with h5py.File(folder / "part-00002.h5", "r+") as file:
        file["X"][1, 1] = np.nan
    assert found(folder) == [(FILE, "file"), ("part-00002.h5", "X[1, 1]")]


def test_files_without_a_manifest(tmp_path: Path) -> None:
    for number, width in enumerate((7, 7, 6)):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["inputs"], file["targets"] = X[:, :width], Y
    keys = Keys("inputs", "targets")
    assert found(tmp_path / "0.h5", tmp_path / "1.h5", keys=keys) == []
    assert found(tmp_path / "0.h5", tmp_path / "2.h5", keys=keys) == [("2.h5", "file")]
    assert found(tmp_path / "0.h5") == [("0.h5", "X"), ("0.h5", "y")]


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgreedError, match="does not exist"):
        verify(Alone(), [tmp_path / "nowhere"])
    with pytest.raises(AgreedError, match="with a manifest"):
        verify(Alone(), [make(tmp_path / "d", "dense")], Keys("a", "b"))


def test_repeated_columns_against_numpy() -> None:
    from dml_hpc.kernels.verify import columns_outside, repeating_rows

    rng = np.random.default_rng(1)
    for _ in range(200):
        lengths = rng.integers(0, 6, 10)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        indices = rng.integers(0, 9, indptr[-1]).astype(np.int32)
        rows = [indices[start:stop] for start, stop in itertools.pairwise(indptr)]
        repeating = [i for i, row in enumerate(rows) if len(np.unique(row)) < len(row)]
        count, first, column = repeating_rows(indptr, indices)
        assert (count, first) == (len(repeating), repeating[0] if repeating else -1)
        assert not repeating or np.count_nonzero(rows[first] == column) > 1
        outside = np.flatnonzero(indices >= 5)
        assert columns_outside(indices, 5) == (len(outside), outside[0] if len(outside) else -1)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_all_that_hdf5_follows_lies_in_the_head_of_a_shard(tmp_path: Path, kind: str, compression: str | None) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 2000)).astype(np.float32)
    source = ArraySource(x if kind == "dense" else Csr(x.reshape(-1), np.tile(np.arange(2000), 3000).astype(np.int32),
                                                       np.arange(3001) * 2000, 2000), np.zeros(3000))
    (tmp_path / "d").mkdir()
    build(Alone(), tmp_path / "d", {"": source}, shards=1, dtype="float32", compression=compression)
    entry = read_manifest(tmp_path / "d").shards[0]
    path = tmp_path / "d" / entry.file
    content = np.fromfile(path, np.uint8)
    numbers = np.zeros(len(content), bool)
    numbers[:entry.head_bytes] = True
    with h5py.File(path) as file:
        for name in ["X", "y"] if kind == "dense" else ["X/data", "X/indices", "X/indptr", "y"]:
            dataset = file[name]
            chunks = [(chunk.byte_offset, chunk.size) for chunk in (dataset.id.get_chunk_info(i) for i in range(
                dataset.id.get_num_chunks()))] if dataset.chunks else [(dataset.id.get_offset(), dataset.nbytes)]
            for offset, size in chunks:
                assert offset >= entry.head_bytes
                numbers[offset:offset + size] = True
    assert not content[~numbers].any() and entry.bytes == len(content)
    assert entry.head_bytes < (1 << 18) and entry.head_sha256 == file_sha256(path, entry.head_bytes)


READER = """
import json, os, sys, time
for path, expected in json.load(sys.stdin):
    if "crash" in path:
        os.kill(os.getpid(), 11)
    if "hang" in path:
        time.sleep(60)
    print(json.dumps({"faults": [["y", path]], "kind": "dense", "rows": 1, "features": 2}), flush=True)
"""


def test_a_file_that_crashes_or_hangs_its_reader_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "READER", (sys.executable, "-c", READER))
    names = ["a", "crash", "b", "crash", "hang", "c"]
    listed = list(untrusted.examine_apart([(Path(name), findings.Expected()) for name in names], 3))
    assert [found.faults[0].where for found in listed] == ["y", "file", "y", "file", "file", "y"]
    assert [found.faults[0].problem for found in listed] == [
        "a", "cannot be read: it crashes HDF5 (SIGSEGV)", "b", "cannot be read: it crashes HDF5 (SIGSEGV)",
        "cannot be read: HDF5 hangs (3 s)", "c"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "d", "dense")
    assert main(["data", "verify", str(folder)]) == 0
    assert capsys.readouterr().out == "3 files, 40 rows: no problem\n"
    edit(folder, put("X", (3, 2), np.nan))
    assert main(["data", "verify", str(folder), "--json"]) == 1
    out, err = capsys.readouterr()
    path = folder / "part-00000.h5"
    problem = "is nan; 1 values of X are not finite"
    assert json.loads(out)["problems"] == [{"file": str(path), "where": "X[3, 2]", "problem": problem}]
    assert f"{path}: X[3, 2] {problem}\n" in err and "1 problem in 1 files" in err
    assert main(["data", "verify", str(tmp_path / "nowhere")]) == 2
