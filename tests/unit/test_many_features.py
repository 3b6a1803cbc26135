"""More features than can be counted one by one: no statistics, and no memory for each of them."""

from __future__ import annotations

import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

from dml_hpc.commands import data_import, data_info, data_merge
from dml_hpc.console import Console
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import open_dataset
from dml_hpc.data.importing import Columns, Form, import_data
from dml_hpc.data.statistics import MOST_COUNTED
from dml_hpc.data.totals import with_statistics
from dml_hpc.data.verification.verify import verify
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone

BITS = 30
ROWS = 60


@pytest.fixture(scope="module", autouse=True)
def _compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Kernels are compiled before memory is traced, under which that takes a minute."""
    for imported in (libsvm, table, matrix) if find_spec("pyarrow") else (libsvm, matrix):
        check(imported(tmp_path_factory.mktemp(imported.__name__)))


@pytest.fixture(autouse=True)
def _little_memory(_compiled):
    """What NumPy allocates stays far below a byte a feature."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 256 << 20


def check(folder: Path) -> Csr:
    """All is well, and nothing is counted for each feature; return the rows."""
    dataset = open_dataset(folder)
    assert dataset.features > MOST_COUNTED and not dataset.countable
    assert dataset.manifest.statistics is None and dataset.manifest.feature_names is None
    assert with_statistics(Alone(), dataset).manifest.statistics is None
    assert not verify(Alone(), [folder]).problems
    piece = next(iter(dataset.pieces(0, dataset.rows, dataset.rows)))
    assert isinstance(piece.X, Csr)
    return piece.X


def libsvm(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    (folder / "a.svm").write_text("".join(
        f"{i % 2} " + " ".join(f"{j}:1.5" for j in np.unique(rng.integers(1, 1 << 31, 20))) + "\n"
        for i in range(ROWS)))
    data_import.run(Alone(), Console(), sources=[str(folder / "a.svm")], output=folder / "out", label=None,
                    weight=None, categorical=(), numeric=(), text=(), drop=(), hash_bits=BITS, x_key=None, y_key=None,
                    weight_key=None, features=None, holdout=0.0, seed=0, shuffle=False, shards=1, dtype="float32",
                    layout="auto", compression="none", like=None, overwrite=False)
    return folder / "out"


def table(folder: Path) -> Path:
    (folder / "t.csv").write_text("y,t,n,c\n" + "".join(f"{i % 2},a{i} b{i % 7} b{i % 7},{i},k{i % 3}\n"
                                                       for i in range(ROWS)))
    import_data(Alone(), [folder / "t.csv"], folder / "out", label="y", form=Form(1),
                columns=Columns(text=["t"], numeric=["n"], categorical=["c"], hash_bits=BITS))
    return folder / "out"


def matrix(folder: Path, value: float = 2.0) -> Path:
    with h5py.File(folder / "a.h5", "w") as file:
        group = file.create_group("X")
        group.attrs["shape"] = (3, 1 << BITS)
        group["data"], group["indices"], group["indptr"] = [1.0, value, 3.0], [5, 1 << 29, 7], [0, 1, 2, 3]
        file["y"] = [0.0, 1.0, 0.0]
    import_data(Alone(), [folder / "a.h5"], folder / "out", form=Form(1))
    return folder / "out"


def test_hashed_libsvm_is_imported_told_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    libsvm(tmp_path)
    rows = check(tmp_path / "out")
    assert rows.features == 1 << BITS and rows.indices.max() > 1 << 29
    assert set(np.abs(rows.data).tolist()) <= {1.5, 3.0} and rows.nonzeros >= ROWS * 19
    assert data_info.run(Console(), [tmp_path / "out"])["statistics"] is False
    assert capsys.readouterr().out.count("too many features for statistics") == 2
    data_merge.run(Alone(), Console(), [tmp_path / "out"], tmp_path / "merged", 2, None, None, True, 1, False)
    dataset = open_dataset(tmp_path / "merged")
    assert dataset.rows == ROWS and dataset.manifest.statistics is None
    import_data(Alone(), [tmp_path / "a.svm"], tmp_path / "like", like=tmp_path / "out", form=Form(1))
    np.testing.assert_array_equal(check(tmp_path / "like").indices, rows.indices)


def test_hashed_tables_are_imported(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rows = check(table(tmp_path))
    np.testing.assert_array_equal(np.diff(rows.indptr)[1:], 4)
    assert sorted(np.abs(rows.data[rows.indptr[5]:rows.indptr[6]]).tolist()) == [1, 1, 2, 5]


def test_sparse_matrices_are_imported_where_nothing_is_missing(tmp_path: Path) -> None:
    assert check(matrix(tmp_path)).indices.tolist() == [5, 1 << 29, 7]
    (tmp_path / "bad").mkdir()
    with pytest.raises(AgreedError, match=r"row 1, column 536870912 holds nan; mend it or leave it out"):
        matrix(tmp_path / "bad", np.nan)


def test_dense_rows_of_so_many_features_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.ones((1, MOST_COUNTED + 1), np.int8), y=[1.0])
    with pytest.raises(AgreedError, match=r"dense rows of 16,777,217 features are too long.*--layout csr"):
        import_data(Alone(), [tmp_path / "a.npz"], tmp_path / "out", form=Form(1))
