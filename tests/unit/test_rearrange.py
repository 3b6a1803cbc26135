"""Data sets are split and merged without losing a row, or what is known of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_support import ArraySource, write_dataset

from dml_hpc.cli import main
from dml_hpc.data.build import build
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.manifest import Column
from dml_hpc.data.sources.holdout import draws, held_out
from dml_hpc.data.sources.rearrange import DatasetRows, Strata, stratified
from dml_hpc.data.verification.verify import verify
from dml_hpc.errors import UserError
from dml_hpc.mpi import Alone

RNG = np.random.default_rng(11)
X = (RNG.standard_normal((50, 4)) * (RNG.random((50, 4)) < 0.5)).astype(np.float32)
Y = np.repeat([0.0, 1.0, 2.0], [5, 10, 35])[RNG.permutation(50)]


def make(folder: Path, kind: str = "dense", rows: slice = slice(None), shards: int = 3, dtype: str = "float32",
         compression: str | None = None, **about: Any) -> Path:
    folder.mkdir()
    x = X[rows]
    source = ArraySource(sparse(x) if kind == "csr" else x, Y[rows], **about)
    build(Alone(), folder, {"": source}, shards=shards, dtype=dtype, compression=compression)
    return folder


def rows_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    X, y = DatasetRows(dataset).read(0, dataset.rows)
    return (X.dense() if isinstance(X, Csr) else X), y


def table_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_any_range_of_a_data_set_is_read_across_shards(tmp_path: Path, kind: str) -> None:
    source = DatasetRows(open_dataset(make(tmp_path / "d", kind)))
    whole, _ = source.read(0, 50)
    whole = whole.dense() if isinstance(whole, Csr) else whole
    np.testing.assert_array_equal(whole, X)
    for start, stop in [(0, 0), (50, 50), (3, 4), (10, 40), (16, 17), (0, 50)]:
        x, y = source.read(start, stop)
        np.testing.assert_array_equal(x.dense() if isinstance(x, Csr) else x, whole[start:stop])
        np.testing.assert_array_equal(y, Y[start:stop])
        np.testing.assert_array_equal(source.labels(start, stop), Y[start:stop])


@pytest.mark.parametrize("kind", ["dense", "csr"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_merging_what_was_split_gives_the_rows_back(tmp_path: Path, kind: str, compression: str | None) -> None:
    folder = make(tmp_path / "d", kind, compression=compression)
    split = tmp_path / "s"
    assert main(["data", "split", str(folder), "-o", str(split), "--holdout", "0.3", "--seed", "4"]) == 0
    held = held_out(0, 50, 0.3, 4)
    x, y = rows_of(open_dataset(folder))
    for name, mask in (("train", ~held), ("test", held)):
        part = open_dataset(split / name)
        found = rows_of(part)
        np.testing.assert_array_equal(found[0], x[mask])
        np.testing.assert_array_equal(found[1], y[mask])
        assert part.manifest.compression == compression and len(part.paths) == 3
        assert part.manifest.label.values == [0, 1, 2]
    assert main(["data", "merge", str(split / "train"), str(split / "test"), "-o", str(tmp_path / "m"), "--shards", "4",
                 "--compression", "lzf", "--dtype", "float64"]) == 0
    again = open_dataset(tmp_path / "m")
    found = rows_of(again)
    np.testing.assert_array_equal(found[0], np.concatenate([x[~held], x[held]]))
    np.testing.assert_array_equal(found[1], np.concatenate([y[~held], y[held]]))
    assert (len(again.paths), again.manifest.compression, again.manifest.dtype) == (4, "lzf", "float64")
    assert verify(Alone(), [split / "train", split / "test", tmp_path / "m"]).problems == []


def test_merging_one_data_set_into_as_many_shards_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", feature_names=list("abcd"), label_missing=3, source={"fill": {"a": 1.0}})
    assert main(["data", "merge", str(folder), "-o", str(tmp_path / "m")]) == 0
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "m" / path.name).read_bytes()


def test_shuffling_gives_the_same_rows_in_another_order(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", "csr")
    assert main(["data", "merge", str(folder), "-o", str(tmp_path / "m"), "--shuffle", "--seed", "3"]) == 0
    x, y = rows_of(open_dataset(tmp_path / "m"))
    found, rows = np.column_stack([x, y]), np.column_stack([X, Y])
    assert not np.array_equal(found, rows)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], rows[np.lexsort(rows.T)])
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted(path.name for path in folder.iterdir())


def test_what_was_missing_adds_up_and_the_rest_is_kept(tmp_path: Path) -> None:
    columns = [Column("a", "numeric", None, 2), Column("c", "categorical", ["u", "v", "w"], 1)]
    about = {"feature_names": ["a", "c=u", "c=v", "c=w"], "numeric": np.array([1, 0, 0, 0], bool),
             "label_names": ["no", "yes", "maybe"], "label": "answer"}
    one = make(tmp_path / "one", rows=slice(0, 20), columns=columns, missing=np.array([2, 0, 0, 0]), label_missing=4,
               **about)
    two = make(tmp_path / "two", rows=slice(20, 50), columns=[replace(columns[0], missing=5), columns[1]],
               missing=np.array([5, 0, 0, 0]), label_missing=1, **about)
    assert main(["data", "merge", str(one), str(two), "-o", str(tmp_path / "m")]) == 0
    table, whole = table_of(tmp_path / "m"), table_of(make(tmp_path / "w", **about))
    assert [column["missing"] for column in table["columns"]] == [7, 2]
    assert table["statistics"]["missing"] == [7, 0, 0, 0]
    assert table["statistics"]["numeric"] == [True, False, False, False]
    assert table["label"] == {"name": "answer", "values": [0, 1, 2], "names": ["no", "yes", "maybe"], "missing": 5}
    for name in ("mean", "deviation", "minimum", "maximum"):
        np.testing.assert_allclose(table["statistics"][name], whole["statistics"][name], rtol=1e-12)


def test_label_values_that_no_row_has_are_kept(tmp_path: Path) -> None:
    folder = make(tmp_path / "d", label_values=[0, 1, 2, 7])
    assert main(["data", "merge", str(folder), "-o", str(tmp_path / "m")]) == 0
    assert table_of(tmp_path / "m")["label"]["values"] == [0, 1, 2, 7]


@pytest.mark.parametrize(("one", "two", "problem"), [
    ({}, {"kind": "csr"}, "one is dense, the other csr"),
    ({"feature_names": list("abcd")}, {"feature_names": list("abxd")}, "feature 2 is 'c' in one and 'x' in the other"),
    ({"feature_names": list("abcd")}, {}, "only one of them names its features"),
    ({"label": "a"}, {"label": "b"}, "the label of one is 'a', of the other 'b'"),
    ({"label_names": list("abc")}, {"label_names": list("abd")}, "the labels of one are a, b, c, of the other a, b, d"),
])
def test_what_does_not_fit_together_is_one_line(tmp_path: Path, one: Any, two: Any, problem: str,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(make(tmp_path / "one", **one)), str(make(tmp_path / "two", **two))]
    assert main(["data", "merge", *paths, "-o", str(tmp_path / "m")]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_a_stratified_split_holds_out_an_exact_share_of_every_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(4, 70_000, p=[0.9, 0.09, 0.0099, 0.0001]).astype(float)
    folder = write_dataset(tmp_path / "d", np.arange(70_000)[:, None], y, [30_000, 40_000], "float64")
    source = DatasetRows(open_dataset(folder))
    for share in (0.2, 0.5, 0.999):
        strata = Strata(source, stratified(source, share, 8))
        held = held_out(0, len(y), strata, 8)
        counts = np.bincount(y.astype(int))
        np.testing.assert_array_equal(np.bincount(y[held].astype(int), minlength=4), np.round(share * counts))
        # Of every class those with the smallest draws.
        drawn = draws(0, len(y), 8)
        for value in range(4):
            mine = np.sort(drawn[y == value])
            np.testing.assert_array_equal(np.sort(drawn[held & (y == value)]), mine[:round(share * len(mine))])
    assert main(["data", "split", str(folder), "-o", str(tmp_path / "s"), "--holdout", "0.2", "--seed", "8",
                 "--stratify"]) == 0
    test, train = (rows_of(open_dataset(tmp_path / "s" / name)) for name in ("test", "train"))
    np.testing.assert_array_equal(np.bincount(test[1].astype(int)), np.round(0.2 * counts))
    np.testing.assert_array_equal(np.sort(np.concatenate([test[0], train[0]])[:, 0]), np.arange(70_000))


def test_a_stratified_split_needs_few_label_values(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", np.zeros((200, 1)), np.arange(200), [200])
    source = DatasetRows(open_dataset(folder))
    with pytest.raises(UserError, match="--stratify needs a label of few values"):
        stratified(source, 0.5, 0)


def test_files_without_a_manifest_are_split_and_merged(tmp_path: Path) -> None:
    paths = []
    for number, rows in enumerate((slice(0, 20), slice(20, 50))):
        paths.append(tmp_path / f"{number}.h5")
        with h5py.File(paths[-1], "w") as file:
            file["inputs"], file["y"] = np.round(X[rows] * 100).astype(np.int16), Y[rows]
    given = [str(path) for path in paths]
    assert main(["data", "merge", *given, "-o", str(tmp_path / "m"), "--x-key", "inputs"]) == 0
    dataset = open_dataset(tmp_path / "m")
    np.testing.assert_array_equal(rows_of(dataset)[0], np.round(X * 100))
    assert dataset.is_imported and dataset.manifest.statistics is not None
    assert main(["data", "split", *given, "-o", str(tmp_path / "s"), "--holdout", "0.5", "--x-key", "inputs"]) == 0
    assert sum(open_dataset(tmp_path / "s" / name).rows for name in ("train", "test")) == 50


def test_a_split_that_leaves_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path / "d", rows=slice(0, 2), shards=1)
    assert main(["data", "split", str(folder), "-o", str(tmp_path / "s"), "--holdout", "0.000001"]) == 2
    assert "leaves none to test" in capsys.readouterr().err


@pytest.mark.parametrize("command", [
    ["data", "merge", "DATA", "-o", "DATA", "--overwrite", "--shards", "2"],
    ["data", "import", "DATA/part-00000.h5", "-o", "DATA", "--overwrite"],
    ["data", "split", "DATA/part-00000.h5", "-o", "DATA", "--holdout", "0.5", "--overwrite"]])
def test_nothing_that_is_read_is_ever_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               command: list[str]) -> None:
    data = write_dataset(tmp_path / "data", np.ones((20, 2)), np.arange(20) % 2, [10, 10])
    before = sorted((path.name, path.read_bytes()) for path in data.iterdir())
    assert main([word.replace("DATA", str(data)) for word in command]) == 2
    assert "would be deleted" in capsys.readouterr().err
    assert sorted((path.name, path.read_bytes()) for path in data.iterdir()) == before
