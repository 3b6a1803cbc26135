"""The kernels under the SVD against NumPy and SciPy in float64: awkward sizes, types, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from dml_hpc.kernels import blocks, csr_products, plain

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def sparse_rows(rows, features, kind, index="int32", lead=0, seed=1):
    """Return (data, indices, indptr, float64 matrix): rows of 0 … 9 entries in any order, behind ``lead`` others."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, min(features, 9) + 1, rows)
    lengths[1::5] = 0
    indptr = np.r_[0, np.cumsum(lengths)].astype(np.int64) + lead
    indices = np.concatenate([np.zeros(lead, int), *(rng.permutation(features)[:c] for c in lengths)]).astype(index)
    data = rng.standard_normal(len(indices)).astype(kind)
    data[:lead] = np.nan
    X = scipy.sparse.csr_array((data[lead:].astype(float), indices[lead:], indptr - lead), shape=(rows, features))
    return data, indices, indptr, X.toarray()


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("centred", [False, True])
def test_products_of_every_width_are_those_of_the_dense_matrix(kind, centred):
    # Columns go in pieces of powers of two: every remainder, none and several of the widest.
    data, indices, indptr, X = sparse_rows(23, 17, kind, lead=3)
    rng = np.random.default_rng(2)
    for columns in (*range(1, 34), 63, 64, 65, 129, 200):
        V = rng.standard_normal((17, columns)).astype(kind)
        correction = rng.standard_normal(columns).astype(kind) if centred else None
        expected = X @ V.astype(float) - (correction if centred else 0)
        Y, Z = np.full((23, columns), np.nan, kind), np.ones((17, columns), kind)
        csr_products.fused(data, indices, indptr, V, correction, Y, Z)
        np.testing.assert_allclose(Y, expected, atol=TOLERANCE[kind])
        np.testing.assert_allclose(Z, 1 + X.T @ expected, atol=8 * TOLERANCE[kind])
        alone, scattered = np.full_like(Y, np.nan), np.ones_like(Z)
        csr_products.products(data, indices, indptr, V, correction, alone)
        csr_products.scatter(data, indices, indptr, alone, scattered)
        assert alone.tobytes() == Y.tobytes()
        assert scattered.tobytes() == Z.tobytes()


def test_entries_of_another_type_int64_columns_and_an_offset():
    data, indices, indptr, X = sparse_rows(11, 300, "float64", "int64", lead=2)
    V, Y = np.random.default_rng(3).standard_normal((300, 12)).astype("f4"), np.empty((11, 12), "f4")
    Z = np.zeros_like(V)
    csr_products.fused(data, indices, indptr, V, None, Y, Z)
    np.testing.assert_allclose(Y, X @ V.astype(float), atol=2e-5)
    np.testing.assert_allclose(Z, X.T @ (X @ V.astype(float)), atol=2e-4)


@pytest.mark.parametrize("columns", [1, 8, 33])
def test_columns_do_not_depend_on_how_many_there_are(columns):
    data, indices, indptr, _ = sparse_rows(40, 30, "float32")
    V = np.random.default_rng(4).standard_normal((30, 64)).astype("f4")
    wide, narrow = np.empty((40, 64), "f4"), np.empty((40, columns), "f4")
    csr_products.products(data, indices, indptr, V, None, wide)
    csr_products.products(data, indices, indptr, V[:, :columns].copy(), None, narrow)
    assert np.array_equal(wide[:, :columns], narrow)


def test_no_rows_no_entries_and_long_rows():
    for rows, entries in ((0, 0), (4, 0), (2, 3000)):
        indptr = np.arange(rows + 1, dtype=np.int64) * entries
        rng = np.random.default_rng(5)
        indices = np.r_[tuple(rng.permutation(3001)[:entries] for _ in range(rows)) or np.zeros(0)].astype("i4")
        data, V = rng.standard_normal(rows * entries), rng.standard_normal((3001, 5))
        X = scipy.sparse.csr_array((data, indices, indptr), shape=(rows, 3001))
        Y, Z = np.full((rows, 5), np.nan), np.zeros((3001, 5))
        csr_products.fused(data, indices, indptr, V, None, Y, Z)
        np.testing.assert_allclose(Y, X @ V, atol=1e-11)
        np.testing.assert_allclose(Z, X.T @ (X @ V), atol=1e-10)


def test_what_is_not_finite_shows_in_its_row_and_nowhere_else():
    data, indices, indptr = np.array([1, np.inf, 2, 3.0]), np.array([0, 2, 1, 0], "i4"), np.array([0, 2, 4])
    Y, Z = np.empty((2, 3)), np.zeros((3, 3))
    csr_products.fused(data, indices, indptr, np.ones((3, 3)), None, Y, Z)
    assert np.isinf(Y[0]).all() and (Y[1] == 5).all()
    assert np.isinf(Z[[0, 2]]).all() and (Z[1] == 10).all()


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_column_sums_are_taken_in_float64(kind):
    Y = np.random.default_rng(6).standard_normal((1000, 7)).astype(kind) + 1000
    out = np.ones(7)
    csr_products.column_sums(Y, out)
    np.testing.assert_allclose(out, 1 + Y.astype(float).sum(axis=0), rtol=1e-14)
    csr_products.column_sums(Y[:0], out)
    np.testing.assert_allclose(out, 1 + Y.astype(float).sum(axis=0), rtol=1e-14)


@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize(("first", "last"), [(0, 20), (0, 7), (7, 13), (13, 20), (5, 5), (19, 20)])
def test_a_slice_of_columns_keeps_entries_and_their_order(index, first, last):
    data, indices, indptr, X = sparse_rows(31, 20, "float32", index, lead=4)
    counted = np.empty(32, np.int64)
    csr_products.count_columns(indices, indptr, first, last, counted)
    entries, columns = np.empty(counted[-1], "f4"), np.empty(counted[-1], "i4")
    csr_products.slice_columns(data, indices, indptr, first, last, counted, entries, columns)
    dense = np.zeros((31, last - first))
    dense[np.repeat(np.arange(31), np.diff(counted)), columns] = entries
    assert np.array_equal(dense, X[:, first:last])
    kept = (indices[4:] >= first) & (indices[4:] < last)
    assert np.array_equal(columns, indices[4:][kept] - first)
    assert np.array_equal(entries, data[4:][kept])


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize(("kind", "out"), [("float16", "float32"), ("float32", "float32"), ("float32", "float64"),
                                           ("float64", "float64")])
def test_prepared_blocks_are_shifted_and_scaled_in_float64(kind, out, rows):
    rng = np.random.default_rng(7)
    for cols in (1, 3, 16, 33):
        whole = (1000 + rng.standard_normal((rows, cols + 5))).astype(kind)
        shift, scale = rng.standard_normal(cols) + 1000, rng.random(cols) + 0.1
        X = whole[:, 2:cols + 2]
        for by, per in ((shift, scale), (shift, None), (None, scale), (None, None)):
            target = np.full((rows, cols + 2), -1, out)
            blocks.prepared(plain(X), by, per, target[:, 1:-1])
            expected = X.astype(float) - (0 if by is None else by)
            expected = (expected if per is None else expected * (1 / per)).astype(out)
            assert np.array_equal(target[:, 1:-1], expected)
            assert (target[:, [0, -1]] == -1).all()


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_sums_of_squares_are_taken_in_float64(kind):
    X = (np.random.default_rng(8).standard_normal((300, 41)) + 100).astype(kind)
    for part in (X, X[:, 3:40], X[:0], X[:, :0], X[:1, :1], X.ravel()[5:][None]):
        assert blocks.sum_of_squares(part) == pytest.approx((part.astype(float) ** 2).sum(), rel=1e-13)
    X[200, 7] = 1e30
    assert blocks.sum_of_squares(X) == pytest.approx(1e60, rel=1e-6)
    for bad, told in ((np.nan, np.isnan), (-np.inf, np.isposinf)):
        X[200, 7] = bad
        assert told(blocks.sum_of_squares(X)) and told(blocks.sum_of_squares(X[:, 4:40]))


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_parts_are_added_exactly_in_fixed_point_and_in_float64(kind, count):
    part = np.random.default_rng(9).standard_normal(count).astype(kind) * 1000
    part[:2] = [2.5, -3.5][:count]
    out, total = np.full(count, 3, np.int64), np.full(count, 0.25)
    for per_unit in (1.0, 2.0 ** 30):
        blocks.add_fixed(part, per_unit, out)
    expected = 3 + np.rint(part.astype(float)).astype(int) + np.rint(part.astype(float) * 2.0 ** 30).astype(int)
    assert np.array_equal(out, expected)
    blocks.add_to(part, total)
    assert np.array_equal(total, 0.25 + part.astype(float))
