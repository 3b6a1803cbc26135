"""`data info` tells what a data set holds from its manifest and its labels."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import ArraySource, write_dataset
from rated_support import write_rated

from dml_hpc.cli import main
from dml_hpc.commands import data_info
from dml_hpc.console import Console
from dml_hpc.data.build import build
from dml_hpc.data.csr import sparse
from dml_hpc.mpi import Alone

X = np.arange(60, dtype=np.float64).reshape(12, 5) - 7
Y = np.arange(12) % 3


def test_info_counts_labels_and_lists_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [5, 0, 7])
    found = data_info.run(Console(), [folder])
    assert found["exit_code"] == 0
    assert {key: found[key] for key in ("kind", "rows", "features", "nonzeros", "shards", "shard_rows", "dtype",
                                        "compression", "hash_bits", "row_sizes", "problems")} == {
        "kind": "dense", "rows": 12, "features": 5, "nonzeros": 59, "shards": 3, "shard_rows": [5, 0, 7],
        "dtype": "float32", "compression": None, "hash_bits": None, "row_sizes": None, "problems": []}
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*.h5"))
    assert found["label"] == {"name": "label", "values": [0, 1, 2], "names": None, "missing": 0, "counts": [4, 4, 4],
                              "histogram": [[0, 0, 4], [1, 1, 4], [2, 2, 4]]}
    assert [column["name"] for column in found["columns"]] == ["x0", "x1", "x2", "x3", "x4"]
    printed = capsys.readouterr().out
    assert "12 rows × 5 features, dense float32" in printed and "3 shards of 0 to 7 rows" in printed and "x4" in printed
    assert [line.split()[:2] for line in printed.splitlines() if "#" in line] == [["0", "4"], ["1", "4"], ["2", "4"]]


def test_histograms_are_those_of_numpy_and_fit_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 60)) * (rng.random((500, 60)) < rng.random((500, 1)))
    x[7] = 0
    y = rng.standard_normal(500) * 1000
    folder = tmp_path / "d"
    folder.mkdir()
    names = [f"a rather long name of a column, number {j}" for j in range(60)]
    build(Alone(), folder, {"": ArraySource(sparse(x), y, feature_names=names)}, shards=3, dtype="float64",
          compression="gzip")
    assert main(["data", "info", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    counts, edges = np.histogram(y, 10)
    histogram = np.array(found["label"]["histogram"])
    np.testing.assert_array_equal(histogram[:, 2], counts)
    np.testing.assert_allclose(histogram[:, :2], np.stack([edges[:-1], edges[1:]], axis=1), rtol=1e-12)
    lengths = np.count_nonzero(x, axis=1)
    assert found["row_sizes"] == [[low, high, int(((lengths >= low) & (lengths <= high)).sum())] for low, high in
                                  [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64)]]
    assert found["label"]["counts"] is None and found["compression"] == "gzip"
    assert max(map(len, err.splitlines()[1:])) <= 80
    assert "… and 20 more" in err and "compression gzip" in err


def test_info_of_ratings_and_of_files_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rated(tmp_path / "r", np.arange(12) % 7, np.arange(12) % 5, Y / 2, grid=(2, 3), shards=2)
    found = data_info.run(Console(), [tmp_path / "r"])
    assert (found["kind"], found["users"], found["label"]["counts"]) == ("ratings", 7, [4, 4, 4])
    assert (found["grid"]["shape"], found["grid"]["highest"]) == ([2, 3], (Y / 2).max())
    said = capsys.readouterr().out
    assert "12 ratings, 7 users × 5 items" in said and "2 × 3 blocks" in said
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["inputs"], file["targets"] = X, np.where(Y == 0, np.nan, Y)
    found = data_info.run(Console(), [tmp_path / "f.h5"], "inputs", "targets")
    assert [part[2] for part in found["label"]["histogram"]] == [4, *[0] * 8, 4]
    assert "4 labels are not finite" in capsys.readouterr().out


def test_info_does_not_read_x(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [12])
    with h5py.File(folder / "part-00000.h5", "r+") as file:
        file["X"][0, 0] += 1
    assert data_info.run(Console(), [folder])["exit_code"] == 0
    assert main(["data", "verify", str(folder)]) == 1


def test_info_reports_what_cannot_be_read_and_counts_the_rest(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [6, 6])
    path = folder / "part-00001.h5"
    path.write_bytes(path.read_bytes()[:-60])
    found = data_info.run(Console(), [folder])
    assert [(problem["file"], problem["where"]) for problem in found["problems"]] == [(str(path), "file")]
    assert found["label"]["counts"] == [2, 2, 2] and found["exit_code"] == 1
