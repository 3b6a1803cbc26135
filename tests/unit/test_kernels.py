"""The kernels against finite differences in float64 and against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.data.csr import sparse
from dml_hpc.kernels import glm, glm_sparse, sampling


def mean_loss(loss, X, y, w):
    s = X @ w[:-1] + w[-1]
    return np.sum(np.logaddexp(0, s) - y * s if loss == glm.LOGISTIC else 0.5 * (s - y) ** 2)


@pytest.mark.parametrize("loss", [glm.SQUARED, glm.LOGISTIC])
@pytest.mark.parametrize(("rows", "features"), [(0, 3), (1, 1), (7, 5), (8, 17), (25, 64), (1000, 33)])
def test_gradient_agrees_with_finite_differences(loss, rows, features):
    rng = np.random.default_rng(rows + features)
    X = rng.standard_normal((rows + 3, features))
    y = (rng.random(rows + 3) < 0.4).astype(float)
    w = rng.standard_normal(features + 1) / np.sqrt(features)
    order = rng.permutation(rows + 3)[:rows]
    gradient = np.full(features + 1, 2.0)
    total = glm.loss_and_gradient(loss, X, y, order, w, gradient)
    assert total == pytest.approx(mean_loss(loss, X[order], y[order], w), rel=1e-12, abs=1e-12)
    step = 1e-6
    for j in range(features + 1):
        ahead, behind = w.copy(), w.copy()
        ahead[j] += step
        behind[j] -= step
        slope = (mean_loss(loss, X[order], y[order], ahead) - mean_loss(loss, X[order], y[order], behind)) / (2 * step)
        assert gradient[j] - 2.0 == pytest.approx(slope, rel=1e-5, abs=1e-5), "added to what was there"


def test_float32_follows_float64_and_extreme_scores_do_not_overflow():
    X = np.array([[1e4], [-1e4], [3.0]])
    y, w, rows = np.array([0.0, 1.0, 1.0]), np.array([1.0, 0.0]), np.arange(3)
    exact, rough = np.zeros(2), np.zeros(2, np.float32)
    a = glm.loss_and_gradient(glm.LOGISTIC, X, y, rows, w, exact)
    b = glm.loss_and_gradient(glm.LOGISTIC, X.astype("f4"), y.astype("f4"), rows, w.astype("f4"), rough)
    assert a == pytest.approx(2e4 + np.log1p(np.exp(-3)))
    assert b == pytest.approx(a, rel=1e-6)
    np.testing.assert_allclose(rough, exact, rtol=1e-6)


def test_nan_in_the_data_shows_in_the_loss():
    X = np.ones((16, 4))
    X[5, 2] = np.nan
    gradient = np.zeros(5)
    assert np.isnan(glm.loss_and_gradient(glm.LOGISTIC, X, np.ones(16), np.arange(16), np.ones(5), gradient))


def test_scores_are_the_products_with_the_weights():
    rng = np.random.default_rng(1)
    X, w, out = rng.standard_normal((50, 7)), rng.standard_normal(8), np.empty(50)
    glm.scores(X, w, out)
    np.testing.assert_allclose(out, X @ w[:-1] + w[-1])


def test_sequential_sgd_takes_the_steps_of_a_plain_loop():
    rng = np.random.default_rng(2)
    X, y = rng.standard_normal((40, 3)) + 2, rng.standard_normal(40)
    shift, scale = np.array([2.0, 1.0, 0.0]), np.array([0.5, 1.0, 2.0, 1.0])
    weights, order = np.zeros(4), rng.permutation(40)
    met = glm.sequential_sgd(glm.SQUARED, X, y, order, shift, scale, weights, 0.01, 0.1)
    w, b, expected = np.zeros(3), 0.0, 0.0
    for i in order:
        z = (X[i] - shift) * scale[:-1]
        residual = z @ w + b - y[i]
        expected += residual ** 2 / 2
        w = (1 - 0.01 * 0.1) * w - 0.01 * residual * z
        b -= 0.01 * residual
    np.testing.assert_allclose(weights, np.r_[w, b], rtol=1e-12)
    assert met == pytest.approx(expected)


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
    glm.fixed_point_gradient(glm.SQUARED, np.full((1, 1), bad, np.float32), np.zeros(1, np.float32),
                             np.zeros(rows, np.int64), ones, np.zeros(1, np.float32), ones, 2.0**20, 2.0**20, out)
    for mass in out[-2:]:
        good, unit = _judged(float(mass), 2.0**-20, rows)
        assert not good
        assert unit > 2.0**-20


@pytest.mark.parametrize("loss", [glm.SQUARED, glm.LOGISTIC])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sparse_gradient_is_that_of_the_same_rows_dense(loss, dtype):
    rng = np.random.default_rng(3)
    X = np.where(rng.random((200, 30)) < 0.2, rng.normal(size=(200, 30)), 0).astype(dtype)
    X[17] = 0
    thin = sparse(X)
    y, w, rows = (rng.random(200) < 0.5).astype(dtype), rng.normal(size=31).astype(dtype), rng.permutation(200)[:150]
    got, expected = np.zeros(31, dtype), np.zeros(31)
    total = glm_sparse.loss_and_gradient(loss, thin.data, thin.indices, thin.indptr, y, rows, w, got)
    scores = X[rows].astype(float) @ w[:-1] + w[-1]
    slope = scores - y[rows] if loss == glm.SQUARED else 1 / (1 + np.exp(-scores)) - y[rows]
    losses = (scores - y[rows]) ** 2 / 2 if loss == glm.SQUARED else np.logaddexp(0, scores) - y[rows] * scores
    expected[:-1], expected[-1] = slope @ X[rows], slope.sum()
    tolerance = 2e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    assert total == pytest.approx(losses.sum(), rel=tolerance)
    out = np.empty(200, dtype)
    glm_sparse.scores(thin.data, thin.indices, thin.indptr, w, out)
    np.testing.assert_allclose(out, X.astype(float) @ w[:-1] + w[-1], rtol=tolerance, atol=tolerance)
