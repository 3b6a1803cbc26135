"""Objectives, scaling, optimiser and schedules, each against an independent reference."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score, root_mean_squared_error

from dml_hpc.errors import UserError
from dml_hpc.objectives import OBJECTIVES, open_objective
from dml_hpc.objectives.logistic import area_under_curve
from dml_hpc.objectives.scaling import identity, standardising
from dml_hpc.optim import SCHEDULES
from dml_hpc.optim.schedules import Schedule
from dml_hpc.optim.sgd import Sgd

WIDE = np.dtype("float64")


def test_auc_with_ties_is_scikit_learns():
    rng = np.random.default_rng(0)
    for values in (3, 50, 10 ** 9):
        scores = rng.integers(0, values, 400).astype(float)
        positive = rng.random(400) < 0.3
        assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-14)
    assert area_under_curve(scores, np.ones(400, bool)) is None


def test_linear_metrics_are_scikit_learns():
    rng = np.random.default_rng(1)
    scores, targets = rng.standard_normal((2, 300))
    metrics = open_objective("linear").metrics(scores, targets)
    assert metrics["rmse"] == pytest.approx(root_mean_squared_error(targets, scores))
    assert metrics["r2"] == pytest.approx(r2_score(targets, scores))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_summed_loss_is_what_the_gradient_kernel_returns(name):
    objective = open_objective(name)
    rng = np.random.default_rng(2)
    X, y, w = rng.standard_normal((30, 4)), (rng.random(30) < 0.5).astype(float), rng.standard_normal(5)
    summed = objective.loss_and_gradient(X, y, np.arange(30), w, np.zeros(5))
    assert objective.summed_loss(X @ w[:-1] + w[-1], y) == pytest.approx(summed)


@pytest.mark.parametrize(("values", "says"), [
    ([1.0, 2.0, 3.0], r"has 3 classes \(1, 2, 3\)"), ([1.0], r"has 1 class \(1\)"), (None, "too many values")])
def test_logistic_refuses_a_label_without_two_classes(values, says):
    with pytest.raises(UserError, match=says):
        open_objective("logistic").classes("late", values)


def test_logistic_takes_the_larger_value_for_positive():
    objective = open_objective("logistic")
    assert objective.targets(np.array([-1.0, 3.0, -1.0]), [-1.0, 3.0], WIDE).tolist() == [0, 1, 0]
    assert objective.predictions(np.array([-2.0, 2.0]), [-1.0, 3.0])["prediction"].tolist() == [-1, 3]


@pytest.mark.parametrize("intercept", [True, False])
def test_folded_weights_score_raw_rows_as_the_weights_score_standardised_ones(intercept):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((50, 4)) * [1, 10, 0.1, 0] + [0, 5, -3, 2013]
    numeric = np.array([False, True, True, True])
    scaling = standardising(X.mean(0), X.std(0), numeric, intercept, WIDE)
    w = rng.standard_normal(5)
    w[-1] *= intercept
    Z = X.copy()
    Z[:, 1:3] = (X[:, 1:3] - X[:, 1:3].mean(0) * intercept) / X[:, 1:3].std(0)
    Z[:, 3] = 0  # never varies
    raw = scaling.fold(w, np.empty(5))
    np.testing.assert_allclose(X @ raw[:-1] + raw[-1], Z @ w[:-1] + w[-1], atol=1e-12)
    # The gradient by w of u·fold(w) is pull_back(u), for any u: the map is linear.
    u = rng.standard_normal(5)
    rows = np.array([u @ scaling.fold(unit, np.empty(5)) for unit in np.eye(5)])
    scaling.pull_back(u)
    np.testing.assert_allclose(u, rows, atol=1e-12)


def test_no_scaling_changes_nothing():
    w = np.arange(4.0)
    assert identity(3, True, WIDE).fold(w, np.empty(4)).tolist() == w.tolist()


def test_sgd_with_momentum_is_the_textbook_recursion():
    weights, velocity = np.array([1.0, 2.0]), np.zeros(2)
    ours, optimiser = weights.copy(), Sgd((0, 2), WIDE, 1, momentum=0.9, l2=0.5)
    for step in range(5):
        summed = np.array([4.0 * step, -4.0])  # of four rows
        optimiser.update(ours, summed, 0, 1 / 4, 0.1)
        gradient = np.array([step + 0.5 * weights[0], -1.0])  # the last weight is not penalised
        velocity = 0.9 * velocity + gradient
        weights = weights - 0.1 * velocity
    np.testing.assert_allclose(ours, weights, rtol=1e-14)


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
