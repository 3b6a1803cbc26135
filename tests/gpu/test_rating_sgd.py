"""The CUDA kernels for steps of ratings, run on the CPU, against their Numba twins and NumPy."""

from __future__ import annotations

import os

import numpy as np
import pytest
from races import HUNTING

from dml_hpc.kernels import rating_sgd as twin
from dml_hpc.kernels.cuda import rating_sgd

KS = (5, 48, 100, 130)
"""One for each shape of the kernel."""
DTYPES = ("float32", "float16")
CONSTANTS = 3.2, 1.3, 0.1, 0.03, 0.05
"""Mean, scale, step size, penalties."""
RACING = pytest.mark.skipif(HUNTING in os.environ, reason="ratings of one row are raced for, as they are meant to be")


def stripes(users, items, k, dtype, biased=True, adaptive=True, seed=1):
    """Return rows of users and items: factors, biases, squares."""
    rng = np.random.default_rng(seed)
    found = []
    for rows in (users, items):
        factors = np.zeros((rows, twin.padded(k)), dtype)
        factors[:, :k] = rng.standard_normal((rows, k)) / k**0.5
        squares = np.zeros(2 * rows, np.float32)
        squares[::2] = rng.random(rows)
        found.append((factors, rng.standard_normal(rows).astype("f4") if biased else None,
                      squares if adaptive else None))
    return found


def some_ratings(users, items, count, weighted, seed=2):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, users, count).astype("i4"), rng.integers(0, items, count).astype("i4"),
            (3 + rng.standard_normal(count)).astype("f4"), (rng.random(count) + 0.5).astype("f4") if weighted else None)


def flat(factors):
    return factors.reshape(-1).view(np.uint16 if factors.dtype == np.float16 else factors.dtype)


def by_twin(block, p, q, first):
    """Return the loss; the rows are changed."""
    shape = twin.lanes_of(p[0].shape[1])
    for factors, _, squares in (p, q):
        if squares is not None:
            twin.measure(flat(factors), squares, *shape)
    return twin.sgd(*block, flat(p[0]), flat(q[0]), p[1], q[1], p[2], q[2], *shape, *map(np.float32, CONSTANTS), first)


def there(device, *arrays):
    return [None if one is None else device.put(one) for one in arrays]


def by_kernel(device, blocks, sides, firsts, apart=None):
    """Return the loss, and each block's rows after steps for all."""
    held, table = [], []
    for block, (p, q), first in zip(blocks, sides, firsts, strict=True):
        arrays = there(device, *block)
        rows = rating_sgd.Sides(*there(device, p[0], q[0], p[1], q[1], p[2], q[2]))
        held.append((arrays, rows))
        table.append(rating_sgd.entry(*arrays, rows, first))
    losses = device.zeros(rating_sgd.most_blocks(device), "f8")
    longest = max(len(block[2]) for block in blocks)
    rows = (sum(len(p[0]) for p, _ in sides), sum(len(q[0]) for _, q in sides)) if apart is None else (apart, apart)
    first_p = sides[0][0][0]
    rating_sgd.sgd(device, device.put(np.array(table)), longest, rows, first_p.dtype, first_p.shape[1], *CONSTANTS,
                   losses)
    return device.get(losses).sum(), [[None if one is None else device.get(one) for one in rows] for _, rows in held]


def near(found, p, q):
    """Check that rows are those of the twin."""
    for own, wanted in zip(found, (p[0], q[0], p[1], q[1], p[2], q[2]), strict=True):
        if wanted is not None:
            step = 1 if wanted.ndim > 1 or wanted is p[1] or wanted is q[1] else 2  # lengths are the twin's alone
            np.testing.assert_allclose(own[::step].astype("f8"), wanted[::step].astype("f8"), rtol=1e-3,
                                       atol=1e-2 if p[0].dtype == np.float16 else 2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [5, 130])
def test_steps_that_share_no_rows_are_the_twins(device, k, dtype):
    count = 37
    for biased, adaptive, weighted in ((True, True, True), (False, False, False)):
        p, q = stripes(count, count + 4, k, dtype, biased, adaptive)
        rng = np.random.default_rng(3)
        _, _, ratings, weights = some_ratings(count, count, count, weighted)
        block = rng.permutation(count).astype("i4"), rng.permutation(count).astype("i4"), ratings, weights
        loss, (found,) = by_kernel(device, [block], [(p, q)], [5], apart=1000)
        assert by_twin(block, p, q, 5) == pytest.approx(loss, rel=1e-3 if dtype == "float16" else 1e-5)
        near(found, p, q)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", KS)
def test_steps_one_by_one_are_the_twins_in_their_order(quick_device, k, dtype):
    for weighted, adaptive, first in ((True, True, 0), (False, True, 311), (True, False, 7)):
        p, q = stripes(7, 90, k, dtype, True, adaptive)
        block = some_ratings(7, 90, 400, weighted)
        loss, (found,) = by_kernel(quick_device, [block], [(p, q)], [first])
        assert by_twin(block, p, q, first) == pytest.approx(loss, rel=3e-3)
        near(found, p, q)


@RACING
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_at_once_lower_the_error_of_each(quick_device, dtype):
    """Steps may be lost, no block may be left out; blocks of 0 ratings, of one, and of many chunks lie side by side."""
    sizes, blocks, sides = (0, 1, 700, 300), [], []
    for number, size in enumerate(sizes):
        blocks.append(some_ratings(200, 100, size, False, number))
        sides.append(tuple(stripes(200, 100, 20, dtype, seed=10 + number)))
    loss, found = by_kernel(quick_device, blocks, sides, [0, 0, 99, 3])
    before = sum(float(np.sum(error(block, *side) ** 2)) for block, side in zip(blocks, sides, strict=True))
    assert 0.5 * before < loss <= before * 1.001
    for block, (p, q), own in zip(blocks, sides, found, strict=True):
        after = error(block, (own[0], own[2]), (own[1], own[3]))
        assert np.sum(after**2) <= (0.9 if len(after) else 1) * np.sum(error(block, p, q) ** 2)
        untouched = np.setdiff1d(np.arange(200), block[0])
        np.testing.assert_array_equal(own[0][untouched], p[0][untouched])


def error(block, p, q):
    users, items, ratings, _ = block
    mean, scale = CONSTANTS[:2]
    return ((ratings - mean) / scale - np.sum(p[0][users].astype("f8") * q[0][items], axis=1) - p[1][users]
            - q[1][items])


@pytest.mark.parametrize("size", [3, 4])
def test_what_diverges_shows(quick_device, size):
    p, q = stripes(8, 8, 8, "float32")
    p[0][3] = 10.0 ** (9 * size)
    block = np.arange(8, dtype="i4"), np.arange(8, dtype="i4"), np.ones(8, "f4"), None
    loss, (found,) = by_kernel(quick_device, [block], [(p, q)], [0])
    assert not np.isfinite(loss) or loss > 1e40
    assert np.isfinite(found[0][[0, 1, 2, 4]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", KS)
def test_predictions_are_the_twins(quick_device, k, dtype):
    device = quick_device
    mean, scale = CONSTANTS[:2]
    table, wanted, held = [], [], []
    for number, count in enumerate((600, 0, 5)):
        p, q = stripes(9, 6, k, dtype, number != 2, False)
        users, items, _, _ = some_ratings(9, 6, count, False, number)
        users[::7], items[::5] = -1, -1
        out = np.empty(count, "f4")
        twin.predict(users, items, flat(p[0]), flat(q[0]), p[1], q[1], *twin.lanes_of(p[0].shape[1]),
                     np.float32(mean), np.float32(scale), out)
        held.append((there(device, users, items), rating_sgd.Sides(*there(device, p[0], q[0], p[1], q[1]))))
        table.append(rating_sgd.entry(*held[-1][0], None, None, held[-1][1], sum(map(len, wanted))))
        wanted.append(out)
    found = device.empty(605, "f4")
    rating_sgd.predict(device, device.put(np.array(table)), 600, np.dtype(dtype), twin.padded(k), mean, scale, found)
    np.testing.assert_allclose(device.get(found), np.concatenate(wanted), rtol=1e-5, atol=1e-5)
