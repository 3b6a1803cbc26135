"""The CUDA kernels for ALS, run on the CPU, against NumPy in float64 and their Numba twin."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.kernels import normal_equations as twin
from dml_hpc.kernels.cuda import normal_equations
from dml_hpc.kernels.cuda.long_rows import VERY_LONG

MEAN, INVERSE, ALPHA = 3.1, 0.8, 7.0


def penalties(width, implicit=False, l2=0.05):
    """Return penalties of each factor a rating, and of each a row: uneven, but with ``implicit`` l2 a row."""
    found = (l2 * np.random.default_rng(4).uniform(0, 2, (2, width + 1))).astype("f4")
    if implicit:
        found[0], found[1] = 0, l2
    return found.reshape(-1)


def problem(lengths, k, others=70, weighted=False, biased=False, implicit=False, seed=1):
    """Return the arguments of `solve` before ``x``: rows of so many entries."""
    rng = np.random.default_rng(seed)
    width, count = twin.padded(k), sum(lengths)
    rows = np.zeros((others, width), np.float32)
    rows[:, :k] = rng.standard_normal((others, k)) / k**0.5
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ratings = (rng.integers(0, 4, count) if implicit else 3 + rng.standard_normal(count)).astype("f4")
    columns = [rng.permutation(max(others, length))[:length] % others for length in lengths]
    return (starts, np.concatenate(columns).astype("i4"), ratings,
            (rng.random(count) + 0.5).astype("f4") if weighted else None, rows.reshape(-1),
            rng.standard_normal(others).astype("f4") if biased else None,
            (rows.T @ rows).reshape(-1) if implicit else None), width


def exact(given, n, biased, k, width):
    """Return row n's factors and bias, by NumPy, with what they leave of the squares, and the penalty."""
    starts, columns, ratings, weights, others, other_biases, gram = given
    rating, row = penalties(width, gram is not None).astype("f8").reshape(2, -1)[:, [*range(k), *([width] * biased)]]
    own = slice(starts[n], starts[n + 1])
    Q = others.reshape(-1, width)[columns[own], :k].astype("f8")
    r = ratings[own].astype("f8")
    v = np.ones(len(r)) if weights is None else weights[own].astype("f8")
    if gram is None:
        Q = np.column_stack([Q, np.ones(len(Q))]) if biased else Q
        target = (r - MEAN) * INVERSE - (0 if other_biases is None else other_biases[columns[own]])
        ridge = rating * v.sum() + row
        x = np.linalg.solve((Q.T * v) @ Q + np.diag(ridge), Q.T @ (v * target))
        return x, np.sum(v * (target - Q @ x) ** 2), ridge @ x**2
    G, a, p = gram.reshape(width, width)[:k, :k].astype("f8"), ALPHA * v * r, (r > 0).astype(float)
    x = np.linalg.solve(G + (Q.T * a) @ Q + np.diag(row), Q.T @ ((1 + a) * p))
    fit = np.sum((1 + a) * (p - Q @ x) ** 2) + x @ G @ x - np.sum((Q @ x) ** 2)
    return x, fit, row @ x**2


def solved(device, given, width, biased, l2=0.05):
    """Return x, biases and losses."""
    starts = given[0]
    rows = len(starts) - 1
    x, losses = device.empty(rows * width, "f4"), device.empty((rows, 2), "f8")
    biases = device.empty(rows, "f4") if biased else None
    arrays = [None if one is None else device.put(one) for one in given]
    normal_equations.solve(device, *arrays, x, biases, losses, width, MEAN, INVERSE,
                           device.put(penalties(width, given[6] is not None, l2)), ALPHA,
                           normal_equations.long_groups(device, starts, width, biased))
    return device.get(x).reshape(rows, width), None if biases is None else device.get(biases), device.get(losses)


KINDS = {"explicit": {}, "weighted": {"weighted": True, "biased": True}, "biased": {"biased": True},
         "implicit": {"implicit": True}, "implicit, weighted": {"implicit": True, "weighted": True}}


def check(device, lengths, k, near=2e-4, **kind):
    given, width = problem(lengths, k, **kind)
    biased = kind.get("biased", False)
    x, biases, losses = solved(device, given, width, biased)
    assert not x[:, k:].any()
    for n, length in enumerate(lengths):
        found = np.append(x[n, :k], biases[n]) if biased else x[n, :k]
        if not length:
            assert not found.any() and not losses[n].any()
            continue
        wanted, fit, penalty = exact(given, n, biased, k, width)
        np.testing.assert_allclose(found, wanted, atol=near * max(1, np.abs(wanted).max()))
        np.testing.assert_allclose(losses[n], [fit, penalty], rtol=1e-3, atol=1e-4 * (1 + length))
    return given, width, x, biases, losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [3, 64])
def test_rows_are_those_of_float64(device, kind, k):
    check(device, [0, 1, 2, 15, 16, 17, 40], k, **KINDS[kind])


@pytest.mark.parametrize("kind", ["biased", "implicit"])
@pytest.mark.parametrize("k", [16, 30, 47, 100, 128])
def test_every_width_is_the_twins(quick_device, kind, k):
    given, width, x, biases, losses = check(quick_device, [5, 0, 300, 256, 130], k, **KINDS[kind])
    own, sums = np.empty_like(x), np.empty_like(losses)
    own_biases = None if biases is None else np.empty_like(biases)
    twin.solve(*given, own.reshape(-1), own_biases, sums, width, MEAN, INVERSE, penalties(width, kind == "implicit"),
               ALPHA, 0, len(x), twin.room(width))
    np.testing.assert_allclose(x, own, atol=3e-4 * np.abs(own).max())
    np.testing.assert_allclose(losses, sums, rtol=1e-3, atol=0.03)


@pytest.mark.parametrize("kind", ["biased", "implicit"])
def test_very_long_rows_are_cut(quick_device, kind, monkeypatch):
    lengths = [VERY_LONG, 3, 2 * VERY_LONG + 5, 0, VERY_LONG + 1]
    for k in (10, 40, 70):
        given, width, x, _, losses = check(quick_device, lengths, k, others=400, **KINDS[kind])
        with monkeypatch.context() as patch:  # one after the other
            patch.setattr(normal_equations, "PARTIAL_BYTES", 1)
            again = solved(quick_device, given, width, KINDS[kind].get("biased", False))
        assert again[0].tobytes() == x.tobytes() and again[2].tobytes() == losses.tobytes()


def test_a_rows_bits_do_not_depend_on_the_others(quick_device):
    for kind in ("weighted", "implicit"):
        given, width = problem([9, VERY_LONG + 7, 70, 40], 20, **KINDS[kind])
        biased = KINDS[kind].get("biased", False)
        x, _, losses = solved(quick_device, given, width, biased)
        for n in range(4):
            own = slice(given[0][n], given[0][n + 1])
            alone = (given[0][n:n + 2] - own.start, given[1][own], given[2][own],
                     None if given[3] is None else given[3][own], *given[4:])
            found = solved(quick_device, alone, width, biased)
            assert found[0].tobytes() == x[n].tobytes() and found[2].tobytes() == losses[n].tobytes()


@pytest.mark.parametrize("kind", ["explicit", "biased"])
def test_fewer_ratings_than_factors_without_a_penalty(quick_device, kind):
    """What is found is finite, and fits the ratings."""
    given, width = problem([1, 3, 20], 24, **KINDS[kind])
    x, biases, losses = solved(quick_device, given, width, biased=kind == "biased", l2=0.0)
    assert np.isfinite(x).all() and np.isfinite(losses).all() and (biases is None or np.isfinite(biases).all())
    for n in range(3):
        own = slice(given[0][n], given[0][n + 1])
        target = (given[2][own] - 3.1) * 0.8 - (0 if given[5] is None else given[5][given[1][own]])
        predicted = given[4].reshape(-1, width)[given[1][own]] @ x[n] + (0 if biases is None else biases[n])
        np.testing.assert_allclose(predicted, target, atol=2e-2)
