"""The CUDA kernels for dense rows under the SVD, run on the CPU, against their Numba twins and NumPy in float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dml_hpc.kernels import blocks as twin
from dml_hpc.kernels import plain
from dml_hpc.kernels.cuda import blocks, products

STORED = ["float16", "float32", "float64"]


def rows_of(rows, columns, kind, mean=0.0, seed=7):
    return (mean + np.random.default_rng(seed).standard_normal((rows, columns))).astype(kind)


def standard(columns, shifted, scaled, mean=0.0):
    rng = np.random.default_rng(3)
    return (mean + rng.standard_normal(columns) if shifted else None,
            rng.random(columns) + 0.1 if scaled else None)


def placed(device, array):
    return None if array is None else device.put(array)


@pytest.mark.parametrize("kind", STORED)
@pytest.mark.parametrize("out", ["float32", "float64"])
def test_prepared_blocks_are_the_twins(quick_device, kind, out):
    for rows, columns in ((1, 1), (9, 3), (33, 16), (7, 40), (5, 1032), (3, 700), (0, 4)):
        X = rows_of(rows, columns, kind, 100)
        for shifted, scaled in ((True, True), (True, False), (False, True), (False, False)):
            shift, scale = standard(columns, shifted, scaled, 100)
            expected, found = np.empty((rows, columns), out), quick_device.empty((rows, columns), out)
            twin.prepared(plain(X), shift, scale, expected)
            blocks.prepared(quick_device, quick_device.put(X), placed(quick_device, shift),
                            placed(quick_device, None if scale is None else 1 / scale), found)
            np.testing.assert_array_equal(quick_device.get(found), expected)


@pytest.mark.parametrize("kind", STORED)
def test_prepared_by_real_threads(device, kind):
    X, (shift, scale) = rows_of(50, 24, kind), standard(24, True, True)
    expected, found = np.empty((50, 24), "f4"), device.empty((50, 24), "f4")
    twin.prepared(plain(X), shift, scale, expected)
    blocks.prepared(device, device.put(X), device.put(shift), device.put(1 / scale), found)
    np.testing.assert_array_equal(device.get(found), expected)


def squares(device, X, shift, scale, chunk_rows):
    out = device.put(np.ones(-(-len(X) // chunk_rows)))
    blocks.sum_of_squares(device, device.put(X), placed(device, shift),
                          placed(device, None if scale is None else 1 / scale), chunk_rows, out)
    return device.get(out)


@pytest.mark.parametrize("kind", STORED)
def test_sums_of_squares_of_chunks_are_taken_in_float64(device, kind):
    for rows, columns, chunk_rows in ((300, 41, 64), (130, 8, 130), (3, 300, 1), (65, 16, 64)):
        X = rows_of(rows, columns, kind, 3)
        for shifted, scaled in ((False, False), (True, True)):
            shift, scale = standard(columns, shifted, scaled)
            A = (X.astype(float) - (0 if shift is None else shift)) / (1 if scale is None else scale)
            sums = [1 + np.square(A[first:first + chunk_rows]).sum() for first in range(0, rows, chunk_rows)]
            np.testing.assert_allclose(squares(device, X, shift, scale, chunk_rows), sums, rtol=1e-12)


def test_what_is_not_finite_shows_in_its_chunk_alone(quick_device):
    X = rows_of(30, 5, "float32")
    for bad in (np.nan, np.inf, -np.inf):
        X[14, 3] = bad
        assert np.isfinite(squares(quick_device, X, None, None, 10)).tolist() == [True, False, True]
    X[14, 3] = 1e30
    assert squares(quick_device, X, None, None, 10)[1] == pytest.approx(1e60, rel=1e-6)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 7, 3000])
def test_parts_are_added_exactly_in_fixed_point(quick_device, kind, count):
    part = np.random.default_rng(9).standard_normal(count).astype(kind) * 1000
    part[:2] = [2.5, -3.5][:count]
    expected, out = np.full(count, 3, np.int64), quick_device.put(np.full(count, 3, np.int64))
    for per_unit in (1.0, 2.0 ** 30):
        twin.add_fixed(part, per_unit, expected)
        blocks.add_fixed(quick_device, quick_device.put(part), per_unit, out)
        np.testing.assert_array_equal(quick_device.get(out), expected)


def check_fused(device, rows, width, count, kind="float32", shifted=False, scaled=False, image=True, start=0):
    """Hold the fused kernel against NumPy in float64, on rows ``start`` and on of an array of the device."""
    mean = 50.0 * shifted
    X, (shift, scale) = rows_of(start + rows, width, kind, mean), standard(width, shifted, scaled, mean)
    inverse = None if scale is None else 1 / scale
    V = np.random.default_rng(5).standard_normal((width, count)).astype("f4")
    A = (X[start:].astype(float) - (0 if shift is None else shift)) * (1 if inverse is None else inverse)
    assert products.fits(device, width, count, np.dtype("f4"))
    Y = device.empty((rows, count), "f4") if image else None
    out = device.put(np.ones(width * count))
    products.fused(device, device.put(X)[start:], placed(device, shift), placed(device, inverse), device.put(V), Y, out)
    expected = A.T @ (A @ V.astype(float))
    near = 4e-6 * np.linalg.norm(A, axis=0)[:, None] * np.linalg.norm(A @ V, axis=0) + 1e-6
    assert (np.abs(device.get(out).reshape(width, count) - 1 - expected) <= near).all()
    if Y is not None:
        length = np.linalg.norm(A, axis=1)[:, None] * np.linalg.norm(V, axis=0)
        assert (np.abs(device.get(Y) - A @ V) <= 2e-6 * length + 1e-6).all()


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_fused_products_by_real_threads(device, kind):
    check_fused(device, 70, 40, 24, kind, True, True)
    check_fused(device, 33, 64, 12, kind)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_fused_products_of_every_shape(quick_device, kind):
    for width, count in ((1, 1), (3, 2), (4, 16), (30, 17), (64, 24), (50, 32), (61, 48), (65, 16), (100, 24),
                         (128, 32), (97, 45), (130, 9), (199, 16), (160, 12)):
        check_fused(quick_device, 131, width, count, kind)
    for shape in products.SHAPES:  # each of the kernels, where this device has the shared memory for it
        width = quick_device.block_threads * shape.columns // 2 + 3
        if products._shape(quick_device, width, shape.width) == shape:
            check_fused(quick_device, 50, width, shape.width, kind, True, True, image=False)


def test_fused_products_of_few_rows_many_rows_and_standardised_ones(quick_device):
    for rows in (1, 15, 16, 31, 32, 33, 64, 65, 3000):
        check_fused(quick_device, rows, 20, 8, image=rows % 2 == 0)
    for shifted, scaled in ((True, False), (False, True), (True, True)):
        check_fused(quick_device, 90, 21, 8, "float32", shifted, scaled)
        check_fused(quick_device, 90, 24, 8, "float16", shifted, scaled, start=5)
    out = quick_device.zeros(20 * 8, "f8")
    products.fused(quick_device, quick_device.empty((0, 20), "f4"), None, None, quick_device.zeros((20, 8), "f4"), None,
                   out)
    assert (quick_device.get(out) == 0).all()


def test_fused_products_have_the_same_bits_every_time(quick_device):
    X, V = quick_device.put(rows_of(500, 30, "f4")), quick_device.put(rows_of(30, 8, "f4", seed=8))
    found = []
    for _ in range(2):
        out = quick_device.zeros(240, "f8")
        products.fused(quick_device, X, None, None, V, None, out)
        found.append(quick_device.get(out).tobytes())
    assert found[0] == found[1]


def fixed(device, X, shift, inverse, V, chunk_rows, parts, image=True):
    """Return the sums and AV of rows that go to the device in ``parts`` of whole chunks."""
    out = device.zeros(V.size, "i8")
    images = []
    for first, last in pairwise(parts):
        Y = device.empty((last - first, V.shape[1]), "f4") if image else None
        products.fused_fixed(device, device.put(X[first:last]), placed(device, shift), placed(device, inverse),
                             device.put(V), Y, chunk_rows, 2.0 ** 30, out)
        images += [] if Y is None else [device.get(Y)]
    return device.get(out), np.concatenate(images) if image else None


def check_fixed(device, rows, width, count, kind="float32", chunk_rows=50, shifted=False, scaled=False):
    """Hold the fused kernel in fixed point against NumPy in float64, and one call against several."""
    X, (shift, scale) = rows_of(rows, width, kind, 5.0 * shifted), standard(width, shifted, scaled, 5.0 * shifted)
    inverse = None if scale is None else 1 / scale
    V = np.random.default_rng(5).standard_normal((width, count)).astype("f4")
    A = (X.astype(float) - (0 if shift is None else shift)) * (1 if inverse is None else inverse)
    some = min(rows, chunk_rows * (rows // chunk_rows // 2))
    found, Y = fixed(device, X, shift, inverse, V, chunk_rows, (0, rows))
    near = 4e-6 * np.linalg.norm(A, axis=0)[:, None] * np.linalg.norm(A @ V, axis=0) + 1e-6
    assert (np.abs(found.reshape(width, count) / 2.0 ** 30 - A.T @ (A @ V.astype(float))) <= near).all()
    length = np.linalg.norm(A, axis=1)[:, None] * np.linalg.norm(V, axis=0)
    assert (np.abs(Y - A @ V) <= 2e-6 * length + 1e-6).all()
    again, other_Y = fixed(device, X, shift, inverse, V, chunk_rows, (0, some, rows))
    assert again.tobytes() == found.tobytes() and other_Y.tobytes() == Y.tobytes()
    device.processors += 1
    assert fixed(device, X, shift, inverse, V, chunk_rows, (0, rows), image=False)[0].tobytes() == found.tobytes()
    device.processors -= 1


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_fused_products_in_fixed_point_by_real_threads(device, kind):
    check_fixed(device, 130, 40, 24, kind, 50, True, True)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_fused_products_in_fixed_point_have_the_same_bits_in_any_parts(quick_device, kind):
    for rows, chunk_rows in ((1, 64), (64, 64), (65, 64), (600, 64), (1200, 600), (1100, 520), (1300, 1300), (90, 7)):
        check_fixed(quick_device, rows, 20, 8, kind, chunk_rows)
    for shifted, scaled in ((True, False), (False, True), (True, True)):
        check_fixed(quick_device, 140, 21, 8, kind, 64, shifted, scaled)
    for shape in products.SHAPES:  # each of the kernels, where this device has the shared memory for it
        width = quick_device.block_threads * shape.columns // 2 + 3
        if products._shape(quick_device, width, shape.width) == shape:
            check_fixed(quick_device, 100, width, shape.width, kind)


def test_what_the_fused_kernel_does_not_take(quick_device):
    assert not products.fits(quick_device, 30, 8, np.dtype("f8"))
    assert not products.fits(quick_device, 30, 49, np.dtype("f4"))
    assert not products.fits(quick_device, 4 * quick_device.block_threads + 1, 8, np.dtype("f4"))
