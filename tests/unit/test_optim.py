"""Optimisers against formulas written out in NumPy, sparse steps against dense ones, schedules without an end."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet

from dml_hpc.errors import UserError
from dml_hpc.optim import ENDLESS_SCHEDULES, OPTIMISERS, SCHEDULES, open_optimiser
from dml_hpc.optim.schedules import Schedule
from dml_hpc.optim.settings import OptimiserSettings

WIDE = np.dtype("float64")
SIZE, PENALISED = 17, [(0, 6), (8, 13), (14, 15)]
INSIDE = np.isin(np.arange(SIZE), [*range(6), *range(8, 13), 14])


def soft(values, threshold):
    return np.sign(values) * np.maximum(np.abs(values) - threshold, 0)


class Reference:
    """One step after the other, written out as in the papers."""

    def __init__(self, settings):
        self.s = settings
        self.m = self.v = self.change = 0.0
        self.u = 0.0

    def step(self, w, gradient, eta, t):
        s = self.s
        l1, l2 = s.l1 * INSIDE, s.l2 * INSIDE
        g = gradient if s.clip_value is None else np.clip(gradient, -s.clip_value, s.clip_value)
        g = g + (0 if s.name == "adamw" else l2 * w)
        if s.name == "sgd":  # iPiano: the inertia is that of the weights, η₀ being the step size before
            new = soft(w - eta * g + s.momentum * eta * self.change, eta * l1)
            self.change = (new - w) / eta
            return new
        if s.name == "nesterov":
            new = soft(w - eta * (g + s.momentum * (s.momentum * self.u + g)), eta * (1 + s.momentum) * l1)
            self.u = ((w - new) / eta + s.momentum * self.u) / (1 + s.momentum)
            return new
        if s.name == "adagrad":
            self.v = self.v + g ** 2
            metric = np.sqrt(self.v) + s.epsilon
            return soft(w - eta * g / metric, eta * l1 / metric)
        self.v = s.beta2 * self.v + (1 - s.beta2) * g ** 2
        if s.name == "rmsprop":
            metric = np.sqrt(self.v) + s.epsilon
            return soft(w - eta * g / metric, eta * l1 / metric)
        self.m = s.momentum * self.m + (1 - s.momentum) * g
        metric = np.sqrt(self.v / (1 - s.beta2 ** t)) + s.epsilon
        decay = l2 * w if s.name == "adamw" else 0
        return soft(w - eta * (self.m / (1 - s.momentum ** t) / metric + decay), eta * l1 / metric)


def gradients(steps, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, SIZE)) * np.geomspace(0.1, 10, SIZE)


def start(dtype=WIDE):
    return np.random.default_rng(9).standard_normal(SIZE).astype(dtype)


@pytest.mark.parametrize("penalties", [{}, {"l2": 0.3}, {"l1": 0.2}, {"l1": 0.2, "l2": 0.3, "clip_value": 1.5}],
                         ids=["plain", "l2", "l1", "all"])
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_takes_the_steps_of_its_formula(name, momentum, penalties):
    settings = OptimiserSettings(name, momentum=momentum, beta2=0.95, epsilon=1e-6, **penalties)
    for dtype, tolerance in ((WIDE, 1e-12), (np.dtype("float32"), 2e-5)):
        ours, theirs = start(dtype), start()
        optimiser, reference = open_optimiser(settings, (0, SIZE), dtype, PENALISED), Reference(settings)
        for t, gradient in enumerate(gradients(12), 1):
            eta = 0.1 / math.sqrt(t)
            optimiser.update(ours, (4 * gradient).astype(dtype), 0, 0.25, eta, t)
            theirs = reference.step(theirs, gradient, eta, t)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
        if settings.l1:
            np.testing.assert_array_equal(ours == 0, theirs == 0)


def test_nesterov_is_that_of_sutskever_seen_from_the_point_looked_ahead_to():
    eta, mu = 0.05, 0.9
    theta, velocity = start(), np.zeros(SIZE)
    ahead, curvature = theta.copy(), np.linspace(0.5, 3, SIZE)
    optimiser = open_optimiser(OptimiserSettings("nesterov", momentum=mu), (0, SIZE), WIDE, PENALISED)
    for t in range(1, 30):
        velocity = mu * velocity - eta * curvature * (theta + mu * velocity - 1)  # equations 3 and 4
        theta = theta + velocity
        optimiser.update(ahead, curvature * (ahead - 1), 0, 1.0, eta, t)
        np.testing.assert_allclose(ahead, theta + mu * velocity, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_all_come_to_scikit_learns_elastic_net(name):
    """Whatever the momentum, a penalty is worth what it says."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((100, SIZE - 1))
    y = X[:, :4] @ [2, -1, 0.5, 0.2] + 0.1 * rng.standard_normal(100) + 3
    l1, l2 = 0.1, 0.0 if name == "adamw" else 0.05
    theirs = ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-10, max_iter=10_000).fit(X, y)
    X1 = np.column_stack([X, np.ones(100)])
    optimiser = open_optimiser(OptimiserSettings(name, l1=l1, l2=l2), (0, SIZE), WIDE, [(0, SIZE - 1)])
    weights, steps = np.zeros(SIZE), 4000
    for t in range(1, steps + 1):
        eta = {"sgd": 0.02, "nesterov": 0.02, "adagrad": 1.0}.get(name, 0.05 * (1 - (t - 1) / steps))
        optimiser.update(weights, X1.T @ (X1 @ weights - y), 0, 1 / 100, eta, t)
    np.testing.assert_allclose(weights, [*theirs.coef_, theirs.intercept_], atol=1e-3)
    if name in ("sgd", "nesterov", "adagrad"):
        np.testing.assert_allclose(weights, [*theirs.coef_, theirs.intercept_], atol=1e-7)
        np.testing.assert_array_equal(weights[:-1] == 0, theirs.coef_ == 0)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_parts_in_any_order_sums_in_fixed_point_and_second_thoughts_give_the_same_bits(name):
    first, stop, unit = 3, SIZE, 2.0 ** -20
    settings = OptimiserSettings(name, l1=0.01, l2=0.1, clip_value=5.0)
    rng = np.random.default_rng(5)
    for dtype in (WIDE, np.dtype("float32")):
        whole, parts = start(dtype)[first:], start(dtype)
        one = open_optimiser(settings, (first, stop), dtype, PENALISED, average_iterates=True)
        other = open_optimiser(settings, (first, stop), dtype, PENALISED, repeats=True, average_iterates=True)
        for t, gradient in enumerate(gradients(8), 1):
            summed = np.round(gradient / unit).astype(np.int64)
            one.update(whole, (summed[first:] * unit).astype(dtype), first, 1.0, 0.1, t)
            edges = [first, *sorted(rng.choice(np.arange(first + 1, stop), 3, replace=False)), stop]
            for wrong in ([True, False] if t % 3 == 0 else [False]):
                for part in rng.permutation(4):
                    a, b = edges[part], edges[part + 1]
                    other.update(parts[a:b], summed[a:b] * (7 if wrong else 1), a, unit, 0.2 if wrong else 0.1, t,
                                 again=t % 3 == 0 and not wrong)
        np.testing.assert_array_equal(whole, parts[first:])
        np.testing.assert_array_equal(parts[:first], start(dtype)[:first])
        for mine, yours in zip([*one.state, one.average], [*other.state, other.average], strict=True):
            assert mine.shape == (stop - first,)
            np.testing.assert_array_equal(mine, yours)


def test_long_vectors_are_like_short_ones():
    """Longer than a tile, with an edge in the middle of one."""
    count = 5000
    rng = np.random.default_rng(0)
    weights, gradient = rng.standard_normal((2, count))
    for name in OPTIMISERS:
        settings = OptimiserSettings(name, l1=0.5, l2=0.5)
        ours = weights.copy()
        open_optimiser(settings, (0, count), WIDE, [(700, 4321)]).update(ours, gradient, 0, 1.0, 0.1, 1)
        for a, b in ((0, 1), (699, 702), (1023, 1025), (4320, 4322), (4999, 5000)):
            single = weights[a:b].copy()
            optimiser = open_optimiser(settings, (a, b), WIDE, [(700, 4321)])
            optimiser.update(single, gradient[a:b], a, 1.0, 0.1, 1)
            np.testing.assert_array_equal(single, ours[a:b])


def test_the_average_of_the_iterates_is_that_of_shamir_and_zhang():
    optimiser = open_optimiser(OptimiserSettings("sgd"), (0, SIZE), WIDE, PENALISED, average_iterates=True)
    weights, average = start(), np.zeros(SIZE)
    for t, gradient in enumerate(gradients(20), 1):
        optimiser.update(weights, gradient, 0, 1.0, 0.1, t)
        average = (1 - 4 / (t + 3)) * average + 4 / (t + 3) * weights
    np.testing.assert_allclose(optimiser.average, average, rtol=1e-12)
    assert open_optimiser(OptimiserSettings(), (0, 1), WIDE, []).average is None


def test_what_is_not_finite_shows():
    for name in OPTIMISERS:
        for bad in (math.nan, math.inf):
            weights = np.ones(3)
            optimiser = open_optimiser(OptimiserSettings(name, l1=0.1), (0, 3), WIDE, [(0, 3)])
            optimiser.update(weights, np.array([1.0, bad, 1.0]), 0, 1.0, 0.1, 1)
            assert not np.isfinite(weights[1]) and np.all(np.isfinite(weights[[0, 2]]))
    weights = np.ones(2)
    clipping = OptimiserSettings(clip_value=1.0)
    open_optimiser(clipping, (0, 2), WIDE, []).update(weights, np.array([math.nan, math.inf]), 0, 1.0, 0.5, 1)
    assert np.isnan(weights[0]) and weights[1] == 0.5


SPARSE = [("sgd", {}), ("sgd", {"l2": 0.4}), ("sgd", {"l1": 0.02}), ("sgd", {"l1": 0.02, "l2": 0.4, "clip_value": 1.0}),
          ("adagrad", {}), ("adagrad", {"l1": 0.02, "clip_value": 1.0})]


@pytest.mark.parametrize(("name", "penalties"), SPARSE)
def test_sparse_steps_are_the_dense_ones(name, penalties):
    first = 2
    for dtype, tolerance in ((WIDE, 1e-11), (np.dtype("float32"), 1e-4)):
        settings = OptimiserSettings(name, momentum=0.0, **penalties)
        dense, sparse = (open_optimiser(settings, (first, SIZE), dtype, PENALISED) for _ in range(2))
        assert sparse.sparse_able
        a, b = start(dtype)[first:], start(dtype)[first:]
        rng = np.random.default_rng(1)
        for t, gradient in enumerate(gradients(150), 1):  # long enough for the product to start anew
            indices = rng.choice(np.arange(first, SIZE), rng.integers(0, 4), replace=False)
            sparse.settle(b, indices)
            np.testing.assert_allclose(b[indices - first], a[indices - first], rtol=tolerance, atol=tolerance)
            full = np.zeros(SIZE, dtype)
            full[indices] = 0.01 * gradient[indices]
            eta = 0.5 / math.sqrt(1 + t / 50)
            dense.update(a, full[first:] * 2, first, 0.5, eta, t)
            sparse.update_at(b, indices, full[indices] * 2, 0.5, eta)
            if t % 70 == 0:
                copy = b.copy()
                sparse.settle(copy, np.arange(first, SIZE))
                np.testing.assert_allclose(copy, a, rtol=tolerance, atol=tolerance)
                b[:] = copy
        sparse.settle(b)
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
        sparse.settle(b)  # nothing is paid twice
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)
        full = gradients(1)[0].astype(dtype)[first:]
        for optimiser, weights in ((dense, a), (sparse, b)):
            optimiser.update(weights, full, first, 1.0, 0.1, 151)
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


def test_sparse_sums_may_be_in_fixed_point():
    settings = OptimiserSettings("sgd", momentum=0.0, l1=0.1)
    weights, same = start(), start()
    indices = np.array([1, 7, 16])
    for ours, values, unit in ((weights, np.array([3, -4, 5]), 0.25), (same, np.array([0.75, -1, 1.25]), 1.0)):
        open_optimiser(settings, (0, SIZE), WIDE, PENALISED).update_at(ours, indices, values, unit, 0.1)
    np.testing.assert_array_equal(weights, same)


def test_which_settings_allow_sparse_steps():
    def able(name, momentum=0.0, l2=0.0, **options):
        return open_optimiser(OptimiserSettings(name, momentum, l2=l2), (0, 4), WIDE, [(0, 3)], **options).sparse_able

    assert able("sgd") and able("sgd", l2=0.1) and able("nesterov") and able("adagrad")
    assert not any([able("sgd", 0.9), able("adagrad", l2=0.1), able("adam"), able("rmsprop"),
                    able("sgd", average_iterates=True), able("sgd", repeats=True)])
    with pytest.raises(UserError, match="smaller step size"):
        open_optimiser(OptimiserSettings("sgd", 0.0, l2=2.0), (0, 4), WIDE, [(0, 3)]).update_at(
            np.ones(4), np.array([1]), np.ones(1), 1.0, 0.5)
    with pytest.raises(ValueError, match="unknown optimiser"):
        able("newton")


def test_an_optimiser_that_is_reset_is_as_good_as_new():
    for name in OPTIMISERS:
        optimiser = open_optimiser(OptimiserSettings(name), (0, SIZE), WIDE, PENALISED, average_iterates=True)
        ends = []
        for _ in range(2):
            weights = start()
            for t, gradient in enumerate(gradients(3), 1):
                optimiser.update(weights, gradient, 0, 1.0, 0.1, t)
            ends.append([weights, optimiser.average.copy()])
            optimiser.reset()
        np.testing.assert_array_equal(*ends)


def test_plain_sgd_holds_no_state():
    for name, momentum, arrays in (("sgd", 0.0, 0), ("nesterov", 0.0, 0), ("sgd", 0.9, 1), ("adagrad", 0.9, 1),
                                   ("adam", 0.9, 2)):
        assert len(open_optimiser(OptimiserSettings(name, momentum), (5, 9), WIDE, []).state) == arrays


def test_a_schedule_that_needs_an_end_says_so():
    for name in SCHEDULES:
        if name in ENDLESS_SCHEDULES:
            ended = Schedule(name, 0.5, 100, 10, warmup=1)
            endless = Schedule(name, 0.5, None, 10, warmup=1)
            assert [endless.step_size(step) for step in range(100)] == [ended.step_size(step) for step in range(100)]
        else:
            with pytest.raises(ValueError, match="how many steps"):
                Schedule(name, 0.5, None, 10)
    with pytest.raises(ValueError, match="unknown"):
        Schedule("sometimes", 0.5, 10, 10)
