"""Data sets: what is written is what is read, mapped where it can be, and what is broken is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.shard import DenseShard, open_shard
from dml_hpc.data.writer import ALIGNMENT_BYTES, open_writer
from dml_hpc.errors import UserError
from dml_hpc.files import file_sha256

X = np.arange(60, dtype=np.float64).reshape(12, 5) - 7
Y = np.arange(12) % 3


def is_mapped(array: np.ndarray) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_shard_roundtrip_is_mapped_without_a_copy(tmp_path: Path, dtype: str) -> None:
    with open_writer(tmp_path / "part.h5", "dense", 12, 5, dtype) as writer:
        writer.append(X[:7], Y[:7])
        assert writer.free == 5
        writer.append(X[7:], Y[7:])
        writer.close()
        entry = writer.entry()
    assert (entry.rows, entry.nonzeros) == (12, 59)
    assert entry.sha256 == file_sha256(tmp_path / "part.h5")
    shard = open_shard(tmp_path / "part.h5")
    assert isinstance(shard, DenseShard)
    x, y = shard.whole(), shard.y()
    assert x.dtype == dtype and y.dtype == ("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    assert shard.mappable and is_mapped(x)
    shard.close()
    with h5py.File(tmp_path / "part.h5") as file:
        assert file["X"].id.get_offset() % ALIGNMENT_BYTES == 0


@pytest.mark.parametrize("compression", [None, "gzip", "lzf", "blosc2", "zstd"])
@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_what_is_written_is_read_in_any_kind_and_compression(tmp_path: Path, kind: str, compression: str) -> None:
    if compression in ("blosc2", "zstd"):
        pytest.importorskip("hdf5plugin")
    x: np.ndarray | Csr = X if kind == "dense" else sparse(X)
    dataset = open_dataset(write_dataset(tmp_path / "d", x, Y, [5, 0, 7], compression=compression))
    assert dataset.shard(0).mappable == (compression is None)
    for start, stop in [(0, 12), (3, 9), (5, 5)]:
        found, labels = whole(dataset, start, stop)
        np.testing.assert_array_equal(found, X[start:stop])
        np.testing.assert_array_equal(labels, Y[start:stop])


def test_writing_to_a_mapped_shard_does_not_reach_the_file(tmp_path: Path) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d", X, Y, [12]))
    before = file_sha256(tmp_path / "d" / "part-00000.h5")
    x = dataset.shard(0).whole()
    assert isinstance(x, np.ndarray)
    x[:] = 0
    assert file_sha256(tmp_path / "d" / "part-00000.h5") == before


@pytest.mark.parametrize("how", [{"chunks": (4, 2)}, {"chunks": (4, 5), "compression": "gzip"}, {"dtype": ">f4"},
                                 {"dtype": "i2"}])
def test_other_layouts_are_read(tmp_path: Path, how: dict[str, object]) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("X", data=X, **{"dtype": "f4", **how})
        file.create_dataset("y", data=Y.astype(np.float32))
    x, y = whole(open_dataset(tmp_path / "part.h5"), 0, 12)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)
    assert not is_mapped(x)


def break_shard(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-60])
    elif how == "cut to its head":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "no HDF5":
        path.write_bytes(b"not HDF5" * 1000)
    else:
        with h5py.File(path, "w") as file:
            file["X"] = X[:3, :4] if how == "misshapen" else X
            file["y" if how == "misshapen" else "z"] = Y[:3]


BROKEN = ["missing", "cut short", "cut to its head", "no HDF5", "misshapen", "without y"]


@pytest.mark.parametrize("how", BROKEN)
def test_broken_shards_are_named(tmp_path: Path, how: str) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d", X, Y, [6, 6]))
    break_shard(tmp_path / "d" / "part-00001.h5", how)
    dataset.shard(0)
    with pytest.raises(UserError, match=r"part-00001\.h5") as raised:
        dataset.shard(1)
    assert "\n" not in str(raised.value)


def damage_shard(path: Path, how: str) -> None:
    """Write a shard that claims the right shape, or nearly, and is not what its manifest says."""
    with h5py.File(path, "w") as file:
        x: Any = X[:6].astype(np.float32)
        if how == "X is a group":
            file.create_group("X")
        elif how == "X is a link to nothing":
            file["X"] = h5py.SoftLink("/nowhere")
        elif how == "X is in another file":
            file["X"] = h5py.ExternalLink("part-00000.h5", "/X")
        elif how.startswith("X claims"):
            file.create_dataset("X", (6, 5), "f4", chunks=(6, 5) if how.endswith("chunks") else None)
        elif how == "X is hostile":
            file.create_dataset("X", (10**9, 1000), "f4")
        elif how.startswith("X of "):
            file["X"] = x.astype(how.removeprefix("X of "))
        else:
            file["X"] = x
        if how == "y is a group":
            file.create_group("y")
        elif how == "y is a scalar":
            file["y"] = 3.0
        elif how == "y is empty":
            file["y"] = h5py.Empty("f4")
        elif how.startswith("y of "):
            file["y"] = Y[:6].astype(how.removeprefix("y of "))
        else:
            file["y"] = Y[:6].astype(np.float32)


DAMAGED = ["X is a group", "X is a link to nothing", "X is in another file", "X claims what it lacks",
           "X claims what it lacks, in chunks", "X is hostile", "X of f8", "X of i4", "X of S8", "X of c8",
           "y is a group", "y is a scalar", "y is empty", "y of S8", "y of c8", "y of ?"]


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_shards_are_one_line(tmp_path: Path, how: str) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [6, 6])
    damage_shard(folder / "part-00001.h5", how)
    with pytest.raises(UserError, match=r"part-00001\.h5") as raised:
        open_dataset(folder).shard(1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("chunks", [None, (1000, 1000)])
def test_a_hostile_size_that_the_manifest_confirms_is_never_allocated(tmp_path: Path, chunks: Any) -> None:
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file.create_dataset("X", (10**9, 1000), "f4", chunks=chunks)
        file.create_dataset("y", (10**9,), "f4", chunks=chunks and (1000,))
    with pytest.raises(UserError, match="does not hold all that /X claims"):
        open_shard(tmp_path / "part.h5")


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AttributeError, ValueError, TypeError, MemoryError,
                                   OverflowError, OSError])
def test_whatever_the_reader_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                error: type[Exception]) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error()

    dataset = open_dataset(write_dataset(tmp_path / "d", X, Y, [12]))
    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(UserError, match=f"cannot be read as HDF5: {error.__name__}"):
        dataset.shard(0)


def whole(dataset: Dataset, start: int, stop: int, most_rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return dense copies of a range of rows, having looked at how they were cut."""
    found, first = [], start
    for piece in dataset.pieces(start, stop, most_rows):
        assert piece.first == first and 0 < len(piece.y) <= (most_rows or 12) and len(piece.X) == len(piece.y)
        found.append((piece.X.dense() if isinstance(piece.X, Csr) else piece.X.copy(), piece.y.copy()))
        first += len(piece.y)
    assert first == stop
    return (np.concatenate([X[:0], *(x for x, _ in found)]), np.concatenate([Y[:0], *(y for _, y in found)]))


@pytest.mark.parametrize("shards", [[12], [5, 7], [0, 4, 0, 0, 1, 7, 0]])
@pytest.mark.parametrize("most_rows", [None, 1, 3, 100])
def test_pieces_cover_any_range_across_shards(tmp_path: Path, shards: list[int], most_rows: int | None) -> None:
    dataset = open_dataset(write_dataset(tmp_path / "d", X, Y, shards))
    for start in range(13):
        for stop in range(start, 13):
            x, y = whole(dataset, start, stop, most_rows)
            np.testing.assert_array_equal(x, X[start:stop])
            np.testing.assert_array_equal(y, Y[start:stop])


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    write_dataset(tmp_path / "test", X, Y, [12])
    with pytest.raises(UserError, match=r"did you mean .*test"):
        open_dataset(tmp_path)
    manifest = tmp_path / "test" / "manifest.json"
    manifest.write_text(manifest.read_text()[:200])
    with pytest.raises(UserError, match="import the data again"):
        open_dataset(tmp_path / "test")


def change(*keys: Any, to: Any) -> Callable[[Any], None]:
    def apply(table: Any) -> None:
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = to
    return apply


DAMAGED_MANIFESTS: dict[str, Callable[[Any], None]] = {
    **{f"{name} of {value}": change("statistics", name, 0, to=value)
       for name in ("mean", "deviation", "minimum", "maximum")
       for value in (float("nan"), float("inf"), True, "1", None, 10**400)},
    "a negative deviation": change("statistics", "deviation", 0, to=-1.0),
    "a negative missing": change("statistics", "missing", 0, to=-1),
    "a missing of true": change("statistics", "missing", 0, to=True),
    "a fraction missing": change("statistics", "missing", 0, to=0.5),
    "numeric of 1": change("statistics", "numeric", 0, to=1),
    "a name of 1": change("feature_names", 0, to=1),
    "another name": change("feature_names", 0, to="other"),
    "huge rows": lambda table: table.update(rows=2**53 + 1, shards=[{**table["shards"][0], "rows": 2**53 + 1}]),
    "rows of true": change("rows", to=True),
    "format of a list": change("format", to=[1]),
    "no features": lambda table: table.update(
        features=0, columns=[], feature_names=[], statistics={name: [] for name in table["statistics"]}),
    "statistics of a list": change("statistics", to=[]),
    "statistics elsewhere": change("statistics", to={"file": "../statistics.h5", "sha256": ""}),
    "another kind": change("kind", to="sparse"),
    "hash bits that do not fit": change("hash_bits", to=3),
    "a compression of 1": change("compression", to=1),
    "source of a list": change("source", to=[]),
    "fill of words": change("source", to={"fill": {"x0": "1"}}),
    "a column of another kind": change("columns", 0, "kind", to="ordinal"),
    "a column named 1": change("columns", 0, "name", to=1),
    "a numeric column of words": change("columns", 0, "categories", to=["a"]),
    "a categorical column without": change("columns", 0, "kind", to="categorical"),
    "a column missing -1": change("columns", 0, "missing", to=-1),
    "a column less": lambda table: table["columns"].pop(),
    "columns of words": change("columns", to=["x0"]),
    "a label of NaN": change("label", "values", to=[0, float("nan")]),
    "a label of booleans": change("label", "values", to=[False, True]),
    "a label of words": change("label", "values", to="01"),
    "label names of numbers": change("label", "names", to=[0, 1]),
    "a label missing half": change("label", "missing", to=0.5),
    "a shard elsewhere": change("shards", 0, "file", to="../part-00000.h5"),
    "a shard above": change("shards", 0, "file", to=".."),
    "a shard of two lines": change("shards", 0, "file", to="part\n.h5"),
    "an unknown key": lambda table: table.update({"a\nb": 1}),
}


@pytest.mark.parametrize("how", DAMAGED_MANIFESTS)
def test_damaged_manifests_are_one_line(tmp_path: Path, how: str) -> None:
    path = write_dataset(tmp_path / "d", X, Y, [12]) / "manifest.json"
    table = json.loads(path.read_text())
    DAMAGED_MANIFESTS[how](table)
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=r"manifest\.json (is not a whole manifest|has format)") as raised:
        open_dataset(tmp_path / "d")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 100_000, '{"format":' * 100_000, "", "{", "9" * 5000])
def test_manifests_of_another_form_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json .*import the data again") as raised:
        open_dataset(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["read_text", "is_file", "exists"])
def test_a_manifest_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     method: str) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    write_dataset(tmp_path / "d", X, Y, [12])
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: .*Permission denied"):
        open_dataset(tmp_path / "d")
