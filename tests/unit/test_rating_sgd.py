"""The kernel of rating SGD against a loop in float64, and its steps against finite differences of the objective."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from dml_hpc.kernels.rating_sgd import BIAS_STEP, lanes_of, measure, padded, predict, sgd

pytestmark = pytest.mark.maths

FEW, MANY = (13, 9), (400, 300)
"""Users and items: of few, ratings that lie together have some in common, which of many is rare."""
MEAN, SCALE = 3.0, 1.25


def problem(k: int, count: int = 60, biases: bool = True, weighted: bool = False, seed: int = 0, shape=FEW):
    """Ratings, factors (rows of `padded` k, zeros behind k) and biases."""
    rng = np.random.default_rng(seed)
    users, items = (rng.integers(0, rows, count).astype(np.int32) for rows in shape)
    ratings = rng.integers(1, 6, count).astype(np.float32)
    weights = rng.uniform(0.5, 2, count).astype(np.float32) if weighted else None
    p, q = (np.zeros((rows, padded(k)), np.float32) for rows in shape)
    p[:, :k], q[:, :k] = (rng.normal(0, 0.3, (rows, k)) for rows in shape)
    b, c = (rng.normal(0, 0.3, rows).astype(np.float32) if biases else None for rows in shape)
    return users, items, ratings, weights, p, q, b, c


def numbers(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


def run(given, step_size: float, l2: float, bias_l2: float, squares=(None, None), first: int = 0) -> float:
    users, items, ratings, weights, p, q, b, c = given
    if squares[0] is not None:
        for factors, sums in zip((p, q), squares, strict=True):
            measure(factors.reshape(-1).view(np.uint16) if factors.dtype == np.float16 else factors.reshape(-1),
                    sums.reshape(-1), *lanes_of(p.shape[1]))
    flat = [array.view(np.uint16).reshape(-1) if array.dtype == np.float16 else array.reshape(-1) for array in (p, q)]
    flat += [b, c, *(None if one is None else one.reshape(-1) for one in squares)]
    return sgd(users, items, ratings, weights, *flat, *lanes_of(p.shape[1]),
               *numbers(MEAN, SCALE, step_size, l2, bias_l2), first)


def reference(given, step_size: float, l2: float, bias_l2: float, squares=(None, None), first: int = 0):
    """The same in float64, one rating after the other; returns (p, q, b, c, squares, summed loss)."""
    users, items, ratings, weights, *arrays = given
    p, q, b, c = (None if one is None else one.astype(np.float64) for one in arrays)
    sums = [None if one is None else one[:, 0].astype(np.float64) for one in squares]
    total, width = 0.0, p.shape[1]
    for n in np.roll(np.arange(len(users)), -first):
        u, i, w = users[n], items[n], 1.0 if weights is None else float(weights[n])
        e = (ratings[n] - MEAN) / SCALE - p[u] @ q[i] - (0 if b is None else b[u] + c[i])
        total += w * e * e
        steps = [step_size, step_size]
        against = [w * (e * q[i] - l2 * p[u]), w * (e * p[u] - l2 * q[i])]
        if sums[0] is not None:
            for side, (row, other) in enumerate(((u, q[i]), (i, p[u]))):
                sums[side][row] += (w * e) ** 2 * (other @ other) / width
                steps[side] /= np.sqrt(1 + sums[side][row])
        p[u], q[i] = p[u] + steps[0] * against[0], q[i] + steps[1] * against[1]
        if b is not None:
            b[u] += BIAS_STEP * steps[0] * w * (e - bias_l2 * b[u])
            c[i] += BIAS_STEP * steps[1] * w * (e - bias_l2 * c[i])
    return p, q, b, c, sums, total


@pytest.mark.parametrize("shape", [FEW, MANY])
@pytest.mark.parametrize("k", [1, 16, 20, 32, 64, 100, 128, 130])
def test_steps_are_those_of_a_loop_in_float64(k, shape):
    given = problem(k, shape=shape)
    expected = reference(given, 0.05, 0.1, 0.02)
    total = run(given, 0.05, 0.1, 0.02)
    for found, wanted in zip(given[4:], expected[:4], strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert total == pytest.approx(expected[-1], rel=1e-5)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("shape", [FEW, MANY])
def test_every_kind_of_step_is_that_of_a_loop_in_float64(biases, weighted, adaptive, shape):
    given = problem(20, biases=biases, weighted=weighted, shape=shape)
    squares = [np.full((rows, 2), start, np.float32) if adaptive else None
               for rows, start in zip(shape, (0.5, 0), strict=True)]
    expected = reference(given, 0.05, 0.1, 0.02, squares, 17)
    total = run(given, 0.05, 0.1, 0.02, squares, 17)
    if adaptive:
        for (_, length), row in zip(squares[0], given[4], strict=True):  # which is not looked at again, but follows
            assert length == pytest.approx(row @ row, rel=1e-4)
        squares = [sums[:, 0] for sums in squares]
    for found, wanted in zip([*given[4:], *squares], [*expected[:4], *expected[4]], strict=True):
        if wanted is None:
            assert found is None
        else:
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert total == pytest.approx(expected[-1], rel=1e-5)
    assert not given[4][:, 20:].any() and not given[5][:, 20:].any()


def test_a_step_goes_against_the_gradient_of_the_objective():
    users, items, ratings, weights, p, q, b, c = problem(16, count=1, weighted=True)
    u, i, step, l2, bias_l2 = users[0], items[0], 1e-3, 0.3, 0.7

    def objective(values: np.ndarray) -> float:
        p_u, q_i, (b_u, c_i) = values[:16], values[16:32], values[32:]
        e = (float(ratings[0]) - MEAN) / SCALE - p_u @ q_i - b_u - c_i
        return 0.5 * float(weights[0]) * (e * e + l2 * (p_u @ p_u + q_i @ q_i) + bias_l2 * (b_u**2 + c_i**2))

    before = np.r_[p[u], q[i], b[u], c[i]].astype(np.float64)
    slopes = np.array([(objective(before + h) - objective(before - h)) / 2e-5 for h in np.eye(34) * 1e-5])
    run((users, items, ratings, weights, p, q, b, c), step, l2, bias_l2)
    lengths = step * np.r_[np.ones(len(before) - 2), BIAS_STEP, BIAS_STEP]
    np.testing.assert_allclose((before - np.r_[p[u], q[i], b[u], c[i]]) / lengths, slopes, atol=4e-4)


def test_lengths_are_those_of_rows_of_half_precision_where_items_are_popular():
    """Each step rounds, and what that takes from 30,000 of an item's adds up: sums of squares never fall for it."""
    rng = np.random.default_rng(1)
    users, items = 60_000, 4
    pairs = rng.permutation(users * items)[:120_000]
    tastes = [rng.normal(0, 1, (rows, 2)) for rows in (users, items)]
    known = (tastes[0][pairs // items] * tastes[1][pairs % items]).sum(axis=1)
    ratings = (MEAN + SCALE * (0.7 * known + rng.normal(0, 0.3, len(pairs)))).astype(np.float32)
    p, q = (rng.normal(0, 0.05, (rows, 16)).astype(np.float16) for rows in (users, items))
    squares = [np.zeros((rows, 2), np.float32) for rows in (users, items)]
    given = ((pairs // items).astype(np.int32), (pairs % items).astype(np.int32), ratings, None, p, q, None, None)
    before = 0.0
    for _ in range(4):
        assert np.isfinite(run(given, 0.1, 0.02, 0.02, squares))
        sums = np.concatenate([one[:, 0] for one in squares])
        assert sums.min() >= 0 and sums.sum() > before
        before = sums.sum()
        for factors, one in zip((p, q), squares, strict=True):
            np.testing.assert_allclose(one[:, 1], (factors.astype(np.float64) ** 2).sum(axis=1), rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("off", [1e3, 1e6])
def test_no_outlier_moves_a_row_far_with_adagrad(off):
    """A gradient counts among those that its step is divided by: no element moves by more than √k·step size."""
    given = problem(32, count=8, biases=False, shape=MANY)
    given[2][3] = off
    before = [given[4].copy(), given[5].copy()]
    run(given, 0.1, 0.0, 0.0, (np.zeros((MANY[0], 2), np.float32), np.zeros((MANY[1], 2), np.float32)))
    for old, new in zip(before, given[4:6], strict=True):
        assert 0.01 < np.linalg.norm(new - old, axis=1).max() <= 0.1 * np.sqrt(32) * 1.001


def test_factors_of_half_precision_are_summed_in_single():
    given = problem(32)
    half = (*given[:4], given[4].astype(np.float16), given[5].astype(np.float16), *(one.copy() for one in given[6:]))
    expected = reference(half, 0.05, 0.1, 0.02)
    total = run(half, 0.05, 0.1, 0.02)
    np.testing.assert_allclose(half[4], expected[0], atol=4e-3)  # each step rounds once
    np.testing.assert_allclose(half[5], expected[1], atol=4e-3)
    assert total == pytest.approx(expected[-1], rel=1e-2)


def test_no_ratings_change_nothing():
    given = problem(16, count=0)
    before = [one.copy() for one in given[4:]]
    assert run(given, 0.1, 0.1, 0.1) == 0.0
    for found, wanted in zip(given[4:], before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_diverges_is_seen():
    given = problem(16)
    assert not np.isfinite(sum(run(given, 50.0, 0.0, 0.0) for _ in range(20)))


def test_predictions_of_known_and_unknown():
    users, items, _, _, p, q, b, c = problem(20)
    users[3], items[3], users[4], items[5] = -1, -1, -1, -1
    found = np.empty(len(users), np.float32)
    predict(users, items, p.reshape(-1), q.reshape(-1), b, c, *lanes_of(p.shape[1]), *numbers(MEAN, SCALE), found)
    u, i = users >= 0, items >= 0
    score = np.where(u & i, np.sum(p[users] * q[items], axis=1), 0)
    score += np.where(u, b[users], 0) + np.where(i, c[items], 0)
    np.testing.assert_allclose(found, MEAN + SCALE * score, rtol=1e-5)
    assert found[3] == MEAN


STEPS = """
import hashlib, numpy as np
from dml_hpc.kernels.rating_sgd import lanes_of, sgd
rng = np.random.default_rng(0)
users, items = (rng.integers(0, rows, 4001).astype(np.int32) for rows in (200, 150))
p, q = (rng.normal(0, 0.1, 16 * rows).astype(np.float16).view(np.uint16) for rows in (200, 150))
b, c, p_squares, q_squares = (np.zeros(rows, np.float32) for rows in (200, 150, 400, 300))
ratings = rng.normal(size=4001).astype(np.float32)
for _ in range(4):
    sgd(users, items, ratings, None, p, q, b, c, p_squares, q_squares, *lanes_of(16),
        *map(np.float32, (0, 1, 0.1, 0.02, 0.02)), 0)
print(hashlib.sha256(b"".join(array.tobytes() for array in (p, q, b, c))).hexdigest())
"""


def test_a_kernel_just_compiled_takes_the_steps_of_one_read_from_its_cache(tmp_path):
    told = [subprocess.run([sys.executable, "-c", STEPS], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
                           capture_output=True, text=True, check=True, timeout=120).stdout for _ in range(2)]
    assert told[0] == told[1]
