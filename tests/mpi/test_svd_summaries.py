"""TSQR and the incremental SVD against LAPACK in float64, and the tree of summaries, at any number of ranks."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg

from dml_hpc.comm.clock import Clock
from dml_hpc.decomposition.svd import incremental as incremental_svd
from dml_hpc.decomposition.svd import tsqr as tsqr_svd
from dml_hpc.decomposition.svd.incremental import incremental
from dml_hpc.decomposition.svd.summaries import combine
from dml_hpc.decomposition.svd.tsqr import singular, tsqr
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.layout import split

pytestmark = [pytest.mark.mpi, pytest.mark.maths]


class Chunks:
    """An array seen as `Matrix` shows a data set; the ``idle`` last ranks hold nothing, others balanced shares."""

    def __init__(self, comm, A: np.ndarray, chunk_rows: int = 7, idle: int = 0):
        self.comm, self.clock = comm, Clock()
        self.shape, self.chunk_rows = A.shape, chunk_rows
        self.all_chunks = -(-len(A) // chunk_rows)
        busy = max(comm.size - idle, 1)
        self.chunks = split(self.all_chunks, busy, comm.rank) if comm.rank < busy else (self.all_chunks,) * 2
        self._A = A

    def dense_chunks(self, dtype):
        block = np.empty((self.chunk_rows, self.shape[1]), dtype)  # each one overwrites the last
        for number in range(*self.chunks):
            rows = self._A[number * self.chunk_rows:(number + 1) * self.chunk_rows]
            block[:len(rows)] = rows
            yield number, block[:len(rows)]
            block[:] = np.nan


@pytest.fixture(autouse=True)
def small_leaves(monkeypatch) -> None:
    """A small matrix, too, is to have many leaves and to lose something in them."""
    monkeypatch.setattr(incremental_svd, "_LEAF_BYTES", (0, 1 << 20))
    monkeypatch.setattr(incremental_svd, "_EXTRA", 0)


@pytest.fixture
def alone(comm):
    one = comm.Split(comm.rank)
    yield one
    one.Free()


def made(m: int, spectrum: np.ndarray, n: int | None = None, seed: int = 0) -> np.ndarray:
    """A float64 matrix (m, n) with these singular values, the rest zero, and random singular vectors."""
    rng = np.random.default_rng(seed)
    spectrum = np.asarray(spectrum, float)
    U = np.linalg.qr(rng.standard_normal((m, len(spectrum))))[0]
    V = np.linalg.qr(rng.standard_normal((n or len(spectrum), len(spectrum))))[0]
    return U * spectrum @ V.T


def noisy(m: int, n: int, decay: float = 0.7) -> np.ndarray:
    rng = np.random.default_rng(m + n)
    return made(m, decay ** np.arange(min(m, n)), n) + 1e-3 * rng.standard_normal((m, n))


RANDOM = np.random.default_rng(3).standard_normal
MATRICES = {
    "tall": RANDOM((301, 12)),
    "a chunk a row": RANDOM((20, 3)),
    "wide": RANDOM((30, 50)),
    "square": RANDOM((40, 40)),
    "as many rows as a leaf": RANDOM((28, 7)),
    "one row": RANDOM((1, 5)),
    "one column": -np.abs(RANDOM((60, 1))),
    "one entry": np.array([[-2.0]]),
    "rank deficient": made(200, [3, 2, 1], 9),
    "zero rows": np.vstack([np.zeros((50, 6)), RANDOM((31, 6)), np.zeros((80, 6))]),
    "zero columns": RANDOM((120, 8)) * [1, 0, 1, 1, 0, 1, 1, 0],
    "zeros": np.zeros((70, 4)),
    "repeated": made(150, [5, 2, 2, 2, 1, 1]),
    "steep": made(400, 10.0 ** -np.arange(13)),
    "huge": 1e150 * RANDOM((90, 5)),
    "tiny": 1e-140 * RANDOM((90, 5)),
}


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", MATRICES)
def test_the_triangle_has_the_singular_values(comm, name, chunk_rows):
    A = MATRICES[name]
    m, n = A.shape
    matrix = Chunks(comm, A, chunk_rows)
    R = tsqr(matrix)
    assert R.shape == (min(m, n), n)
    assert R.dtype == np.float64
    assert (np.tril(R, -1) == 0).all()
    assert (np.diag(R) >= 0).all()
    sigma = scipy.linalg.svd(A, compute_uv=False)
    k = max(1, min(m, n) - 1)
    found, V = singular(matrix, R, k)
    assert found.shape == (min(m, n),)
    np.testing.assert_allclose(found, sigma, rtol=0, atol=1e-14 * sigma[0])
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-13)
    # Each column is a singular vector of A itself, whichever of the subspace of close values it is.
    largest = sigma[0] or 1.0
    np.testing.assert_allclose(np.linalg.norm(A / largest @ V, axis=0), sigma[:k] / largest, atol=1e-13)
    image = A / largest @ V
    np.testing.assert_allclose(image.T @ image, np.diag((sigma[:k] / largest)**2), atol=1e-13)


def test_the_triangle_is_lapack_s(comm):
    A = MATRICES["tall"]
    expected = scipy.linalg.qr(A, mode="r")[0][:12]
    np.testing.assert_allclose(tsqr(Chunks(comm, A)), expected * np.sign(np.diag(expected))[:, None], atol=1e-13)


def test_leaves_in_pieces(comm, monkeypatch):
    monkeypatch.setattr(tsqr_svd, "_PIECE_ENTRIES", 1)
    A = made(1000, 10.0 ** -np.arange(20))
    sigma = np.linalg.svd(A, compute_uv=False)
    matrix = Chunks(comm, A, 333)
    np.testing.assert_allclose(singular(matrix, tsqr(matrix), 1)[0], sigma, rtol=0, atol=1e-14)


@pytest.mark.parametrize("idle", [0, 1, 2])
@pytest.mark.parametrize(("m", "chunk_rows"), [(1, 1), (5, 1), (61, 1), (64, 4), (500, 7), (500, 3), (333, 40)])
def test_the_same_bits_on_any_number_of_ranks(comm, alone, m, chunk_rows, idle):
    A = noisy(m, 6)
    k = min(m, 2)
    here, by_itself = Chunks(comm, A, chunk_rows, idle), Chunks(alone, A, chunk_rows)
    assert tsqr(here).tobytes() == tsqr(by_itself).tobytes()
    found, expected = incremental(here, k), incremental(by_itself, k)
    for part in ("singular_values", "V", "residual_bounds"):
        assert getattr(found, part).tobytes() == getattr(expected, part).tobytes()
        assert len(set(comm.allgather(getattr(found, part).tobytes()))) == 1
    assert (found.error_bound, found.squared_norm) == (expected.error_bound, expected.squared_norm)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize(("k", "chunk_rows"), [(1, 7), (3, 7), (3, 1), (2, 100)])
def test_the_bounds_hold(comm, name, k, chunk_rows):
    check_bounds(comm, MATRICES[name], k, chunk_rows)


@pytest.mark.parametrize(("m", "n", "decay"), [(400, 30, 0.7), (150, 60, 0.9), (60, 150, 0.8), (150, 40, 1.0)])
@pytest.mark.parametrize("k", [2, 15])
def test_the_bounds_hold_in_noise(comm, m, n, decay, k):
    check_bounds(comm, noisy(m, n, decay), k, 7)


def check_bounds(comm, A: np.ndarray, k: int, chunk_rows: int) -> None:
    k = min(k, *A.shape)
    found = incremental(Chunks(comm, A, chunk_rows), k)
    sigma, V = found.singular_values, found.V
    scale = np.abs(A).max() or 1.0  # the reference's own squares are to be numbers, too
    exact = np.linalg.svd(A / scale, compute_uv=False) * scale
    assert sigma.shape == found.residual_bounds.shape == (k,)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-13)
    assert (sigma[:-1] >= sigma[1:]).all()
    assert (sigma <= exact[:k] * (1 + 1e-12) + 1e-14 * exact[0]).all()
    told = sigma > 1e-12 * exact[0]
    A, sigma, bounds = A / scale, sigma / scale, found.residual_bounds / scale
    residuals = np.linalg.norm(A.T @ (A @ V[:, told] / sigma[told]) - V[:, told] * sigma[told], axis=0)
    assert (residuals <= bounds[told]).all()
    rest = A - A @ V @ V.T
    assert np.linalg.norm(rest, 2) <= found.error_bound / scale * (1 + 1e-12)
    if scale > 1e-150:
        assert found.squared_norm / scale / scale == pytest.approx(np.sum(A * A), rel=1e-12)
        assert np.sum(rest * rest) <= (np.sum(A * A) - np.sum(sigma * sigma)) * (1 + 1e-9) + 1e-12 * np.sum(A * A)


def test_what_fits_is_found_to_rounding(comm):
    A = made(500, [5, 4, 4, 1, 1e-3], 40)
    found = incremental(Chunks(comm, A, 9), 5)
    np.testing.assert_allclose(found.singular_values, [5, 4, 4, 1, 1e-3], rtol=1e-9)
    assert scipy.linalg.subspace_angles(found.V, np.linalg.svd(A)[2][:5].T).max() < 1e-6
    assert found.residual_bounds[0] < 1e-11
    assert found.error_bound < 1e-5


def test_larger_leaves_lose_little(comm, monkeypatch):
    monkeypatch.setattr(incremental_svd, "_LEAF_BYTES", (1 << 17, 1 << 20))  # 204 rows
    A = made(1000, 0.5 ** np.arange(80)) + 1e-4 * np.random.default_rng(1).standard_normal((1000, 80))
    found = incremental(Chunks(comm, A, 16), 4)
    exact = np.linalg.svd(A, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, exact[:4], rtol=1e-4)
    assert (found.residual_bounds < 0.01).all()
    assert found.error_bound < 1.5 * exact[4]


def test_no_rows(comm):
    assert tsqr(Chunks(comm, np.empty((0, 3)))).shape == (0, 3)


@pytest.mark.parametrize("leaf_rows", [1, 2, 5, 9, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 11, 16, 29])
def test_the_tree_is_dyadic(comm, rows, leaf_rows):
    """A leaf is summarised by a hash of its rows, a merge by one of the two that were merged."""
    def leaf(block: np.ndarray) -> np.ndarray:
        return np.frombuffer(hashlib.sha256(block.tobytes()).digest())[None].copy()

    def merge(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        return leaf(np.concatenate([upper, lower]))

    chunk_rows = 2
    A = np.arange(2.0 * rows).reshape(rows, 2)
    found = combine(Chunks(comm, A, chunk_rows), leaf, merge, leaf_rows)
    width = -(-leaf_rows // chunk_rows) * chunk_rows
    nodes = [leaf(A[first:first + width]) for first in range(0, rows, width)]
    while len(nodes) > 1:
        pairs = [nodes[i:i + 2] for i in range(0, len(nodes), 2)]
        nodes = [merge(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    assert found.tobytes() == nodes[0].tobytes()


@pytest.mark.parametrize("where", ["leaf", "merge", "reading"])
def test_one_rank_s_error_is_everybody_s(comm, where):
    def fail(kind: str, rows: np.ndarray) -> np.ndarray:
        if kind == where and 37.0 in rows:
            raise UserError("row 37 is not liked")
        return rows.copy()

    matrix = Chunks(comm, np.arange(40.0)[:, None])
    if where == "reading":
        chunks = matrix.dense_chunks
        matrix.dense_chunks = lambda dtype: (  # type: ignore[method-assign]
            (number, fail("reading", block)) for number, block in chunks(dtype))
    with pytest.raises(AgreedError, match="row 37 is not liked") as refusal:
        combine(matrix, lambda rows: fail("leaf", rows), lambda a, b: fail("merge", np.concatenate([a, b])))
    assert refusal.value.exit_code == 2


def test_squares_beyond_float64_are_refused(comm):
    with pytest.raises(AgreedError, match="add up to more than float64 holds"):
        incremental(Chunks(comm, np.full((80, 3), 1e160)), 2)


@pytest.mark.parametrize("method", ["gesdd", "both"])
def test_a_decomposition_that_fails_is_tried_another_way(comm, monkeypatch, method):
    true = scipy.linalg.svd

    def svd(R, lapack_driver="gesdd", **settings):
        if lapack_driver == "gesdd" or method == "both":
            raise scipy.linalg.LinAlgError("did not converge")
        return true(R, lapack_driver=lapack_driver, **settings)

    monkeypatch.setattr(scipy.linalg, "svd", svd)
    matrix = SimpleNamespace(comm=comm, clock=Clock())
    if method == "both":
        with pytest.raises(AgreedError, match="singular values of R were not found: did not converge"):
            singular(matrix, np.eye(3), 2)
    else:
        assert singular(matrix, np.diag([3.0, 2, 1]), 2)[0].tolist() == [3, 2, 1]
