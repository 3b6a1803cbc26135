"""Scaling and schedules, each against an independent reference."""

from __future__ import annotations

import numpy as np
import pytest

from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.scaling import Scaling, identity, of_sparse, standardising
from dml_hpc.optim import SCHEDULES
from dml_hpc.optim.schedules import Schedule

WIDE = np.dtype("float64")


def first_layer(layers, parameters, X):
    block = layers.block(parameters, 0)
    return X @ block[:-1] + block[-1]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("widths", [(4, 1), (4, 3), (4, 5, 2)])
def test_folded_parameters_see_raw_rows_as_the_parameters_see_standardised_ones(widths, intercept):
    rng, layers = np.random.default_rng(3), Layers(widths)
    X = rng.standard_normal((50, 4)) * [1, 10, 0.1, 0] + [0, 5, -3, 2013]
    numeric = np.array([False, True, True, True])
    scaling = standardising(layers, X.mean(0), X.std(0), numeric, intercept, WIDE)
    assert not scaling.trivial
    w = rng.standard_normal(layers.size)
    layers.block(w, 0)[-1] *= intercept
    Z = X.copy()
    Z[:, 1:3] = (X[:, 1:3] - X[:, 1:3].mean(0) * intercept) / X[:, 1:3].std(0)
    Z[:, 3] = 0  # never varies
    raw = scaling.fold(w, np.empty_like(w))
    np.testing.assert_allclose(first_layer(layers, raw, X), first_layer(layers, w, Z), atol=1e-12)
    np.testing.assert_array_equal(raw[layers.starts[1]:], w[layers.starts[1]:])
    # The gradient by w of u·fold(w) is pull_back(u), for any u: the map is linear.
    u = rng.standard_normal(layers.size)
    rows = np.array([u @ scaling.fold(unit, np.empty_like(w)) for unit in np.eye(layers.size)])
    scaling.pull_back(u)
    np.testing.assert_allclose(u, rows, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 3])
def test_many_features_are_folded_as_few_are(outputs):
    rng, layers = np.random.default_rng(4), Layers((3000, outputs))
    shift, scale = rng.standard_normal(3000), rng.random(3001)
    scaling = Scaling(layers, shift, scale)
    w = rng.standard_normal(layers.size)
    block = w.reshape(3001, outputs)
    expected = block * scale[:, None]
    expected[-1] -= shift @ expected[:-1]
    np.testing.assert_allclose(scaling.fold(w, np.empty_like(w)), expected.ravel(), rtol=1e-11)
    expected = (block - np.r_[shift, 0][:, None] * block[-1]) * scale[:, None]
    scaling.pull_back(w)
    np.testing.assert_allclose(w, expected.ravel(), rtol=1e-11)


def test_sparse_features_are_divided_by_their_largest_magnitude():
    scaling = of_sparse(Layers((3, 2)), np.array([-4.0, 0, 0]), np.array([2.0, 0, 8]), np.array([True, True, False]),
                        True, WIDE)
    w = np.arange(1.0, 9)
    assert scaling.fold(w, np.empty(8)).tolist() == [0.25, 0.5, 3, 4, 5, 6, 7, 8]
    scaling.pull_back(w)
    assert w.tolist() == [0.25, 0.5, 3, 4, 5, 6, 7, 8]


def test_no_scaling_changes_nothing_and_copies_nothing():
    w = np.arange(4.0)
    scaling = identity(Layers((3, 1)), True, WIDE)
    assert scaling.trivial
    assert scaling.fold(w, np.empty(0)) is w
    scaling.pull_back(w)
    assert w.tolist() == [0, 1, 2, 3]
    without = identity(Layers((3, 1)), False, WIDE)
    assert not without.trivial
    assert without.fold(w, np.empty(4)).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize(("name", "expected"), [
    ("constant", [1, 1, 1, 1]), ("step", [1, 1, 0.1, 0.01]), ("inverse-time", [1, 2 / 3, 1 / 2, 2 / 5]),
    ("inverse-sqrt", [1, (2 / 3) ** 0.5, 0.5 ** 0.5, (2 / 5) ** 0.5]),
    ("cosine", [1, 0.5 + 0.5 ** 1.5, 0.5, 0.5 - 0.5 ** 1.5])])
def test_schedules_by_hand(name, expected):
    schedule = Schedule(name, 1.0, steps=4, steps_per_epoch=2)
    assert [schedule.step_size(step) for step in range(4)] == pytest.approx(expected)
    assert name in SCHEDULES


def test_warm_up_rises_to_the_full_step_size():
    schedule = Schedule("constant", 0.5, steps=8, steps_per_epoch=4, warmup=1)
    assert [schedule.step_size(step) for step in range(5)] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
