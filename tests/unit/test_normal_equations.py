"""Solutions of normal equations against dense ones in float64; products of tiles; what is singular stays finite."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels.gram import add_gram
from dml_hpc.kernels.normal_equations import padded, room, solve, solve_cg

pytestmark = pytest.mark.maths

MEAN, INVERSE = 3.0, 0.8
GATHERED_BYTES = 1 << 16
COUNTS = [0, 1, 3, 15, 16, 17, 40, 64, 65, 200, 2500]
"""Entries of rows: none, fewer than factors, and more than are gathered at a time."""


class Problem:
    """Rows with `COUNTS` entries of the rows of another side, and what is solved for."""

    def __init__(self, k: int, biased: bool = False, weighted: bool = False, alpha: float = 0.0, uneven: bool = False,
                 seed: int = 0):
        rng = np.random.default_rng(seed)
        self.k, self.alpha, self.uneven, self.width = k, alpha, uneven, padded(k)
        self.others = np.zeros((300, self.width), np.float32)
        self.others[:, :k] = rng.normal(0, 0.3, (300, k))
        self.starts = np.concatenate([[0], np.cumsum(COUNTS)])
        self.columns = rng.integers(0, 300, self.starts[-1]).astype(np.int32)
        self.ratings = rng.integers(0, 6, self.starts[-1]).astype(np.float32)
        self.weights = rng.uniform(0.5, 2, self.starts[-1]).astype(np.float32) if weighted else None
        self.other_biases = rng.normal(0, 0.3, 300).astype(np.float32) if biased else None
        self.gram = (self.others.T @ self.others).reshape(-1) if alpha else None
        self.x = np.full((len(COUNTS), self.width), 0.1, np.float32)
        self.x[:, k:] = 0
        self.biases = np.full(len(COUNTS), 0.1, np.float32) if biased else None
        self.losses = np.full((len(COUNTS), 2), np.nan)

    def penalties(self, l2: float) -> np.ndarray:
        """Return l2 a rating (implicit: a row); with ``uneven``, other ones for each factor, a rating and a row."""
        if self.uneven:
            return (l2 * np.random.default_rng(3).uniform(0, 2, 2 * (self.width + 1))).astype(np.float32)
        found = np.zeros((2, self.width + 1), np.float32)
        found[int(self.alpha > 0)] = l2
        return found.reshape(-1)

    def run(self, l2: float, steps: int | None = None, first: int = 0, last: int = len(COUNTS)) -> None:
        given = (self.starts, self.columns, self.ratings, self.weights, self.others.reshape(-1), self.other_biases,
                 self.gram, self.x.reshape(-1), self.biases, self.losses, self.width, MEAN, INVERSE,
                 self.penalties(l2), self.alpha)
        if steps is None:
            solve(*given, first, last, room(self.width, GATHERED_BYTES))
        else:
            solve_cg(*given, steps, first, last, room(self.width, GATHERED_BYTES))

    def row(self, n: int, l2: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, a, targets, matrix without penalties, and these, float64; a bias is a last column."""
        rating, row = self.penalties(l2).astype(np.float64).reshape(2, -1)[:, [*range(self.k), *(
            [] if self.biases is None else [self.width])]]
        own = slice(*self.starts[n:n + 2])
        q = self.others[self.columns[own], :self.k].astype(np.float64)
        r = self.ratings[own].astype(np.float64)
        v = np.ones(len(r)) if self.weights is None else self.weights[own].astype(np.float64)
        if self.alpha:
            all_q = self.others[:, :self.k].astype(np.float64)
            a = self.alpha * v * r
            return q, a, (r > 0) * 1.0, (q.T * a) @ q + all_q.T @ all_q, a.sum() * rating + row
        target = (r - MEAN) * INVERSE
        if self.other_biases is not None:
            target -= self.other_biases[self.columns[own]]
            q = np.column_stack([q, np.ones(len(q))])
        return q, v, target, (q.T * v) @ q, v.sum() * rating + row

    def exact(self, n: int, l2: float) -> np.ndarray:
        q, a, target, matrix, ridge = self.row(n, l2)
        if not len(q):
            return np.zeros(len(matrix))
        return np.linalg.solve(matrix + np.diag(ridge), q.T @ ((a + bool(self.alpha)) * target))

    def found(self, n: int) -> np.ndarray:
        return self.x[n, :self.k] if self.biases is None else np.append(self.x[n, :self.k], self.biases[n])


KINDS = {"explicit": {}, "biases": {"biased": True}, "weights": {"weighted": True},
         "both": {"biased": True, "weighted": True}, "implicit": {"alpha": 5.0},
         "implicit weights": {"alpha": 5.0, "weighted": True}, "uneven": {"uneven": True},
         "uneven biases": {"uneven": True, "biased": True, "weighted": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 16, 20, 64, 130])
def test_rows_are_those_of_a_dense_solution_in_float64(k, kind):
    problem = Problem(k, **KINDS[kind])
    problem.run(0.1)
    for n in range(len(COUNTS)):
        wanted = problem.exact(n, 0.1)
        np.testing.assert_allclose(problem.found(n), wanted, atol=6e-5 * max(np.abs(wanted).max(), 0.05))
    assert not problem.x[:, k:].any() and not problem.x[0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [None, 2])
def test_losses_are_those_of_what_was_found(kind, steps):
    problem = Problem(20, **KINDS[kind])
    problem.run(0.1, steps)
    for n in range(1, len(COUNTS)):
        q, a, target, _, ridge = problem.row(n, 0.1)
        x = problem.found(n).astype(np.float64)
        off = target - q @ x
        fit = (a * off * off).sum()
        if problem.alpha:
            everything = problem.others[:, :20].astype(np.float64) @ x
            fit = ((1 + a) * off**2 - (q @ x)**2).sum() + (everything**2).sum()
        assert problem.losses[n, 0] == pytest.approx(fit, rel=2e-4, abs=2e-4)
        assert problem.losses[n, 1] == pytest.approx(ridge @ x**2, rel=1e-4)
    assert not problem.losses[0].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, 60])
def test_conjugate_gradients_are_those_of_a_loop_in_float64(kind, steps):
    problem = Problem(20, **KINDS[kind])
    begun = [problem.found(n).astype(np.float64) for n in range(len(COUNTS))]
    problem.run(0.1, steps)
    for n in range(1, len(COUNTS)):
        q, a, target, matrix, ridge = problem.row(n, 0.1)
        matrix += np.diag(ridge)
        x = begun[n]
        r = q.T @ ((a + bool(problem.alpha)) * target) - matrix @ x
        p = r.copy()
        for _ in range(min(steps, 20)):
            if r @ r < 1e-20:
                break
            step = r @ r / (p @ matrix @ p)
            x, new = x + step * p, r - step * (matrix @ p)
            p, r = new + new @ new / (r @ r) * p, new
        wanted = problem.exact(n, 0.1) if steps == 60 else x
        np.testing.assert_allclose(problem.found(n), wanted, atol=3e-4 * max(np.abs(wanted).max(), 0.05))
    assert not problem.found(0).any()


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("kind", ["weights", "both"])
def test_ratings_that_weigh_nothing_make_zeros(steps, kind):
    problem = Problem(20, **KINDS[kind])
    problem.weights[:] = 0
    problem.run(0.1, steps)
    assert not problem.x.any() and not problem.losses.any() and (problem.biases is None or not problem.biases.any())


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_whatever_is_solved_with_it(kind, steps):
    whole, parts = Problem(20, **KINDS[kind]), Problem(20, **KINDS[kind])
    whole.run(0.1, steps)
    for n in reversed(range(len(COUNTS))):
        parts.run(0.1, steps, n, n + 1)
    np.testing.assert_array_equal(parts.x, whole.x)
    np.testing.assert_array_equal(parts.losses, whole.losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [None, 3])
def test_what_is_singular_is_finite_and_solves_what_can_be_solved(kind, steps):
    problem = Problem(50, **KINDS[kind])
    problem.others[:, 1] = problem.others[:, 0]  # however many entries there are
    problem.run(0.0, steps)
    assert np.isfinite(problem.x).all() and np.isfinite(problem.losses).all()
    if steps is None and not problem.alpha:
        for n, count in enumerate(COUNTS):
            q, a, target, *_ = problem.row(n, 0.0)
            least = np.linalg.lstsq(q * np.sqrt(a)[:, None], np.sqrt(a) * target, rcond=None)[0] if count else 0
            best = (a * (target - q @ least)**2).sum() if count else 0.0
            assert problem.losses[n, 0] <= best + 0.02 * (a * target**2).sum() + 1e-6


@pytest.mark.parametrize("k", [5, 33, 130])
def test_gram_is_a_sum_of_chunks_whoever_has_them(k):
    width, rng = padded(k), np.random.default_rng(1)
    rows = np.zeros((37, width), np.float32)
    rows[:, :k] = rng.normal(size=(37, k))
    work, whole, parts = np.empty(width**2, np.float32), np.zeros(width**2, np.int64), np.zeros(width**2, np.int64)
    add_gram(rows.reshape(-1), width, 4, 2.0**40, work, whole)
    for first, last in ((0, 12), (12, 16), (16, 37)):
        add_gram(rows[first:last].reshape(-1), width, 4, 2.0**40, work, parts)
    np.testing.assert_array_equal(parts, whole)
    exact = rows.astype(np.float64).T @ rows
    np.testing.assert_allclose(np.triu(whole.reshape(width, width) / 2.0**40), np.triu(exact), atol=2e-5)
