"""The truncated SVD by every method against LAPACK in float64, at any number of ranks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import data_support
import h5py
import numpy as np
import pytest
import scipy.linalg

from dml_hpc import __version__
from dml_hpc.comm import REDUCERS, open_reducer
from dml_hpc.comm.clock import Clock
from dml_hpc.commands import svd
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.data.dataset import open_dataset
from dml_hpc.decomposition import matrix as matrix_module
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.triplets import Triplets
from dml_hpc.decomposition.svd.truncated import Found, Wanted, truncated_svd
from dml_hpc.errors import AgreedError
from dml_hpc.store.factors import read_factors

pytestmark = pytest.mark.mpi

METHODS = ["gram", "tsqr", "randomized"]


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Matrices of some hundred rows are to be dealt to several ranks."""
    monkeypatch.setattr(matrix_module, "LEAST_ROWS", 16)
    monkeypatch.setattr(matrix_module, "SQUARE_ROWS", 40)


def write_dataset(comm, path: Path, X: np.ndarray, shards: int = 3, **how) -> Path:
    """Rank 0 writes X in shards, the last one shorter or empty."""
    if comm.rank == 0:
        rows = len(X)
        cuts = [min(rows, i * (-(-rows // shards) + 1)) for i in range(shards)] + [rows]
        stored = sparse(X) if how.pop("csr", False) else X
        data_support.write_dataset(path, stored, np.zeros(rows), np.diff(cuts).tolist(), str(X.dtype), **how)
    comm.Barrier()
    return path


def matrix(rows: int, spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """A float64 matrix (rows, len(spectrum)) with these singular values and random singular vectors."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((rows, len(spectrum))))[0]
    V = np.linalg.qr(rng.standard_normal((len(spectrum), len(spectrum))))[0]
    return U * spectrum @ V.T


def factorise(comm, path: Path, k: int, method: str = "gram", accuracy: float = 1e-12,
              grid: tuple[int, int] | None = None, shift: np.ndarray | None = None,
              scale: np.ndarray | None = None, reducer: str = "ring", reproducible: bool = False, wide: bool = False,
              most_bytes: int | None = None, seed: int = 0, **tolerance: float) -> tuple[Found, np.ndarray, Matrix]:
    """Return what is found, all rows of V, and the matrix."""
    with Grid(comm, grid or (comm.size, 1)) as ranks, Matrix(
            ranks, open_dataset(path), partial(open_reducer, reducer), Clock(), Console(rank=comm.rank), shift, scale,
            most_bytes, reproducible) as one:
        found = truncated_svd(one, method, wide, Wanted(k, accuracy, **tolerance), seed)
        return found, one.gathered(found.triplets.V), one


def check(X: np.ndarray, found: Found, V: np.ndarray, k: int, rtol: float = 1e-10, vectors: float = 1e-6,
          rounding: float = 1e-13) -> None:
    """Compare with LAPACK: values, the span, orthogonality, and what is said of residuals and of what is left out."""
    _, sigma, Vt = scipy.linalg.svd(X.astype(np.float64), full_matrices=False)
    got = found.triplets
    np.testing.assert_allclose(got.singular_values, sigma[:k], rtol=rtol, atol=1e-13 * sigma[0])
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-10)
    if vectors:
        assert scipy.linalg.subspace_angles(V, Vt[:k].T).max() < vectors
    true = np.linalg.norm(X.T @ (X @ V / got.singular_values) - V * got.singular_values, axis=0) / sigma[0]
    told = ~np.isnan(got.relative_residuals)
    assert (true[told] <= 2 * got.relative_residuals[told] + rounding).all()
    left_out = X - X @ V @ V.T
    assert np.linalg.norm(left_out, 2) <= found.error_bound * (1 + 1e-9)
    assert found.remainder == pytest.approx(np.linalg.norm(left_out), abs=1e-7 * np.linalg.norm(X))
    assert found.norm == pytest.approx(np.linalg.norm(X), rel=1e-8)
    largest = np.argmax(np.abs(V) >= np.abs(V).max(axis=0) * (1 - 1e-6), axis=0)
    assert (V[largest, np.arange(k)] > 0).all()


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["dense", "csr", "compressed"])
def test_matches_lapack(comm, folder, method, kind):
    X = matrix(501, 1 / np.sqrt(np.arange(1, 41)))
    if kind == "csr":
        X[np.abs(X) < 0.01] = 0
    how = {"csr": True} if kind == "csr" else {"compression": "gzip"} if kind == "compressed" else {}
    found, V, one = factorise(comm, write_dataset(comm, folder / "m", X, **how), 10, method)
    check(X, found, V, 10)
    assert found.met and found.triplets.worst <= 1e-12
    assert one.passes == {"gram": 2, "tsqr": 2}.get(method, one.passes)


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("csr", [False, True])
def test_single_precision_suffices_where_the_accuracy_allows_it(comm, folder, method, dtype, csr):
    X = matrix(500, 1 / np.sqrt(np.arange(1, 41))).astype(dtype)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    found, V, one = factorise(comm, path, 8, method, accuracy=1e-5)
    check(X.astype(float), found, V, 8, rtol=1e-5, vectors=1e-3, rounding=1e-6)
    assert found.met and one.precision == ("float64" if method == "tsqr" else "float32")
    found, V, one = factorise(comm, path, 8, method, accuracy=1e-11)
    check(X.astype(float), found, V, 8)
    assert found.met and one.precision == "float64"


@pytest.mark.maths
def test_half_precision_rows_are_cut_into_columns(comm, folder):
    X = matrix(200, 1 / np.sqrt(np.arange(1, 41))).astype("float16")
    path = write_dataset(comm, folder / "m", X, csr=True)
    found, V, _ = factorise(comm, path, 5, "randomized", accuracy=1e-5, grid=(1, comm.size))
    check(X.astype(float), found, V, 5, rtol=1e-5, vectors=1e-3, rounding=1e-6)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_any_reducer_sums(comm, folder, reducer):
    X = matrix(200, np.arange(20.0, 0, -1))
    found, V, one = factorise(comm, write_dataset(comm, folder / "m", X), 5, reducer=reducer)
    check(X, found, V, 5)
    assert one.summed_by == reducer


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("shape", [(300, 20), (20, 300)])
def test_principal_components(comm, folder, method, csr, shape):
    rng = np.random.default_rng(1)
    X = rng.standard_normal(shape) * np.linspace(1, 3, shape[1]) + 50 * (not csr)
    X[rng.random(shape) < 0.5 * csr] = 0
    shift, scale = X.mean(axis=0), X.std(axis=0)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for given in ((shift, None), (shift, scale), (None, scale)):
        A = (X - (0 if given[0] is None else shift)) / (1 if given[1] is None else scale)
        found, V, _ = factorise(comm, path, 6, method, shift=given[0], scale=given[1], accuracy=1e-10)
        check(A, found, V, 6, rtol=1e-9)


@pytest.mark.parametrize("csr", [False, True])
@pytest.mark.parametrize("shape", [(150, 90), (60, 200)])
def test_a_grid_of_blocks(comm, folder, csr, shape):
    rng = np.random.default_rng(2)
    low = rng.standard_normal((shape[0], 12)) * 2.0 ** -np.arange(12) @ rng.standard_normal((12, shape[1]))
    X = np.where(rng.random(shape) < (0.4 if csr else 1), low, 0)
    shift, scale = X.mean(axis=0), X.std(axis=0)
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for across in (across for across in range(1, comm.size + 1) if comm.size % across == 0):
        found, V, one = factorise(comm, path, 5, "randomized", grid=(comm.size // across, across))
        check(X, found, V, 5)
        assert one.columns[1] - one.columns[0] in (shape[1] // across, -(-shape[1] // across))
        found, V, _ = factorise(comm, path, 5, "randomized", grid=(comm.size // across, across), shift=shift,
                                scale=scale)
        check((X - shift) / scale, found, V, 5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_wide_matrix_by_the_gram_matrix_of_its_rows(comm, folder, dtype):
    X = np.ascontiguousarray(matrix(700, 1.1 ** -np.arange(40)).T).astype(dtype)
    path = write_dataset(comm, folder / "m", X)
    found, V, _ = factorise(comm, path, 7, "gram", 1e-10, grid=(1, comm.size), wide=True)
    check(X.astype(float), found, V, 7)
    assert found.met
    shift = X.mean(axis=0).astype(float)
    found, V, _ = factorise(comm, path, 7, "gram", 1e-10, grid=(1, comm.size), wide=True, shift=shift)
    check(X - shift, found, V, 7)


def digest(found: Found, V: np.ndarray) -> list[bytes]:
    return [V.tobytes(), found.triplets.singular_values.tobytes(), np.float64(found.error_bound).tobytes()]


@pytest.mark.parametrize("method", [*METHODS, "incremental"])
@pytest.mark.parametrize("csr", [False, True])
def test_all_ranks_hold_the_same_and_one_rank_would_too(comm, folder, method, csr):
    X = matrix(300, 1 / np.arange(1.0, 21)).astype("float32")
    path = write_dataset(comm, folder / "m", X, csr=csr)
    alone = comm.Split(comm.rank)
    for reproducible in (False, True):
        found, V, _ = factorise(comm, path, 5, method, 1e-5, reproducible=reproducible)
        assert len(set(map(tuple, comm.allgather(digest(found, V))))) == 1
        one, one_V, _ = factorise(alone, path, 5, method, 1e-5, reproducible=reproducible)
        if reproducible:
            assert digest(found, V) == digest(one, one_V)
        np.testing.assert_allclose(V, one_V, atol=1e-6)
        np.testing.assert_allclose(found.triplets.singular_values, one.triplets.singular_values, rtol=1e-6)
    alone.Free()


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("csr", [False, True])
def test_rows_that_do_not_fit_are_read_in_each_pass(comm, folder, method, csr):
    X = matrix(400, 1.3 ** -np.arange(20))
    found, V, one = factorise(comm, write_dataset(comm, folder / "m", X, shards=9, csr=csr), 5, method, most_bytes=1000)
    check(X, found, V, 5)
    assert one._held is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_more_ranks_than_rows_and_wide_matrices(comm, folder, method, rows):
    X = np.random.default_rng(1).standard_normal((rows, 6))
    found, _, _ = factorise(comm, write_dataset(comm, folder / "m", X), rows, method)
    np.testing.assert_allclose(found.triplets.singular_values, np.linalg.svd(X)[1], rtol=1e-10)
    assert found.triplets.worst < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_one_feature(comm, folder, method):
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", -np.arange(5.0)[:, None]), 1, method)
    np.testing.assert_allclose(V, [[1]])
    assert found.triplets.singular_values == pytest.approx([np.sqrt(30)])


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
def test_rank_deficient(comm, folder, method):
    X = matrix(100, np.array([3.0, 2, 1]))
    X = np.hstack([X, X[:, :1] - X[:, 1:2], np.zeros((100, 1))])  # rank 3 of 5
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", X), 5, method)
    got = found.triplets
    np.testing.assert_allclose(got.singular_values[:3], np.linalg.svd(X)[1][:3], rtol=1e-12)
    assert (got.singular_values[3:] < 1e-13).all()
    assert (got.relative_residuals[:3] < 1e-13).all()
    np.testing.assert_allclose(V.T @ V, np.eye(5), atol=1e-12)
    assert found.met


@pytest.mark.maths
@pytest.mark.parametrize("method", [*METHODS, "incremental"])
def test_nothing_but_zeros(comm, folder, method):
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", np.zeros((40, 3))), 2, method)
    assert found.triplets.singular_values.tolist() == [0, 0]
    assert np.isnan(found.triplets.relative_residuals).all()
    assert found.error_bound == found.norm == 0 and found.met
    np.testing.assert_allclose(V.T @ V, np.eye(2), atol=1e-12)


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
def test_repeated_singular_values(comm, folder, method):
    X = matrix(80, np.array([5.0, 2, 2, 2, 1, 1] + [0.1] * 30))
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", X), 4, method)
    np.testing.assert_allclose(found.triplets.singular_values, [5, 2, 2, 2], rtol=1e-12)
    # Single vectors are not determined, their span is.
    assert scipy.linalg.subspace_angles(V, np.linalg.svd(X)[2][:4].T).max() < 1e-6
    assert found.triplets.worst < 1e-12


@pytest.mark.maths
@pytest.mark.parametrize("method", ["gram", "tsqr"])
def test_what_squares_lose_is_brought_back(comm, folder, method):
    spectrum = 10.0 ** -np.arange(0, 12)
    X = matrix(400, spectrum)
    found, _, _ = factorise(comm, write_dataset(comm, folder / "m", X), 12, method, accuracy=1e-14)
    np.testing.assert_allclose(found.triplets.singular_values, spectrum, rtol=1e-3)
    # u = Av/σ has an error of rounding over σ.
    assert (found.triplets.relative_residuals < 1e-13 / spectrum).all()


@pytest.mark.maths
@pytest.mark.parametrize("method", ["gram", "tsqr"])
def test_small_values_keep_their_digits_in_fixed_point_too(comm, folder, method):
    spectrum = np.logspace(0, -10, 40)
    X = matrix(900, spectrum)
    found, _, _ = factorise(comm, write_dataset(comm, folder / "m", X), 40, method, accuracy=1e-14, reproducible=True)
    np.testing.assert_allclose(found.triplets.singular_values, spectrum, rtol=1e-4)
    assert not np.isnan(found.triplets.relative_residuals).any() and not found.met


@pytest.mark.maths
def test_a_dominating_value_hides_no_others(comm, folder):
    spectrum = np.array([1e5, *[2.0] * 8, *np.linspace(1.5, 0.1, 111)])
    found, _, one = factorise(comm, write_dataset(comm, folder / "m", matrix(400, spectrum)), 9, "randomized", 1e-6)
    np.testing.assert_allclose(found.triplets.singular_values, spectrum[:9], rtol=1e-3)
    assert found.met and one.passes < 40


@pytest.mark.maths
@pytest.mark.parametrize("size", [1e-25, 1e22, 1e-160, 1e-60, 1e60])
@pytest.mark.parametrize("method", ["gram", "randomized"])
def test_sizes_that_squares_do_not_bear(comm, folder, method, size):
    X = (matrix(300, np.arange(20.0, 0, -1)) * size).astype("float32" if 1e-30 < size < 1e30 else "float64")
    path = write_dataset(comm, folder / "m", X)
    if size == 1e-160:
        with pytest.raises(AgreedError, match="too small"):
            factorise(comm, path, 3, method)
        return
    found, _, _ = factorise(comm, path, 3, method, 1e-5)
    np.testing.assert_allclose(found.triplets.singular_values, np.array([20, 19, 18]) * size, rtol=1e-5)
    assert found.met


@pytest.mark.maths
def test_sparse_rows_about_a_large_mean(comm, folder):
    X = np.random.default_rng(4).standard_normal((500, 12)) + 1e6
    X[np.random.default_rng(5).random(X.shape) < 0.1] = 0
    shift = X.mean(axis=0)
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", X, csr=True), 3, "randomized", 1e-7, shift=shift)
    check(X - shift, found, V, 3, rtol=1e-7, vectors=1e-3)
    equal = write_dataset(comm, folder / "equal", np.full((200, 5), 1000.0), csr=True)
    found, _, _ = factorise(comm, equal, 2, "randomized", 1e-7, shift=np.full(5, 1000.0))
    assert found.norm == 0


@pytest.mark.maths
def test_integers_are_centred(comm, folder):
    X = np.random.default_rng(6).integers(-100, 100, (200, 6)).astype("i4")
    if comm.rank == 0:
        with h5py.File(folder / "i.h5", "w") as file:
            file["X"] = X
    comm.Barrier()
    result = run(comm, folder / "i.h5", folder / "svd.h5", k=2, center=True)
    np.testing.assert_allclose(result["singular_values"], np.linalg.svd(X - X.mean(axis=0))[1][:2], rtol=1e-5)


@pytest.mark.maths
@pytest.mark.parametrize(("tolerance", "expected"), [({"energy": 0.9}, 6), ({"ratio": 0.19}, 5), ({"energy": 1.0}, 30)])
def test_a_tolerance_for_a_wide_matrix(comm, folder, tolerance, expected):
    X = np.ascontiguousarray(matrix(300, 1 / np.arange(1.0, 31)).T)
    energy = np.cumsum(1 / np.arange(1.0, 31)**2)
    if tolerance == {"energy": 0.9}:
        expected = int(np.argmax(energy >= 0.9 * energy[-1])) + 1
    path = write_dataset(comm, folder / "m", X)
    found, V, _ = factorise(comm, path, 30, "gram", 1e-8, grid=(1, comm.size), wide=True, **tolerance)
    check(X, found, V, expected, rtol=1e-8)
    assert found.met


@pytest.mark.maths
def test_what_cannot_be_reached_is_said(comm, folder):
    X = matrix(300, 10.0 ** -np.linspace(0, 13, 40))
    found, _, _ = factorise(comm, write_dataset(comm, folder / "m", X), 40, "gram", accuracy=1e-17)
    assert not found.met
    distance = np.abs(found.triplets.singular_values[:, None] - np.linalg.svd(X)[1]).min(axis=1)
    told = ~np.isnan(found.triplets.relative_residuals)
    assert (distance[told] <= found.triplets.relative_residuals[told] + 1e-15).all(), "the certificate holds"


@pytest.mark.maths
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("tolerance", "expected"), [
    ({"energy": 0.9}, 5), ({"energy": 1.0}, 30), ({"ratio": 0.1}, 6), ({"ratio": 1.0}, 1)])
def test_a_tolerance_says_how_many_triplets(comm, folder, method, tolerance, expected):
    sigma = np.array([10.0, 8, 6, 4, 3, 1.5, 0.9] + [0.5] * 23)
    X = matrix(200, sigma)
    energy = np.cumsum(sigma**2) / np.sum(sigma**2)
    if "energy" in tolerance and expected == 5:
        expected = int(np.argmax(energy >= 0.9)) + 1
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", X), 30, method, 1e-8, **tolerance)
    assert V.shape == (30, expected) and found.met
    np.testing.assert_allclose(found.triplets.singular_values, sigma[:expected], rtol=1e-8)


@pytest.mark.maths
def test_a_tolerance_that_k_does_not_reach(comm, folder):
    X = matrix(100, np.ones(20))
    found, V, _ = factorise(comm, write_dataset(comm, folder / "m", X), 5, "randomized", 1e-8, energy=0.9)
    assert V.shape == (20, 5) and not found.met


@pytest.mark.maths
def test_one_pass_bounds_what_it_does_not_know(comm, folder):
    X = matrix(600, 0.7 ** np.arange(40))
    found, V, one = factorise(comm, write_dataset(comm, folder / "m", X), 6, "incremental", accuracy=1e-2)
    got = found.triplets
    assert one.passes == 1
    np.testing.assert_allclose(got.singular_values, 0.7 ** np.arange(6), rtol=1e-2)
    true = np.linalg.norm(X.T @ (X @ V / got.singular_values) - V * got.singular_values, axis=0)
    assert (true <= got.relative_residuals * got.singular_values[0] * (1 + 1e-9) + 1e-14).all()
    assert np.linalg.norm(X - X @ V @ V.T, 2) <= found.error_bound * (1 + 1e-9)


@pytest.mark.parametrize("method", [*METHODS, "incremental"])
@pytest.mark.parametrize(("value", "csr"), [(np.nan, False), (np.inf, True), (-np.inf, False)])
def test_what_is_no_number_is_refused_by_its_place(comm, folder, method, value, csr):
    X = np.ones((90, 4), "float32")
    X[40, 2] = value  # the shards begin at rows 0, 31, 62
    path = write_dataset(comm, folder / "m", X, csr=csr)
    for grid in ((comm.size, 1), (1, comm.size)) if method == "randomized" else ((comm.size, 1),):
        with pytest.raises(AgreedError, match=rf"part-00001\.h5: X\[9, 2\] \('x2'\) is {value}") as refusal:
            factorise(comm, path, 2, method, grid=grid)
        assert refusal.value.exit_code == 2


@pytest.mark.maths
def test_squares_beyond_float64_are_refused(comm, folder):
    X = np.ones((90, 4))
    X[7, 1] = -1e200
    with pytest.raises(AgreedError, match=r"part-00000\.h5: X\[7, 1\].*too large"):
        factorise(comm, write_dataset(comm, folder / "m", X), 2)


@pytest.mark.maths
def test_residuals_of_some_triplets():
    some = Triplets(np.array([2.0, 1, 0]), np.eye(3), np.array([1e-3, 1e-9, np.nan]), np.zeros(3))
    assert some.worst == 1e-3 and some.first(0).worst == 0


def run(comm, path: Path, output: Path, k: int | None = 3, **given) -> dict:
    options = {"tolerance": None, "accuracy": 1e-8, "method": "auto", "grid": None, "center": False, "scale": False,
               "left": None, "plot": None, "memory_limit": None, "reproducible": False, "seed": 0, "allreduce": "tree",
               "tuning": None, "overwrite": False, **given}
    return svd.run(comm, Console(rank=comm.rank), [path], None, output, k, **options)


def test_the_command_writes_and_reports(comm, folder, capsys):
    X = matrix(100, np.array([4.0, 3, 2, 1]))
    X[:, 3] = 0
    result = run(comm, write_dataset(comm, folder / "m", X), folder / "svd.h5", k=4)
    assert result["k"] == 4
    assert result["method"] == "gram" and "Gram matrix" in result["why"]
    assert result["passes_over_data"] == 2
    assert result["allreduce"] == "tree"
    assert result["data"] == str(folder / "m")
    assert result["relative_residuals"][3] is None
    assert result["accuracy_met"] and result["grid"] == [comm.size, 1]
    assert result["energy"][-1] == pytest.approx(1) and result["frobenius_error"] < 1e-7
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


@pytest.mark.maths
def test_principal_components_by_the_command(comm, folder):
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6)) + 7).astype("float32")
    result = run(comm, write_dataset(comm, folder / "m", X), folder / "svd.h5", k=3, center=True, scale=True,
                 left=folder / "left", plot=folder / "scree.svg")
    A = (X.astype(float) - X.mean(axis=0, dtype=float)) / X.std(axis=0, dtype=float)
    U, sigma, _ = np.linalg.svd(A, full_matrices=False)
    np.testing.assert_allclose(result["singular_values"], sigma[:3], rtol=1e-6)
    np.testing.assert_allclose(result["explained_variance"], sigma[:3]**2 / 199, rtol=1e-6)
    np.testing.assert_allclose(result["explained_variance_ratio"], sigma[:3]**2 / np.sum(sigma**2), rtol=1e-6)
    left = open_dataset(folder / "left")
    got = np.concatenate([piece.X.copy() for piece in left.pieces(0, 200)])
    np.testing.assert_allclose(np.abs(got.T @ U[:, :3]), np.eye(3), atol=1e-4)
    assert (folder / "scree.svg").read_text().startswith("<")


@pytest.mark.maths
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
    np.testing.assert_allclose(read_factors(output).singular_values, [1, 1, 1], rtol=1e-12)


def test_a_failure_writes_nothing(comm, folder):
    path = write_dataset(comm, folder / "m", np.full((4, 4), np.nan))
    with pytest.raises(AgreedError):
        run(comm, path, folder / "svd.h5", left=folder / "left", plot=folder / "scree.png")
    assert [p.name for p in folder.iterdir()] == ["m"]


@pytest.mark.maths
@pytest.mark.parametrize(("shape", "given", "message"), [
    ((5, 3), {"k": 4}, r"-k 4 is outside 1 … 3"),
    ((2, 3), {"k": 3}, r"-k 3 is outside 1 … 2"),
    ((0, 3), {"k": 1}, "has no rows"),
    ((5, 3), {"k": None}, "how many triplets"),
    ((5, 3), {"allreduce": "rign"}, r"unknown --allreduce 'rign' \(did you mean 'ring'\?\)"),
    ((5, 3), {"grid": (7, 9)}, "--grid 7x9 is for 63 ranks"),
    ((5, 3), {"plot": Path("scree.pdf")}, r"has to end in \.png or \.svg"),
    ((5, 3), {"memory_limit": 1000}, "--memory-limit is below"),
])
def test_impossible_requests_are_refused(comm, folder, shape, given, message):
    path = write_dataset(comm, folder / "m", np.ones(shape))
    with pytest.raises(AgreedError, match=message) as refusal:
        run(comm, path, folder / "svd.h5", **given)
    assert refusal.value.exit_code == 2
    comm.Barrier()
    assert not (folder / "svd.h5").exists()


@pytest.mark.maths
def test_a_data_set_that_is_not_there(comm, folder):
    with pytest.raises(AgreedError, match="nowhere does not exist"):
        run(comm, folder / "nowhere", folder / "svd.h5")
