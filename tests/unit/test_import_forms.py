"""Import: cuts of text, hashed features, text, sparse rows, patterns of files, and what the options refuse."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.feature_extraction import FeatureHasher
from sklearn.utils import murmurhash3_32
from tables_support import contents, import_table, read_all, write_csv

from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import Form, import_data
from dml_hpc.data.sources.cuts import cut
from dml_hpc.data.sources.holdout import Held
from dml_hpc.data.sources.parse import Wanted, parsed
from dml_hpc.data.sources.source import About
from dml_hpc.data.sources.tables import open_table
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.hashing import murmur3
from dml_hpc.mpi import Alone

WORDS = ["a\nb", "x,y", 'said ""hi""\n', "\n\n", '""', "plain"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_text_is_never_cut_within_quotes(tmp_path: Path, line_end: str) -> None:
    draw = random.Random(line_end)
    for _ in range(60):
        cells = [draw.choice([f'"{draw.choice(WORDS)}"', 'in"ch', str(draw.randint(0, 9999))]) for _ in range(60)]
        rows = [",".join(cells[i:i + 2]) for i in range(0, 2 * draw.randint(1, 30), 2)]
        (tmp_path / "t.csv").write_text(line_end.join(["a,b", *rows]) + line_end * draw.randint(0, 1), newline="")
        wanted = pa.csv.read_csv(
            tmp_path / "t.csv", parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(strings_can_be_null=True,
                                                  column_types=dict.fromkeys("ab", pa.string())))
        table = open_table([tmp_path / "t.csv"])
        columns = Wanted([], ["a", "b"], [], "a", table.kinds)
        for piece_bytes in (5, 40, 1 << 20):
            pieces = cut(Alone(), table.sources, piece_bytes)
            assert piece_bytes > 40 or len(pieces) > 1 or table.bytes < 200
            found = [row for piece in pieces for rows in parsed(table.sources[0], piece, columns)
                     for row in rows.table.to_pylist()]
            assert found == wanted.to_pylist()


def test_the_piece_size_changes_nothing_but_where_errors_are_found(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    table = {"n": draw.normal(size=5000).tolist(), "c": draw.choice(["a", '"b\nb"', "NA"], 5000).tolist(),
             "y": draw.integers(0, 2, 5000).tolist()}
    path = write_csv(tmp_path / "t.csv", table)
    import_table([path], tmp_path / "whole", label="y", holdout=0.4, dtype="float64")
    import_table([path], tmp_path / "pieces", label="y", holdout=0.4, dtype="float64", piece_bytes=3000)
    want, found = read_all(tmp_path / "whole" / "train"), read_all(tmp_path / "pieces" / "train")
    np.testing.assert_allclose(found[0], want[0], rtol=1e-14)
    np.testing.assert_array_equal(found[1], want[1])
    table["n"][4321] = "many"
    write_csv(path, table)
    for piece_bytes in (3000, 1 << 20):
        with pytest.raises(AgreedError, match=r"'many', row 4,323 of"):
            import_table([path], tmp_path / "bad", label="y", numeric=["n"], piece_bytes=piece_bytes)


@pytest.mark.parametrize("length", range(9))
def test_murmur3_is_scikit_learns(length: int) -> None:
    key = np.random.default_rng(length).integers(0, 256, length, np.uint8)
    assert murmur3(key, length) == murmurhash3_32(key.tobytes(), 0, positive=True)


MIXED: dict[str, list[Any]] = {
    "size": [1.5, 0.0, None, -2.0, 4.0], "city": ["Ürzig", "Zell", None, "Ürzig", "Aachen"], "hour": [1, 2, 3, None, 1],
    "body": ["The cat, the CAT; über 2 cats_and", None, "cat!", "  ", "é é é"], "y": [0, 1, 0, 1, 1]}


@pytest.mark.parametrize("bits", [1, 4, 20])
def test_hashed_features_are_scikit_learns(tmp_path: Path, bits: int) -> None:
    pq.write_table(pa.table(MIXED), tmp_path / "t.parquet")
    import_table([tmp_path / "t.parquet"], tmp_path / "out", label="y", numeric=["size"], categorical=["city", "hour"],
                 text=["body"], hash_bits=bits, dtype="float64")
    rows = []
    for size, city, hour, body in zip(*[MIXED[name] for name in ("size", "city", "hour", "body")], strict=True):
        row = [("size", np.mean([1.5, 0, -2, 4]) if size is None else size)]
        row += [(f"{name}={value}", 1) for name, value in (("city", city), ("hour", hour)) if value is not None]
        row += [(f"body={word}", 1) for word in re.findall(r"[^\W_]+", (body or "").lower())]
        rows.append(row)
    want = FeatureHasher(1 << bits, input_type="pair").transform(rows)
    manifest = open_dataset(tmp_path / "out").manifest
    assert (manifest.kind, manifest.hash_bits, manifest.feature_names) == ("csr", bits, None)
    assert [(column.kind, column.missing) for column in manifest.columns] == [
        ("numeric", 1), ("categorical", 1), ("categorical", 1), ("text", 1)]
    if bits <= 4:
        np.testing.assert_allclose(read_all(tmp_path / "out")[0], want.toarray(), atol=1e-15)
    dataset = open_dataset(tmp_path / "out")
    X = next(iter(dataset.pieces(0, dataset.rows))).X
    assert all(len(set(X[i:i + 1].packed().indices)) == X[i:i + 1].nonzeros for i in range(len(X)))
    for i, row in enumerate(want):
        row.sum_duplicates()
        mine = X[i:i + 1].packed()
        order = np.argsort(mine.indices)
        kept = mine.data[order] != 0
        np.testing.assert_array_equal(mine.indices[order][kept], row.indices[row.data != 0])
        np.testing.assert_allclose(mine.data[order][kept], row.data[row.data != 0])


def test_hashed_data_can_be_imported_alike_and_dense(tmp_path: Path) -> None:
    pq.write_table(pa.table(MIXED), tmp_path / "t.parquet")
    options = {"label": "y", "hash_bits": 5, "categorical": ["city"], "numeric": ["size"]}
    import_table([tmp_path / "t.parquet"], tmp_path / "csr", **options)
    import_table([tmp_path / "t.parquet"], tmp_path / "dense", **options, layout="dense")
    import_table([tmp_path / "t.parquet"], tmp_path / "like", label="y", like=tmp_path / "csr")
    assert open_dataset(tmp_path / "dense").manifest.kind == "dense"
    np.testing.assert_array_equal(read_all(tmp_path / "dense")[0], read_all(tmp_path / "csr")[0])
    assert contents(tmp_path / "like") == contents(tmp_path / "csr")


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_sparse_rows_are_the_dense_ones(tmp_path: Path, holdout: float) -> None:
    draw = np.random.default_rng(2)
    path = write_csv(tmp_path / "t.csv", {
        "c": draw.choice(["a", "b", "NA"], 300).tolist(), "n": draw.integers(-1, 2, 300).tolist(),
        "y": draw.choice(["no", "yes"], 300).tolist()})
    found = {}
    for layout in ("dense", "csr"):
        import_table([path], tmp_path / layout, label="y", layout=layout, holdout=holdout, shards=2)
        place = tmp_path / layout / "train" if holdout else tmp_path / layout
        found[layout] = (*read_all(place), open_dataset(place).manifest)
    for dense, csr in zip(found["dense"][:2], found["csr"][:2], strict=True):
        np.testing.assert_array_equal(dense, csr)
    dense, csr = found["dense"][2], found["csr"][2]
    assert (csr.kind, csr.nonzeros, csr.feature_names) == ("csr", dense.nonzeros, dense.feature_names)
    np.testing.assert_allclose(csr.statistics.deviation, dense.statistics.deviation, rtol=1e-6)


def test_patterns_name_files_in_order(tmp_path: Path) -> None:
    for i in (10, 9, 8):
        write_csv(tmp_path / f"p{i:02d}.csv", {"n": [i, i], "y": [0, 1]})
    result = import_table([str(tmp_path / "p*.csv")], tmp_path / "out", label="y")
    assert result["rows"] == 6
    np.testing.assert_array_equal(read_all(tmp_path / "out")[0][:, 0], [8, 8, 9, 9, 10, 10])


@pytest.mark.parametrize("compression", ["gzip", "lzf", "blosc2", "zstd"])
def test_shuffled_and_compressed_rows_are_the_same_rows(tmp_path: Path, compression: str) -> None:
    path = write_csv(tmp_path / "t.csv", {"n": list(range(500)), "y": [i % 7 for i in range(500)]})
    import_table([path], tmp_path / "out", label="y", shuffle=True, seed=4, compression=compression, holdout=0.2)
    X, y = read_all(tmp_path / "out" / "train")
    held = np.random.Generator(np.random.PCG64(4)).random(500) < 0.2
    np.testing.assert_array_equal(np.sort(X[:, 0]), np.flatnonzero(~held))
    np.testing.assert_array_equal(y, X[:, 0] % 7)
    assert not np.array_equal(X[:, 0], np.flatnonzero(~held))
    assert open_dataset(tmp_path / "out" / "train").manifest.compression == compression


class Counted:
    """Row i holds i, and its label is i."""

    kind, features = "dense", 1

    def __init__(self, rows: int):
        self.rows, self.about = rows, About()

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows."""
        return np.arange(start, stop, dtype=float)[:, None], np.arange(start, stop, dtype=float)


@pytest.mark.parametrize(("rows", "share"), [(200_000, 0.3), (200_000, 1e-4), (65_536, 0.5), (1, 0.5), (0, 0.5)])
def test_any_range_of_what_is_held_out(rows: int, share: float) -> None:
    drawn = np.random.Generator(np.random.PCG64(1)).random(rows) < share
    for held in (False, True):
        part, want = Held(Counted(rows), share, 1, held), np.flatnonzero(drawn == held)
        assert part.rows == len(want)
        for start in np.linspace(0, len(want), 7, dtype=int).tolist():
            for stop in {start, min(start + 1, len(want)), min(start + 70_000, len(want)), len(want)}:
                X, y = part.read(start, stop)
                np.testing.assert_array_equal(X[:, 0], want[start:stop])
                np.testing.assert_array_equal(y, want[start:stop])


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"label": None}, "--label is needed"),
    "text without hashing": ({"text": ["c"]}, "--text needs --hash-bits"),
    "keys of a matrix": ({"x_key": "X"}, "--x-key.* not for tables"),
    "long dense rows": ({"hash_bits": 20, "layout": "dense"}, "--layout dense"),
    "nothing matches": ({"sources": ["nowhere*.csv"]}, "no file matches"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_options_that_do_not_fit_are_one_line(tmp_path: Path, mistake: str) -> None:
    options, message = MISTAKES[mistake]
    path = write_csv(tmp_path / "t.csv", {"n": [1, 2], "c": ["a", "b"], "y": [0, 1]})
    with pytest.raises(AgreedError, match=message):
        import_table(**{"sources": [path], "output": tmp_path / "out", "label": "y", **options})


def test_matrices_are_imported_too(tmp_path: Path) -> None:
    (tmp_path / "t.svm").write_text("1 1:2 3:4\n0 2:1\n")
    write_csv(tmp_path / "t.csv", {"n": [1], "y": [0]})
    result = import_table([tmp_path / "t.svm"], tmp_path / "out", features=5)
    assert (result["kind"], result["features"], result["rows"]) == ("csr", 5, 2)
    np.testing.assert_array_equal(read_all(tmp_path / "out")[0], [[2, 0, 4, 0, 0], [0, 1, 0, 0, 0]])
    import_table([tmp_path / "t.svm"], tmp_path / "dense", layout="dense", like=tmp_path / "out")
    np.testing.assert_array_equal(read_all(tmp_path / "dense")[0], read_all(tmp_path / "out")[0])
    with pytest.raises(AgreedError, match="one after the other"):
        import_table([tmp_path / "t.csv", tmp_path / "t.svm"], tmp_path / "bad", label="y")


def test_what_is_missing_in_a_matrix_becomes_the_mean_of_the_training_rows(tmp_path):
    rng = np.random.default_rng(1)
    X = rng.normal([0, 5, -2], size=(400, 3))
    X[rng.random(X.shape) < 0.2] = np.nan
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", np.arange(400.0))
    options = {"label": str(tmp_path / "y.npy"), "form": Form(dtype="float64")}
    import_data(Alone(), [tmp_path / "x.npy"], tmp_path / "out", holdout=0.3, seed=4, **options)
    held = np.random.Generator(np.random.PCG64(4)).random(400) < 0.3
    mean = np.nanmean(X[~held], axis=0)
    for name, rows in (("train", ~held), ("test", held)):
        part = open_dataset(tmp_path / "out" / name)
        (piece,) = part.pieces(0, part.rows)
        np.testing.assert_array_equal(piece.y, np.flatnonzero(rows))
        np.testing.assert_allclose(piece.X, np.where(np.isnan(X), mean, X)[rows], rtol=1e-12)
        np.testing.assert_array_equal(part.manifest.statistics.missing, np.isnan(X)[rows].sum(axis=0))
    np.save(tmp_path / "new.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "new_y.npy", np.zeros(2))
    import_data(Alone(), [tmp_path / "new.npy"], tmp_path / "new", label=str(tmp_path / "new_y.npy"),
                like=tmp_path / "out" / "train", form=Form(dtype="float64"))
    (piece,) = open_dataset(tmp_path / "new").pieces(0, 2)
    np.testing.assert_allclose(piece.X, [open_dataset(tmp_path / "out" / "train").manifest.statistics.mean] * 2)


def test_new_libsvm_rows_are_numbered_as_those_they_are_like(tmp_path):
    (tmp_path / "a.svm").write_text("1 0:1 3:4\n-1 1:2\n")
    (tmp_path / "b.svm").write_text("1 1:7\n")  # alone, it would be taken to begin with 1
    import_data(Alone(), [tmp_path / "a.svm"], tmp_path / "a")
    import_data(Alone(), [tmp_path / "b.svm"], tmp_path / "b", like=tmp_path / "a")
    (piece,) = open_dataset(tmp_path / "b").pieces(0, 1)
    np.testing.assert_array_equal(piece.X.dense(), [[0, 7, 0, 0]])
