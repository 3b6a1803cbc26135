"""The Gram SVD against LAPACK in float64, at any number of ranks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import data_support
import h5py
import numpy as np
import pytest
import scipy.linalg

from dml_hpc import __version__
from dml_hpc.comm import REDUCERS, open_reducer
from dml_hpc.commands import svd
from dml_hpc.console import Console
from dml_hpc.data.dataset import open_dataset
from dml_hpc.decomposition.svd import gram
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.store.factors import read_factors

pytestmark = pytest.mark.mpi


@pytest.fixture
def folder(comm) -> Iterator[Path]:
    """A folder that all ranks see; pytest's own would be one a rank, tidied away by another."""
    path = Path(comm.bcast(tempfile.mkdtemp() if comm.rank == 0 else None))
    yield path
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


def write_dataset(comm, path: Path, X: np.ndarray, shards: int = 3) -> Path:
    """Rank 0 writes X in shards, the last one shorter or empty."""
    if comm.rank == 0:
        rows = len(X)
        cuts = [min(rows, i * (-(-rows // shards) + 1)) for i in range(shards)] + [rows]
        data_support.write_dataset(path, X, np.zeros(rows), np.diff(cuts).tolist(), str(X.dtype))
    comm.Barrier()
    return path


def matrix(rows: int, spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """A float64 matrix (rows, len(spectrum)) with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((rows, len(spectrum))))[0]
    V = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
    return U * spectrum @ V.T


def factorise(comm, path: Path, k: int, reducer: str = "ring") -> gram.SvdResult:
    return gram.truncated_svd(comm, open_dataset(path), k, partial(open_reducer, reducer), Console(rank=comm.rank))


def residuals(X: np.ndarray, found: gram.SvdResult) -> np.ndarray:
    U = X @ found.V / found.singular_values
    return np.linalg.norm(X.T @ U - found.V * found.singular_values, axis=0) / found.singular_values[0]


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_matches_lapack(comm, folder, dtype, reducer):
    X = matrix(501, 1 / np.sqrt(np.arange(1, 41))).astype(dtype)
    found = factorise(comm, write_dataset(comm, folder / "m", X), 10, reducer)
    exact = X.astype(np.float64)
    sigma, V = scipy.linalg.svd(exact, full_matrices=False)[1:]
    np.testing.assert_allclose(found.singular_values, sigma[:10], rtol=1e-12)
    np.testing.assert_allclose(found.V.T @ found.V, np.eye(10), atol=1e-13)
    assert np.abs(np.sum(found.V * V[:10].T, axis=0)).min() > 1 - 1e-9  # each vector, up to its sign
    assert scipy.linalg.subspace_angles(found.V, V[:10].T).max() < 1e-6
    np.testing.assert_allclose(found.relative_residuals, residuals(exact, found), atol=1e-14)
    assert found.relative_residuals.max() < 1e-13


def test_all_ranks_hold_the_same_bits_and_signs(comm, folder):
    found = factorise(comm, write_dataset(comm, folder / "m", matrix(300, np.arange(20.0, 0, -1))), 20)
    for part in (found.V, found.singular_values, found.relative_residuals):
        assert len(set(comm.allgather(part.tobytes()))) == 1
    largest = np.argmax(np.abs(found.V), axis=0)
    assert (found.V[largest, np.arange(20)] > 0).all()


def test_the_same_on_one_rank_as_on_all(comm, folder):
    path = write_dataset(comm, folder / "m", matrix(300, 1 / np.arange(1.0, 21)).astype("float32"))
    alone = comm.Split(comm.rank)
    together, by_itself = factorise(comm, path, 5), factorise(alone, path, 5)
    alone.Free()
    np.testing.assert_allclose(together.V, by_itself.V, atol=1e-9)
    np.testing.assert_allclose(together.singular_values, by_itself.singular_values, rtol=1e-12)


def test_small_blocks_and_many_shards(comm, folder, monkeypatch):
    monkeypatch.setattr(gram, "BLOCK_BYTES", 1)
    monkeypatch.setattr(gram, "LEAST_BLOCK_ROWS", 7)
    X = matrix(200, np.linspace(3, 1, 12))
    found = factorise(comm, write_dataset(comm, folder / "m", X, shards=9), 12)
    np.testing.assert_allclose(found.singular_values, np.linspace(3, 1, 12), rtol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_more_ranks_than_rows_and_wide_matrices(comm, folder, rows):
    X = np.random.default_rng(1).standard_normal((rows, 6))
    found = factorise(comm, write_dataset(comm, folder / "m", X), rows)
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(X)[1], rtol=1e-12)
    assert found.relative_residuals.max() < 1e-13


def test_one_feature(comm, folder):
    found = factorise(comm, write_dataset(comm, folder / "m", -np.arange(5.0)[:, None]), 1)
    assert found.V.tolist() == [[1.0]]
    assert found.singular_values == pytest.approx([np.sqrt(30)])


def test_rank_deficient(comm, folder):
    X = matrix(100, np.array([3.0, 2, 1]))
    X = np.hstack([X, X[:, :1] - X[:, 1:2], np.zeros((100, 1))])  # rank 3 of 5
    found = factorise(comm, write_dataset(comm, folder / "m", X), 5)
    np.testing.assert_allclose(found.singular_values[:3], np.linalg.svd(X)[1][:3], rtol=1e-12)
    assert (found.singular_values[3:] < 1e-13).all()
    assert (found.relative_residuals[:3] < 1e-13).all()
    assert np.isnan(found.relative_residuals[3:]).all()


def test_nothing_but_zeros(comm, folder):
    found = factorise(comm, write_dataset(comm, folder / "m", np.zeros((10, 3))), 2)
    assert found.singular_values.tolist() == [0, 0]
    assert np.isnan(found.relative_residuals).all()


def test_repeated_singular_values(comm, folder):
    X = matrix(80, np.array([5.0, 2, 2, 2, 1, 1]))
    found = factorise(comm, write_dataset(comm, folder / "m", X), 4)
    np.testing.assert_allclose(found.singular_values, [5, 2, 2, 2], rtol=1e-12)
    # Single vectors are not determined, their span is.
    assert scipy.linalg.subspace_angles(found.V, np.linalg.svd(X)[2][:4].T).max() < 1e-6
    assert found.relative_residuals.max() < 1e-13


def test_what_the_square_loses_shows_in_the_residuals(comm, folder):
    spectrum = 10.0 ** -np.arange(0, 12)
    X = matrix(400, spectrum)
    found = factorise(comm, write_dataset(comm, folder / "m", X), 12)
    # The certificate: X has a singular value within the residual of each one reported, however bad that is.
    distance = np.abs(found.singular_values[:, None] - spectrum).min(axis=1)
    assert (distance <= found.relative_residuals * spectrum[0] + 1e-15).all()
    assert found.relative_residuals[:5].max() < 1e-10
    assert found.relative_residuals[-1] > 1e-9
    np.testing.assert_allclose(found.singular_values[:7], spectrum[:7], rtol=1e-6)
    # Rounding moves the smallest ones' residuals, not their order of magnitude.
    np.testing.assert_allclose(found.relative_residuals[8:], residuals(X, found)[8:], rtol=0.9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused_by_its_place(comm, folder, value):
    X = np.ones((90, 4), "float32")
    X[40, 2] = value  # the shards begin at rows 0, 31, 62
    with pytest.raises(AgreedError, match=rf"part-00001\.h5: X\[9, 2\] \('x2'\) is {value}") as refusal:
        factorise(comm, write_dataset(comm, folder / "m", X), 2)
    assert refusal.value.exit_code == 2


def test_squares_beyond_float64_are_refused(comm, folder):
    X = np.ones((90, 4))
    X[7, 1] = -1e200
    with pytest.raises(AgreedError, match=r"part-00000\.h5: X\[7, 1\].*too large"):
        factorise(comm, write_dataset(comm, folder / "m", X), 2)


@pytest.mark.parametrize(("shape", "k", "message"), [
    ((5, 3), 4, r"-k 4 is outside 1 … 3"),
    ((2, 3), 3, r"-k 3 is outside 1 … 2"),
    ((5, 3), 0, r"-k 0 is outside"),
    ((0, 3), 1, "has no rows"),
])
def test_impossible_requests_are_refused(comm, folder, shape, k, message):
    with pytest.raises(AgreedError, match=message) as refusal:
        factorise(comm, write_dataset(comm, folder / "m", np.ones(shape)), k)
    assert refusal.value.exit_code == 2


def test_too_many_features_are_refused(comm, folder, monkeypatch):
    monkeypatch.setattr(gram, "MOST_FEATURES", 4)
    with pytest.raises(AgreedError, match="5 features, Gram takes at most 4"):
        factorise(comm, write_dataset(comm, folder / "m", np.ones((9, 5))), 1)


def run(comm, path: Path, output: Path, k: int = 3, allreduce: str = "tree", overwrite: bool = False) -> dict:
    return svd.run(comm, Console(rank=comm.rank), [path], None, output, k, allreduce, None, overwrite)


def test_the_command_writes_and_reports(comm, folder, capsys):
    X = matrix(100, np.array([4.0, 3, 2, 1]))
    X[:, 3] = 0
    result = run(comm, write_dataset(comm, folder / "m", X), folder / "svd.h5", k=4)
    assert result["k"] == 4
    assert result["method"] == "gram"
    assert result["passes_over_data"] == 2
    assert result["allreduce"] == "tree"
    assert result["data"] == str(folder / "m")
    assert result["relative_residuals"][3] is None
    assert set(result["time_split"]) == {"read", "compute", "communicate", "wait"}
    assert 0 < sum(result["time_split"].values()) < 4 * result["work_s"]
    json.dumps(result, allow_nan=False)

    factors = read_factors(folder / "svd.h5")
    np.testing.assert_array_equal(factors.singular_values, result["singular_values"])
    np.testing.assert_allclose(factors.singular_values, np.linalg.svd(X)[1], rtol=1e-12, atol=1e-13)
    assert factors.V.shape == (4, 4)
    assert np.isnan(factors.relative_residuals[3])
    assert factors.feature_names == ["x0", "x1", "x2", "x3"]
    assert (factors.method, factors.rows) == ("gram", 100)
    with h5py.File(folder / "svd.h5", locking=False) as file:
        assert file.attrs["dml_hpc_version"] == __version__
    if comm.rank == 0:
        assert sorted(p.name for p in folder.iterdir()) == ["m", "svd.h5"]
    assert ("residual/σ₁" in capsys.readouterr().out) == (comm.rank == 0)


def test_an_output_that_exists_stays_unless_it_may_go(comm, folder):
    path = write_dataset(comm, folder / "m", np.eye(4))
    output = folder / "svd.h5"
    if comm.rank == 0:
        output.write_text("precious")
    comm.Barrier()
    with pytest.raises(AgreedError, match="--overwrite") as refusal:
        run(comm, path, output)
    assert refusal.value.exit_code == 2
    assert output.read_text() == "precious"
    comm.Barrier()
    run(comm, path, output, overwrite=True)
    assert read_factors(output).singular_values.tolist() == [1, 1, 1]


def test_a_failure_writes_nothing(comm, folder):
    path = write_dataset(comm, folder / "m", np.full((4, 4), np.nan))
    with pytest.raises(AgreedError):
        run(comm, path, folder / "svd.h5")
    assert [p.name for p in folder.iterdir()] == ["m"]


@pytest.mark.parametrize(("data", "allreduce", "message"), [
    ("nowhere", "ring", "nowhere does not exist"),
    ("m", "rign", r"unknown --allreduce 'rign' \(did you mean 'ring'\?\)"),
])
def test_wrong_arguments_are_refused(comm, folder, data, allreduce, message):
    write_dataset(comm, folder / "m", np.eye(4))
    with pytest.raises(AgreedError, match=message) as refusal:
        run(comm, folder / data, folder / "svd.h5", allreduce=allreduce)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("content", ["no HDF5", None])
def test_a_file_that_holds_no_factors(folder, comm, content):
    path = folder / "other.h5"
    if comm.rank == 0:
        if content is None:
            h5py.File(path, "w").close()
        else:
            path.write_text(content)
    comm.Barrier()
    with pytest.raises(UserError, match=r"other\.h5 (holds no factors|cannot be read)"):
        read_factors(path)
