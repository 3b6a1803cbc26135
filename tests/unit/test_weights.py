"""Weights of rows: imported from any source, carried wherever rows go, checked, and summed."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands import data_info, data_merge, data_split
from dml_hpc.commands.learnable import open_learnable
from dml_hpc.console import Console
from dml_hpc.data.csr import Csr, sparse
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.importing import Columns, Form, MatrixKeys, import_data
from dml_hpc.data.shard import Keys
from dml_hpc.data.verification.verify import verify
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import Alone
from dml_hpc.objectives import open_objective

ROWS = 400
X = np.random.default_rng(3).standard_normal((ROWS, 3))
X[:, 0] = np.arange(ROWS)
Y = np.arange(ROWS) % 2


def weight_of(number: np.ndarray) -> np.ndarray:
    """The weight of a row by its number, which X's first column holds; exact in float32."""
    return number % 13 / 4


W = weight_of(np.arange(ROWS))


def rows_of(dataset: Dataset) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The number, weight and label of each row, in storage order."""
    numbers, weights, labels = [], [], []
    for piece in dataset.pieces(0, dataset.rows, 70):
        numbers.append((piece.X.dense() if isinstance(piece.X, Csr) else piece.X)[:, 0].copy())
        labels.append(piece.y)
        if piece.weight is not None:
            weights.append(piece.weight)
    return np.concatenate(numbers), np.concatenate(weights) if weights else None, np.concatenate(labels)


def check(folder: Path, rows: int = ROWS, dtype: str = "float32") -> None:
    """Every row has its own weight and label, and all is as the manifest says."""
    dataset = open_dataset(folder)
    assert dataset.weighted and dataset.manifest.weighted and dataset.rows == rows
    numbers, weights, y = rows_of(dataset)
    assert weights is not None and weights.dtype == dtype
    np.testing.assert_array_equal(weights, weight_of(numbers))
    np.testing.assert_array_equal(y, numbers % 2)
    assert not verify(Alone(), [folder]).problems


def write_source(folder: Path, kind: str) -> tuple[list[Path], dict[str, Any]]:
    """Write the rows as a file of some kind; return it and how to import it."""
    path = folder / f"a.{kind}"
    keys: dict[str, Any] = {"keys": MatrixKeys(weight_key="w")}
    if kind.startswith("csv"):
        text = "\n".join(["x0,w,x1,x2,y", *(f"{x[0]!r},{w!r},{x[1]!r},{x[2]!r},{y}"
                                             for x, y, w in zip(X.tolist(), Y, W.tolist(), strict=True))])
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
        return [path], {"label": "y", "weight": "w"}
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"x0": X[:, 0], "w": W, "x1": X[:, 1], "x2": X[:, 2], "y": Y}), path)
        return [path], {"label": "y", "weight": "w"}
    if kind == "npy":
        for name, array in (("a", X), ("y", Y), ("w", W)):
            np.save(folder / f"{name}.npy", array)
        return [path], {"label": str(folder / "y.npy"), "weight": str(folder / "w.npy")}
    if kind == "npz":
        np.savez_compressed(path, X=X, y=Y, w=W)
        return [path], keys
    with h5py.File(path, "w") as file:
        rows = sparse(X)
        group = file.create_group("X")
        group.attrs["shape"] = X.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(rows, name)
        file["y"], file["w"] = Y, W[:, None]
    return [path], keys


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npy", "npz", "h5"])
def test_weights_are_imported_from_any_source_and_stay_with_their_rows(tmp_path: Path, kind: str) -> None:
    if kind.startswith("csv"):
        pytest.importorskip("pyarrow")
    sources, options = write_source(tmp_path, kind)
    result = import_data(Alone(), sources, tmp_path / "plain", **options, form=Form(3))
    assert result["weighted"] and result["features"] == 3
    check(tmp_path / "plain")
    np.testing.assert_array_equal(rows_of(open_dataset(tmp_path / "plain"))[0], np.arange(ROWS))
    import_data(Alone(), sources, tmp_path / "out", **options, form=Form(3, "float64", compression="gzip"),
                holdout=0.3, shuffle=True, seed=4)
    trained, held = (open_dataset(tmp_path / "out" / part).rows for part in ("train", "test"))
    assert trained + held == ROWS and held
    check(tmp_path / "out" / "train", trained, "float64")
    check(tmp_path / "out" / "test", held, "float64")


def test_weights_are_kept_by_hashing_layouts_float16_and_like(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    sources, options = write_source(tmp_path, "csv")
    import_data(Alone(), sources, tmp_path / "hashed", **options, columns=Columns(hash_bits=8), form=Form(2))
    dataset = open_dataset(tmp_path / "hashed")
    np.testing.assert_array_equal(rows_of(dataset)[1], W)
    assert dataset.manifest.source["weight"] == "w"
    import_data(Alone(), sources, tmp_path / "csr", **options, form=Form(2, "float16", "csr"))
    check(tmp_path / "csr")
    import_data(Alone(), sources, tmp_path / "same", **options, like=tmp_path / "csr", form=Form(1))
    check(tmp_path / "same")


def test_split_and_merge_carry_weights_and_refuse_to_mix(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [150, 250], weight=W)
    common = {"shards": 2, "compression": None, "shuffle": True, "seed": 1, "overwrite": False}
    data_split.run(Alone(), Console(), [folder], tmp_path / "s", holdout=0.25, stratify=True, **common)
    check(tmp_path / "s" / "train", 300)
    check(tmp_path / "s" / "test", 100)
    data_merge.run(Alone(), Console(), [tmp_path / "s" / "train", tmp_path / "s" / "test"], tmp_path / "m",
                   dtype="float64", **common)
    check(tmp_path / "m", ROWS, "float64")
    plain = write_dataset(tmp_path / "plain", X, Y, [ROWS])
    with pytest.raises(AgreedError, match="the rows of only one have weights"):
        data_merge.run(Alone(), Console(), [folder, plain], tmp_path / "mixed", dtype=None, **common)


def test_files_without_a_manifest_have_the_weights_that_are_named(tmp_path: Path) -> None:
    path = write_source(tmp_path, "h5")[0][0]
    with h5py.File(path, "r+") as file:
        del file["w"]
        file["w"] = W.astype(">f8")
    plain, weighted = open_dataset(path), open_dataset(path, Keys(weight="w"))
    assert not plain.weighted and rows_of(plain)[1] is None
    assert weighted.weighted
    np.testing.assert_array_equal(rows_of(weighted)[1], W)
    assert open_dataset(path, Keys(weight="w"), labels=False).weighted is False
    assert data_info.run(Console(), [path], weight_key="w")["weight"] == W.sum()
    with pytest.raises(UserError, match=r"has no dataset v .*--weight-key name others"):
        open_dataset(path, Keys(weight="v"))
    with h5py.File(path, "r+") as file:
        file["w"][7] = -1
    with pytest.raises(UserError, match=r"a.h5: the weight of row 7 is -1; weights are finite and at least 0"):
        open_dataset(path, Keys(weight="w"))
    problems = verify(Alone(), [path], Keys(weight="w")).problems
    assert [(problem.where, problem.problem) for problem in problems] == \
        [("w[7]", "is -1, negative; so are 1 values")]


@pytest.mark.parametrize("value", ["-0.5", "nan", "", "inf"])
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "npz"])
def test_a_weight_that_is_none_is_one_line_with_its_row(tmp_path: Path, kind: str, value: str) -> None:
    if kind == "npz":
        bad = W.copy()
        bad[333] = float(value or "nan")
        np.savez(tmp_path / "a.npz", X=X, y=Y, w=bad)
        sources, options = [tmp_path / "a.npz"], {"keys": MatrixKeys(weight_key="w")}
        row = "the weight of row 333 is"
    else:
        pytest.importorskip("pyarrow")
        sources, options = write_source(tmp_path, kind)
        text = gzip.decompress(sources[0].read_bytes()) if kind == "csv.gz" else sources[0].read_bytes()
        lines = text.decode().split("\n")
        cells = lines[334].split(",")
        lines[334] = ",".join([cells[0], value, *cells[2:]])
        text = "\n".join(lines).encode()
        sources[0].write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
        row = "row 334 of .*: its weight .'w'. is"
    with pytest.raises(AgreedError, match=row):
        import_data(Alone(), sources, tmp_path / "out", **options, piece_bytes=2000)
    assert not (tmp_path / "out").exists()


def test_what_is_no_column_of_weights_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.csv").write_text("a,b,y\n1,u,0\n2,v,1\n")

    def refused(sources: list[Path], match: str, **options: Any) -> None:
        with pytest.raises(AgreedError, match=match):
            import_data(Alone(), sources, tmp_path / "out", **options)

    table = [tmp_path / "t.csv"]
    refused(table, "no column 'c'", label="y", weight="c")
    refused(table, "'y' is the weight; it cannot be the label", label="y", weight="y")
    refused(table, "'a' is the weight; it cannot be", label="y", weight="a", columns=Columns(numeric=["a"]))
    refused(table, "the weight column 'b' of .* holds text", label="y", weight="b")
    refused(table, "--weight-key .* not for tables", label="y", keys=MatrixKeys(weight_key="w"))
    np.savez(tmp_path / "a.npz", X=X, y=Y, w=W[:-1])
    refused([tmp_path / "a.npz"], "400 rows need as many weights", keys=MatrixKeys(weight_key="w"))
    refused([tmp_path / "a.npz"], "has no 'v'.*choose with --weight-key", keys=MatrixKeys(weight_key="v"))
    refused([tmp_path / "a.npz"], "--weight 2: the weights of a matrix's rows are a .npy file", weight="2")
    (tmp_path / "a.svm").write_text("1 1:2\n")
    refused([tmp_path / "a.svm"], "--weight is not for a.svm", weight="w.npy")
    with pytest.raises(AgreedError, match="too large for float32"):
        np.savez(tmp_path / "b.npz", X=X, y=Y, w=W * 1e300)
        import_data(Alone(), [tmp_path / "b.npz"], tmp_path / "out", keys=MatrixKeys(weight_key="w"))


def test_verify_finds_weights_that_are_missing_or_bad(tmp_path: Path) -> None:
    def places(change: Any) -> list[str]:
        folder = write_dataset(tmp_path / f"d{len(list(tmp_path.iterdir()))}", X, Y, [ROWS], weight=W)
        with h5py.File(folder / "part-00000.h5", "r+") as file:
            change(file)
        return [problem.where for problem in verify(Alone(), [folder]).problems if problem.where not in
                ("checksum", "size")]

    def replaced(weight: np.ndarray) -> Any:
        def change(file: h5py.File) -> None:
            del file["weight"]
            file["weight"] = weight
        return change

    assert places(lambda file: file.__delitem__("weight")) == ["weight"]
    assert places(replaced(W[:-1].astype("f4"))) == ["weight"]
    assert places(replaced(W)) == ["weight"], "of another type"
    assert places(lambda file: file["weight"].__setitem__(9, np.nan)) == ["weight[9]"]
    assert places(lambda file: file["weight"].__setitem__(5, -2)) == ["weight[5]"]


def sum_of_weights(dataset) -> float:
    """Return what the rows of a data set weigh, as training sees it: it divides weights by their mean."""
    learnable = open_learnable(Alone(), dataset, open_objective("linear"), None, np.dtype("float64"), None, True)
    return dataset.rows / learnable(np.zeros(1), np.ones(1))[1][0]


def test_weights_are_summed_exactly_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = np.random.default_rng(5).random(ROWS) * np.logspace(-8, 8, ROWS)
    folder = write_dataset(tmp_path / "d", X, Y, [100, 0, 300], "float64", weight=weight)
    dataset = open_dataset(folder)
    expected = math.fsum([math.fsum(weight[:100]), math.fsum(weight[100:])])
    assert sum_of_weights(dataset) == pytest.approx(expected, rel=1e-15)
    assert data_info.run(Console(), [folder])["weight"] == expected
    assert f"rows have weights, which add up to {expected:.10g}" in capsys.readouterr().out
    plain = write_dataset(tmp_path / "plain", X, Y, [ROWS])
    assert data_info.run(Console(), [plain])["weight"] is None
    nothing = write_dataset(tmp_path / "nothing", X, Y, [ROWS], weight=np.zeros(ROWS))
    with pytest.raises(AgreedError, match="weigh 0; give weights above 0"):
        sum_of_weights(open_dataset(nothing))


def test_a_manifest_from_before_there_were_weights_is_read(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [ROWS])
    table = json.loads((folder / "manifest.json").read_text())
    assert table.pop("weighted") is False
    (folder / "manifest.json").write_text(json.dumps(table))
    assert not open_dataset(folder).weighted
    table["weighted"] = "yes"
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="weighted is not described"):
        open_dataset(folder)


def test_a_shard_whose_weights_are_gone_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d", X, Y, [ROWS])
    table = json.loads((folder / "manifest.json").read_text())
    table["weighted"] = True
    (folder / "manifest.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="has no dataset weight"):
        open_dataset(folder).shard(0)
