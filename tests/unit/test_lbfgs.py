"""L-BFGS and OWL-QN against SciPy and scikit-learn, whole and cut into slices."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from threading import Barrier, Thread

import numpy as np
import pytest
from scipy.optimize import minimize, rosen, rosen_der
from sklearn.linear_model import Lasso

from dml_hpc.optim.history import History
from dml_hpc.optim.lbfgs import Minimiser
from dml_hpc.optim.line_search import wolfe_step


def dots(rows, vector):
    return np.array([np.dot(row.astype(np.float64), vector.astype(np.float64)) for row in rows])


def run(evaluate, x, most=500, **options):
    """Return the last iterate, its x copied, and the number of iterations."""
    count = 0
    for count, iterate in enumerate(Minimiser(evaluate, x, options.pop("dots", dots), **options), 1):
        if iterate.ended or iterate.gradient_norm < 1e-9 or count == most:
            break
    return iterate, count


def logistic_data(rows=300, features=12, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features)) * np.geomspace(0.2, 4, features)
    y = (X @ rng.standard_normal(features) + 2 * rng.standard_normal(rows) > 0.5).astype(float)
    return X, y


def logistic(X, y, l2):
    """Mean loss with an intercept as the last parameter, not penalised."""
    def evaluate(w):
        s = X @ w[:-1] + w[-1]
        loss = np.mean(np.logaddexp(0, s) - y * s) + 0.5 * l2 * w[:-1] @ w[:-1]
        slopes = (1 / (1 + np.exp(-s)) - y) / len(y)
        return float(loss), np.append(X.T @ slopes + l2 * w[:-1], slopes.sum())
    return evaluate


def quadratic(condition, count=40, seed=1):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((count, count)))[0]
    A = Q * np.geomspace(1, condition, count) @ Q.T
    b = rng.standard_normal(count)
    return lambda x: (float(0.5 * x @ A @ x - b @ x), A @ x - b)


PROBLEMS = {
    "logistic": (logistic(*logistic_data(), 1e-3), np.zeros(13)),
    "quadratic": (quadratic(1e3), np.zeros(40)),
    "rosenbrock": (lambda x: (rosen(x), rosen_der(x)), np.tile([-1.2, 1.0], 5)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_finds_scipys_optimum_with_about_as_many_evaluations(name):
    evaluate, start = PROBLEMS[name]
    found, _ = run(evaluate, start)
    theirs = minimize(evaluate, start, jac=True, method="L-BFGS-B", options={"maxcor": 10, "gtol": 1e-10, "ftol": 0})
    assert found.loss == pytest.approx(theirs.fun, abs=1e-8)
    np.testing.assert_allclose(found.x, theirs.x, atol=1e-6)
    assert found.evaluations < 1.5 * theirs.nfev + 5
    assert found.gradient_norm == pytest.approx(np.linalg.norm(evaluate(found.x)[1]))


def test_the_start_is_left_alone_and_losses_fall():
    evaluate, start = PROBLEMS["rosenbrock"]
    before = start.copy()
    losses = [evaluate(start)[0], *(iterate.loss for iterate in Minimiser(evaluate, start, dots))]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(losses))
    np.testing.assert_array_equal(start, before)


def test_slices_take_the_same_path_as_the_whole():
    evaluate, start = PROBLEMS["logistic"]
    cuts = [(0, 5), (5, 5), (5, 13)]  # one holds nothing
    for l1 in (0.0, 0.01):
        barrier, boards = Barrier(3), [np.empty(13), [None] * 3]
        paths = [[] for _ in cuts]

        def worker(rank, l1=l1, barrier=barrier, boards=boards, paths=paths):
            first, stop = cuts[rank]

            def sliced(x):
                boards[0][first:stop] = x
                barrier.wait()
                loss, gradient = evaluate(boards[0].copy())
                barrier.wait()
                return loss, gradient[first:stop]

            def summed(rows, vector):
                boards[1][rank] = dots(rows, vector)
                barrier.wait()
                total = sum(boards[1])
                barrier.wait()
                return total

            taxed = [(0, min(stop, 12) - first)] if stop > first else []
            for count, iterate in enumerate(Minimiser(sliced, start[first:stop], summed, l1=l1, penalised=taxed), 1):
                paths[rank].append((iterate.loss, iterate.step, iterate.evaluations))
                if count == 15:
                    break

        threads = [Thread(target=worker, args=(rank,)) for rank in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert paths[0] == paths[1] == paths[2]  # to the last bit
        whole = [(iterate.loss, iterate.step, iterate.evaluations) for _, iterate in
                 zip(range(15), Minimiser(evaluate, start, dots, l1=l1, penalised=[(0, 12)]), strict=False)]
        np.testing.assert_allclose(paths[0], whole, rtol=1e-6)


@pytest.mark.parametrize("l1", [0.0, 0.01])
@pytest.mark.parametrize("name", PROBLEMS)
def test_goes_on_between_any_two_iterations_to_the_same_bits(name, l1):
    evaluate, start = PROBLEMS[name]
    count = [0]

    def counted(x):
        count[0] += 1
        return evaluate(x)

    minimiser, path = Minimiser(evaluate, start, dots, l1=l1, memory=3), []
    for iterate in minimiser:
        path.append((iterate.loss, iterate.step, iterate.gradient_norm, iterate.evaluations, iterate.ended,
                     iterate.x.tobytes()))
        if len(path) == 30:
            break
    minimiser, again = Minimiser(evaluate, start, dots, l1=l1, memory=3), []
    while True:  # a new one for every iteration
        values, vectors = json.loads(json.dumps(minimiser.values())), minimiser.vectors()
        minimiser = Minimiser(counted, np.full_like(start, np.nan), dots, l1=l1, memory=3)
        minimiser.restore(values, lambda name, out, vectors=vectors: np.copyto(out, vectors[name]))
        assert set(minimiser.vectors()) == set(vectors)
        iterate = next(minimiser, None)
        if iterate is None or len(again) == 30:
            break
        again.append((iterate.loss, iterate.step, iterate.gradient_norm, iterate.evaluations, iterate.ended,
                      iterate.x.tobytes()))
    assert again == path
    assert len(path) == 30 or path[-1][4]
    assert count[0] >= path[-1][3]


def test_the_direction_is_that_of_the_two_loop_recursion():
    rng = np.random.default_rng(0)
    history, pairs = History(4, 20, np.dtype(float), dots), []
    for number in range(11):
        s, y = history.room()
        s[:] = rng.standard_normal(20)
        y[:] = np.geomspace(1, 50, 20) * s * (-1 if number % 4 == 3 else 1)  # a pair of no use now and then
        pair = s.copy(), y.copy()
        history.add()
        pairs = pairs[1:] if len(pairs) == 4 else pairs
        pairs += [pair] if s @ y > 0 else []
        gradient, out = rng.standard_normal(20), np.empty(20)
        assert history.look(gradient) == pytest.approx(np.linalg.norm(gradient))
        history.direct(gradient, out, np.empty(20))
        q, factors = gradient.copy(), []
        for s, y in reversed(pairs):
            factors.append(s @ q / (s @ y))
            q -= factors[-1] * y
        q *= pairs[-1][0] @ pairs[-1][1] / (pairs[-1][1] @ pairs[-1][1])
        for (s, y), factor in zip(pairs, reversed(factors), strict=True):
            q += (factor - y @ q / (s @ y)) * s
        np.testing.assert_allclose(out, -q, rtol=1e-12, atol=1e-14)
        assert len(history) == len(pairs)


def test_owl_qn_finds_scikit_learns_lasso():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((200, 30))
    y = X[:, :5] @ [3, -2, 1, 0.5, -0.3] + 0.1 * rng.standard_normal(200) + 1

    def evaluate(w):
        residual = X @ w[:-1] + w[-1] - y
        return float(residual @ residual / 400), np.append(X.T @ residual, residual.sum()) / 200

    for l1 in (0.01, 0.1, 1.0):
        theirs = Lasso(alpha=l1, tol=1e-12, max_iter=100_000).fit(X, y)
        found, _ = run(evaluate, np.zeros(31), l1=l1, penalised=[(0, 30)])
        np.testing.assert_allclose(found.x, [*theirs.coef_, theirs.intercept_], atol=1e-6)
        np.testing.assert_array_equal(found.x[:-1] == 0, theirs.coef_ == 0)
        assert found.loss == pytest.approx(evaluate(found.x)[0] + l1 * np.abs(found.x[:-1]).sum())
    assert np.all(run(evaluate, np.ones(31), l1=100.0, penalised=[(0, 30)])[0].x[:-1] == 0)


def test_owl_qn_finds_the_l1_logistic_regression_of_a_smooth_solver_with_bounds():
    X, y = logistic_data()
    smooth = logistic(X, y, 0.0)
    for l1 in (0.003, 0.05):
        def split(pair, l1=l1):  # x = positive part − negative part, both at least 0
            loss, gradient = smooth(pair[:13] - pair[13:])
            tax = np.append(np.full(12, l1), 0)
            return loss + tax @ (pair[:13] + pair[13:]), np.concatenate([gradient + tax, tax - gradient])

        theirs = minimize(split, np.zeros(26), jac=True, method="L-BFGS-B", bounds=[(0, None)] * 26,
                          options={"gtol": 1e-10, "ftol": 0, "maxiter": 5000})
        found, _ = run(smooth, np.zeros(13), l1=l1, penalised=[(0, 12)])
        weights = theirs.x[:13] - theirs.x[13:]
        assert found.loss == pytest.approx(theirs.fun, abs=1e-8)
        np.testing.assert_allclose(found.x, weights, atol=1e-4)
        np.testing.assert_array_equal(found.x[:-1] == 0, weights[:-1] == 0)


def test_float32_vectors_end_by_themselves_at_their_own_precision():
    X, y = logistic_data()
    narrow_X, narrow = X.astype(np.float32), logistic(X, y, 1e-2)

    def evaluate(w):
        s = narrow_X @ w[:-1] + w[-1]
        slopes = ((1 / (1 + np.exp(-s)) - y) / len(y)).astype(np.float32)
        loss = np.mean(np.logaddexp(0, s) - y * s) + 0.005 * w[:-1] @ w[:-1]
        return float(loss), np.append(narrow_X.T @ slopes + np.float32(0.01) * w[:-1], slopes.sum())

    best = minimize(narrow, np.zeros(13), jac=True, method="L-BFGS-B", options={"gtol": 1e-12, "ftol": 0}).fun
    last = None
    for last in Minimiser(evaluate, np.zeros(13, np.float32), dots):
        assert last.x.dtype == np.float32
        assert last.evaluations < 400
    assert last is not None and last.ended
    assert narrow(last.x.astype(float))[0] == pytest.approx(best, abs=1e-7)


def test_a_loss_that_is_not_finite_shortens_the_step():
    def barrier(x):  # x − log x has its minimum at 1 and nothing left of 0
        with np.errstate(all="ignore"):
            return float(np.sum(x - np.log(x))) if np.all(x > 0) else math.nan, 1 - 1 / x

    for start, first in ((0.3, 100.0), (30.0, 1e6)):
        found, _ = run(barrier, np.full(4, start), first_step=first)
        np.testing.assert_allclose(found.x, 1, atol=1e-8)
    [nowhere] = Minimiser(lambda x: (math.nan, x), np.ones(3), dots)
    assert "at the start" in nowhere.ended
    for l1 in (0.0, 0.1):
        [hopeless] = Minimiser(lambda x: (5.0 if not x.any() else math.inf, np.ones(3)), np.zeros(3), dots, l1=l1)
        assert "not finite at any step" in hopeless.ended


def test_ends_where_nothing_is_left_to_do():
    still = [*Minimiser(lambda x: (1.0, np.zeros_like(x)), np.ones(3), dots)]
    assert [(iterate.ended, iterate.evaluations) for iterate in still] == [("the gradient is zero", 1)]
    [zero] = Minimiser(lambda x: (0.0, np.full(3, 0.5)), np.zeros(3), dots, l1=1.0)
    assert zero.ended == "the gradient is zero" and not zero.x.any()
    assert run(lambda x: (float(x @ x), 2 * x), np.ones(3))[0].gradient_norm < 1e-9
    [empty] = Minimiser(lambda x: (0.0, x), np.zeros(0), dots)
    assert empty.ended
    [uphill] = Minimiser(lambda x: (float(x @ x), -2 * x), np.ones(3), dots)  # a gradient that is wrong
    assert "negative gradient" in uphill.ended and uphill.loss == 3


@pytest.mark.parametrize("first", [1e-4, 1e-2, 1.0, 50.0, 1e4])
def test_the_line_search_meets_the_strong_wolfe_conditions(first):
    functions = [
        (lambda a: -a / (a * a + 2), lambda a: (a * a - 2) / (a * a + 2) ** 2),  # Moré and Thuente's first
        (lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4, lambda a: 5 * (a + 0.004) ** 4 - 8 * (a + 0.004) ** 3),
        (lambda a: math.cos(a) - 0.1 * a, lambda a: -math.sin(a) - 0.1),
        (lambda a: (a - 3) ** 2, lambda a: 2 * (a - 3)),
    ]
    for value, slope in functions:
        asked = []

        def probe(a, value=value, slope=slope, asked=asked):
            asked.append(a)
            return value(a), slope(a)

        step = wolfe_step(probe, value(0), slope(0), first, 0.0)
        assert step == asked[-1] and len(asked) <= 20
        assert value(step) <= value(0) + 1e-4 * step * slope(0)
        assert abs(slope(step)) <= 0.9 * abs(slope(0))
