"""The CUDA kernels for sparse rows in fixed point under the SVD, run on the CPU, against NumPy's whole numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from test_csr_products import sparse_rows

from dml_hpc.kernels.cuda import csr_fixed

PER_UNIT = 2.0 ** 20


def expected_sums(data, indices, indptr, Y, worth, features):
    """Return what `scatter` adds, entry by entry."""
    found = np.zeros((features, Y.shape[1]), np.int64)
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            x = float(data[k]) * (1.0 if worth is None else worth[indices[k]])
            found[indices[k]] += np.rint(x * (Y[row].astype(float) * PER_UNIT)).astype(np.int64)
    return found


def check(device, rows, features, columns, stored="float32", kind="float32", index="int32", worth=False, lead=0,
          most=9):
    data, indices, indptr = sparse_rows(rows, features, stored, index, lead, most)
    rng = np.random.default_rng(5)
    Y = rng.standard_normal((rows, columns)).astype(kind)
    per = rng.random(features) + 0.5 if worth else None
    out = device.put(np.ones(features * columns, np.int64))
    csr_fixed.scatter(device, *(device.put(part) for part in (data, indices, indptr)), device.put(Y),
                      None if per is None else device.put(per), PER_UNIT, out)
    expected = 1 + expected_sums(data, indices, indptr, Y, per, features)
    np.testing.assert_array_equal(device.get(out).reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("worth", [False, True])
def test_entries_are_added_exactly(device, kind, worth):
    for columns in (1, 3, 24, 33):
        check(device, 23, 17, columns, kind, kind, worth=worth, lead=3)


@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_every_type(quick_device, stored, kind, index):
    check(quick_device, 40, 30, 5, stored, kind, index, worth=True)


def test_every_width_long_rows_and_none(quick_device):
    for columns in (*range(1, 9), 31, 32, 48, 64, 65, 130):
        check(quick_device, 7, 19, columns)
    check(quick_device, 5, 700, 8, most=700)
    check(quick_device, 600, 11, 4)
    check(quick_device, 900, 3, 4, lead=300, most=1)
    check(quick_device, 0, 11, 4)


def test_rows_in_any_parts_add_the_same_bits(quick_device):
    data, indices, indptr = sparse_rows(60, 20, "float32")
    Y = np.random.default_rng(3).standard_normal((60, 6)).astype("f4")
    put, found = quick_device.put, []
    for cuts in ((0, 60), (0, 13, 14, 50, 60)):
        out = quick_device.zeros(120, "int64")
        for first, last in pairwise(cuts):
            csr_fixed.scatter(quick_device, put(data), put(indices), put(indptr[first:last + 1]), put(Y[first:last]),
                              None, 1e12 / 3, out)
        found.append(quick_device.get(out).tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", [(1, 1), (17, 5), (300, 12)])
def test_the_shift_is_taken_off_before_rounding(device, shape):
    features, columns = shape
    rng = np.random.default_rng(8)
    sums = rng.integers(-1 << 50, 1 << 50, shape)
    unit, shift = 2.0 ** rng.integers(-40, -30, features), 1000 * rng.standard_normal(features)
    taken = rng.standard_normal(columns)
    given, out = device.put(sums.reshape(-1)), device.put(np.full(sums.size, 7, np.int64))
    csr_fixed.settle(device, given, *(device.put(one) for one in (unit, shift, taken)), PER_UNIT, out)
    exact = sums * unit[:, None] - shift[:, None] * taken
    # A GPU may round the difference's product and sum at once.
    np.testing.assert_allclose(device.get(out).reshape(shape), 7 + np.rint(exact * PER_UNIT), atol=2, rtol=1e-13)
    assert not device.get(given).any()
