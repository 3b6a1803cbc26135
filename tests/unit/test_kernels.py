"""Kernels against plain NumPy: edge cases of linear scores (the rest: test_objectives.py), shuffles, overflow."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import glm, sampling
from dml_hpc.kernels.losses import LOGISTIC, SQUARED


@pytest.mark.parametrize("loss", [SQUARED, LOGISTIC])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_gradients_of_all_shapes_are_those_of_two_products(loss, kind):
    # Rows go by eights and features by 64 and 256 bytes: every remainder of them.
    rng = np.random.default_rng(1)
    for features in (1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 257):
        for rows in (0, 1, 2, 7, 8, 9, 16, 23):
            X = rng.standard_normal((rows + 3, features)).astype(kind)
            y, w = (rng.random(rows + 3) < 0.4).astype(kind), (rng.standard_normal(features + 1) / 8).astype(kind)
            order = rng.permutation(rows + 3)[:rows]
            gradient = np.full(features + 1, 2, kind)
            total = glm.loss_and_gradient(loss, 1.0, X, y, None, order, w, gradient)
            s = X[order].astype(float) @ w[:-1] + w[-1]
            slope = 1 / (1 + np.exp(-s)) - y[order] if loss == LOGISTIC else s - y[order]
            losses = np.logaddexp(0, s) - y[order] * s if loss == LOGISTIC else (s - y[order]) ** 2 / 2
            tolerance = 1e-4 if kind == "float32" else 1e-12
            np.testing.assert_allclose(gradient - 2, np.r_[slope @ X[order], slope.sum()], atol=tolerance)
            assert total == pytest.approx(losses.sum(), rel=tolerance, abs=tolerance)


def test_float32_follows_float64_and_extreme_scores_do_not_overflow():
    X = np.array([[1e4], [-1e4], [3.0]])
    y, w, rows = np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0]), np.arange(3)
    exact, rough = np.zeros(2), np.zeros(2, np.float32)
    a = glm.loss_and_gradient(LOGISTIC, 1.0, X, y, None, rows, w, exact)
    b = glm.loss_and_gradient(LOGISTIC, 1.0, X.astype("f4"), y.astype("f4"), None, rows, w.astype("f4"), rough)
    assert a == pytest.approx(2e4 + np.log1p(np.exp(-3)))
    assert b == pytest.approx(a, rel=1e-6)
    np.testing.assert_allclose(rough, exact, rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 64, 65, 1000])
def test_permute_is_a_permutation_and_keys_give_different_ones(length):
    orders = [[sampling.permute(i, length, np.uint64(key)) for i in range(length)] for key in (1, 2)]
    for order in orders:
        assert sorted(order) == list(range(length))
    assert length < 5 or orders[0] != orders[1]


@pytest.mark.parametrize("length", [8, 16, 64, 100])
def test_permute_shuffles_pairs_without_a_visible_bias(length):
    # Where items 0 and 1 go under 40,000 keys: every distance equally often. Chi-squared per degree of freedom.
    keys = np.arange(40000, dtype=np.uint64)
    apart = np.bincount([(sampling.permute(1, length, key) - sampling.permute(0, length, key)) % length
                         for key in keys], minlength=length)[1:]
    expected = len(keys) / (length - 1)
    assert ((apart - expected) ** 2 / expected).sum() / (length - 2) < 3


@pytest.mark.parametrize("rows", [1, 1 << 22, (1 << 23) + 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_reproducible_sum_that_is_too_large_shows_however_many_rows_it_has(rows, bad):
    from dml_hpc.trainers.gradient import _judged

    out = np.zeros(1 + 4, np.int64)
    ones = np.ones(2, np.float32)
    glm.fixed_point_gradient(SQUARED, 1.0, np.full((1, 1), bad, np.float32), np.zeros(1, np.float32), None,
                             np.zeros(rows, np.int64), ones, np.zeros(1, np.float32), ones, 2.0**20, 2.0**20, out)
    for mass in out[-2:]:
        good, unit = _judged(float(mass), 2.0**-20, rows)
        assert not good
        assert unit > 2.0**-20
