"""The CUDA kernels for sparse rows under the SVD, run on the CPU, against their Numba twins."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import csr_products as twin
from dml_hpc.kernels.cuda import csr_products
from dml_hpc.kernels.cuda.long_rows import VERY_LONG, long_entries

TOLERANCE = {"float32": 3e-5, "float64": 1e-12}


def sparse_rows(rows, features, kind, index="int32", lead=0, most=9, seed=1):
    """Return (data, indices, indptr): rows of 0 … ``most`` entries in any order, behind ``lead`` others."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, min(features, most) + 1, rows)
    lengths[1::5] = 0
    indptr = np.r_[0, np.cumsum(lengths)].astype(np.int64) + lead
    indices = np.concatenate([np.zeros(lead, int), *(rng.permutation(features)[:c] for c in lengths)]).astype(index)
    data = rng.standard_normal(len(indices)).astype(kind)
    data[:lead] = np.nan
    return data, indices, indptr


def check(device, rows, features, columns, stored="float32", kind="float32", index="int32", centred=False, lead=0,
          most=9):
    data, indices, indptr = sparse_rows(rows, features, stored, index, lead, most)
    near = TOLERANCE[kind] * max(1, most // 10)
    rng = np.random.default_rng(2)
    V = rng.standard_normal((features, columns)).astype(kind)
    correction = rng.standard_normal(columns).astype(kind) if centred else None
    Y, Z = np.empty((rows, columns), kind), np.ones((features, columns), kind)
    twin.fused(data, indices, indptr, V, correction, Y, Z)
    X = [device.put(part) for part in (data, indices, indptr)]
    given = device.put(V), None if correction is None else device.put(correction)
    own, out = device.empty(Y.shape, kind), device.put(np.ones_like(Z))
    csr_products.fused(device, *X, *given, own, out)
    np.testing.assert_allclose(device.get(own), Y, atol=near)
    np.testing.assert_allclose(device.get(out), Z, atol=8 * near)
    alone, scattered = device.empty(Y.shape, kind), device.put(np.ones_like(Z))
    csr_products.products(device, *X, *given, alone)
    csr_products.scatter(device, *X, alone, scattered)
    assert device.get(alone).tobytes() == device.get(own).tobytes()
    np.testing.assert_allclose(device.get(scattered), Z, atol=8 * near)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("centred", [False, True])
def test_products_are_the_twins(device, kind, centred):
    for columns in (1, 3, 4, 24, 33):
        check(device, 23, 17, columns, kind, kind, centred=centred, lead=3)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_every_width_and_long_rows(quick_device, kind):
    for columns in (*range(1, 13), 31, 32, 48, 64, 65, 100, 128, 129, 132, 260):
        check(quick_device, 7, 19, columns, kind, kind)
    check(quick_device, 5, 3000, 8, kind, kind, most=3000)


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_every_type(quick_device, stored, kind, index):
    for columns in (5, 8):
        check(quick_device, 40, 30, columns, stored, kind, index, centred=True)


def long_rows(lengths, features, stored="float32", index="int32"):
    """Return (data, indices, indptr) of rows of so many entries."""
    rng = np.random.default_rng(len(lengths))
    indices = np.concatenate([rng.permutation(features)[:length] for length in lengths]).astype(index)
    data = rng.standard_normal(len(indices)) / np.repeat(np.maximum(lengths, 1), lengths) ** 0.5
    return data.astype(stored), indices, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_very_long_rows_are_the_twins(quick_device, stored, kind, index):
    device, features = quick_device, 2 * VERY_LONG + 300
    one = [2, 0, *[3] * 150, 2 * VERY_LONG + 5, *[0, 1] * 60]
    some = [VERY_LONG, 0, VERY_LONG + 1, 700, 2 * VERY_LONG, 0, 9]
    for lengths in (one, some, [2 * VERY_LONG] * 3):
        for columns in (3, 8) if lengths is some else (4, 33):
            X, count = long_rows(lengths, features, stored, index), len(lengths)
            rng = np.random.default_rng(4)
            V, correction = (rng.standard_normal(shape).astype(kind) for shape in ((features, columns), columns))
            Y, Z = np.empty((count, columns), kind), np.ones((features, columns), kind)
            twin.fused(*X, V, correction, Y, Z)
            there, right, taken = [device.put(part) for part in X], device.put(V), device.put(correction)
            alone = None
            for known in (None, long_entries(X[2])):
                own, out = device.empty(Y.shape, kind), device.put(np.ones_like(Z))
                csr_products.fused(device, *there, right, taken, own, out, known)
                np.testing.assert_allclose(device.get(own), Y, atol=30 * TOLERANCE[kind])
                np.testing.assert_allclose(device.get(out), Z, atol=30 * TOLERANCE[kind])
                alone, scattered = device.empty(Y.shape, kind), device.put(np.ones_like(Z))
                csr_products.products(device, *there, right, taken, alone, known)
                csr_products.scatter(device, *there, alone, scattered, known)
                assert device.get(alone).tobytes() == device.get(own).tobytes()
                np.testing.assert_allclose(device.get(scattered), Z, atol=30 * TOLERANCE[kind])
                device.processors += 3
            for row in range(0, count, 3):  # by itself
                csr_products.products(device, *there[:2], there[2][row:], right, taken, own[row:], known)
                np.testing.assert_array_equal(device.get(own[row:]), device.get(alone[row:]))


def test_very_long_rows_by_real_threads(device):
    X = [device.put(part) for part in long_rows([VERY_LONG + 1, 3, 2 * VERY_LONG], 2 * VERY_LONG)]
    V = np.random.default_rng(5).standard_normal((2 * VERY_LONG, 4)).astype("f4")
    Y, Z = np.empty((3, 4), "f4"), np.zeros_like(V)
    twin.fused(*(device.get(part) for part in X), V, None, Y, Z)
    own, out = device.empty(Y.shape, "f4"), device.zeros(V.shape, "f4")
    csr_products.fused(device, *X, device.put(V), None, own, out)
    np.testing.assert_allclose(device.get(own), Y, atol=1e-4)
    np.testing.assert_allclose(device.get(out), Z, atol=1e-4)


def test_more_rows_than_a_grid_has_warps_and_none(quick_device):
    check(quick_device, 300, 11, 4)
    check(quick_device, 0, 11, 4)


def test_what_is_not_finite_shows_in_its_row_and_nowhere_else(quick_device):
    put = quick_device.put
    X = put(np.array([1, np.inf, 2, 3.0])), put(np.array([0, 2, 1, 0], "i4")), put(np.array([0, 2, 4]))
    Y, Z = quick_device.empty((2, 3), "f8"), quick_device.zeros((3, 3), "f8")
    csr_products.fused(quick_device, *X, put(np.ones((3, 3))), None, Y, Z)
    Y, Z = quick_device.get(Y), quick_device.get(Z)
    assert np.isinf(Y[0]).all() and (Y[1] == 5).all()
    assert np.isinf(Z[[0, 2]]).all() and (Z[1] == 10).all()


def test_column_sums_are_taken_in_float64(quick_device):
    Y = (np.random.default_rng(6).standard_normal((1000, 7)) + 1000).astype("f4")
    expected, out = np.ones(7), quick_device.put(np.ones(7))
    twin.column_sums(Y, expected)
    csr_products.column_sums(quick_device, quick_device.put(Y), out)
    np.testing.assert_allclose(quick_device.get(out), expected, rtol=1e-13)


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_rows_with_their_zeros(device, stored, kind, index):
    data, indices, indptr = sparse_rows(50, 90, stored, index, lead=2)
    rng = np.random.default_rng(4)
    X = np.zeros((50, 90))
    X[np.repeat(np.arange(50), np.diff(indptr)), indices[2:]] = data[2:]
    shift, inverse = rng.standard_normal(90), rng.random(90) + 0.5
    parts = [device.put(part) for part in (data, indices, indptr)]
    for by, per in ((shift, inverse), (None, inverse), (shift, None), (None, None)):
        out = device.empty(X.shape, kind)
        csr_products.dense(device, *parts, *(None if one is None else device.put(one) for one in (by, per)), out)
        expected = (X - (0 if by is None else by)) * (1 if per is None else per)
        np.testing.assert_array_equal(device.get(out), expected.astype(kind))
