"""Objectives of a linear score: losses, gradients, sequential steps, metrics, each against an independent reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score, root_mean_squared_error

from dml_hpc.data.csr import sparse
from dml_hpc.errors import UserError
from dml_hpc.objectives import OBJECTIVES, open_objective
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.metrics import area_under_curve
from dml_hpc.objectives.sequential import Sequential

DELTA = 0.7
LINEAR_SCORES = {
    "linear": lambda s, y: (s - y) ** 2 / 2,
    "huber": lambda s, y: np.where(abs(s - y) <= DELTA, (s - y) ** 2 / 2, DELTA * abs(s - y) - DELTA ** 2 / 2),
    "logistic": lambda s, y: np.log1p(np.exp(s)) - y * s,
    "hinge": lambda s, y: np.maximum(0, 1 - (2 * y - 1) * s),
    "squared-hinge": lambda s, y: np.maximum(0, 1 - (2 * y - 1) * s) ** 2,
    "poisson": lambda s, y: np.exp(s) - y * s,
}
SLOPES = {
    "linear": lambda s, y: s - y,
    "huber": lambda s, y: np.clip(s - y, -DELTA, DELTA),
    "logistic": lambda s, y: 1 / (1 + np.exp(-s)) - y,
    "hinge": lambda s, y: np.where((2 * y - 1) * s < 1, 1 - 2 * y, 0),
    "squared-hinge": lambda s, y: 2 * (1 - 2 * y) * np.maximum(0, 1 - (2 * y - 1) * s),
    "poisson": lambda s, y: np.exp(s) - y,
}
KINDS = [("dense", "f2", "f4"), ("dense", "f4", "f4"), ("dense", "f8", "f4"), ("dense", "f8", "f8"),
         ("sparse", "f4", "f4"), ("sparse", "f8", "f8")]
# Every loss on every kind of rows, with weights and without by turns: each variant of a kernel has to be compiled.
CASES = [(name, *kind, (i + j) % 2 == 1) for i, name in enumerate(LINEAR_SCORES) for j, kind in enumerate(KINDS)]


def opened(name):
    return open_objective(name, **({"delta": DELTA} if name == "huber" else {}))


def example(rows, features, seed=0):
    """Return X in float64 of numbers that float16 holds exactly, y in {0, 1}, parameters and weights of rows."""
    rng = np.random.default_rng([rows, features, seed])
    X = np.where(rng.random((rows, features)) < 0.7, rng.standard_normal((rows, features)) * 2, 0).astype("f2")
    return (X.astype("f8"), (rng.random(rows) < 0.5).astype(float),
            rng.standard_normal(features + 1) / features ** 0.5, rng.random(rows) + 0.5)


def stored(X, how, dtype):
    return X.astype(dtype) if how == "dense" else sparse(X.astype(dtype))


@pytest.mark.parametrize(("name", "how", "dtype", "kind", "weighted"), CASES)
def test_gradient_and_loss_agree_with_finite_differences(name, how, dtype, kind, weighted):
    objective, tolerance = opened(name), 1e-3 if kind == "f4" else 1e-6
    for rows, features in ((0, 3), (1, 5), (9, 16), (30, 40), (21, 150)):
        X, y, w, counts = example(rows + 2, features)
        layers, order = Layers((features, 1)), np.random.default_rng(1).permutation(rows + 2)[:rows]
        w = w.astype(kind)  # so that kinks lie where they lie for the reference

        def total(w, X=X, y=y, order=order, counts=counts):
            terms = LINEAR_SCORES[name](X[order] @ w[:-1] + w[-1], y[order])
            return float(np.sum(terms * counts[order] if weighted else terms))

        gradient = np.full(features + 1, 2, kind)
        loss = objective.loss_and_gradient(layers, stored(X, how, dtype), y.astype(kind),
                                           counts.astype(kind) if weighted else None, order, w, gradient)
        wide = w.astype("f8")
        steps = np.eye(features + 1) * 1e-6
        expected = [(total(wide + step) - total(wide - step)) / 2e-6 for step in steps]
        np.testing.assert_allclose(gradient - 2, expected, rtol=tolerance, atol=tolerance)
        assert loss == pytest.approx(total(wide), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize(("name", "how", "dtype", "kind", "weighted"), [
    case for case in CASES if case[2:4] != ("f8", "f4")])
def test_fixed_point_sums_do_not_depend_on_how_rows_are_dealt_and_are_those_in_floats(name, how, dtype, kind, weighted):
    objective, features, rows = opened(name), 37, 50
    X, y, w, counts = example(rows, features)
    X, y, w, layers = stored(X, how, dtype), y.astype(kind), w.astype(kind), Layers((features, 1))
    weight = counts.astype(kind) if weighted else None
    shift, scale = np.zeros(features, kind), np.ones(features + 1, kind)
    sums = []
    for parts in ([np.arange(rows)], [np.arange(20, rows), np.arange(20)[::-1]], np.arange(rows)[:, None]):
        out = np.zeros(features + 4, np.int64)
        for part in parts:
            objective.fixed_point_gradient(layers, X, y, weight, part, w, shift, scale, 2.0**20, 2.0**22, out)
        sums.append(out)
    assert (sums[0] == sums[1]).all()
    assert (sums[0] == sums[2]).all()
    gradient = np.zeros(features + 1, kind)
    loss = objective.loss_and_gradient(layers, X, y, weight, np.arange(rows), w, gradient)
    np.testing.assert_allclose(sums[0][:-3] / 2.0**20, gradient, rtol=1e-3, atol=1e-3)
    assert sums[0][-3] / 2.0**22 == pytest.approx(loss, rel=1e-4)
    assert (sums[0][-2:] >= rows).all()


@pytest.mark.parametrize(("how", "weighted"), [("dense", False), ("dense", True), ("sparse", False), ("sparse", True),
                                               ("sparse and scaled", True)])
@pytest.mark.parametrize(("l1", "l2"), [(0, 0), (0, 0.3), (0.02, 0), (0.02, 0.3), (0.01, 60)])
def test_sequential_steps_are_those_of_a_plain_loop(how, l1, l2, weighted):
    features, rows = 12, 80
    for name in LINEAR_SCORES if (l1, l2) == (0.02, 0.3) else ("logistic",):
        objective, rng = opened(name), np.random.default_rng(5)
        X, y, w, counts = example(rows, features)
        X[rng.random(X.shape) < 0.5] = 0
        X[:, 3] *= np.arange(rows) == 7  # a feature of a single row pays for all the others much later
        shift = rng.standard_normal(features) if how == "dense" else np.zeros(features)
        scale = np.ones(features + 1) if how == "sparse" else np.r_[rng.random(features) + 0.5, 1.0]
        state, met, expected = Sequential(w.copy(), l1, l2), 0.0, 0.0
        reference, order = w.copy(), rng.permutation(rows)
        stored_rows = X if how == "dense" else sparse(X)
        for rate, part in ((0.05, order[:50]), (0.02, order[50:51]), (0.08, order[51:]), (0.03, order[:10])):
            met += objective.sequential_sgd(Layers((features, 1)), stored_rows, y, counts if weighted else None, part,
                                            shift, scale, state, rate)
            for i in part:
                z, counted = np.r_[(X[i] - shift) * scale[:-1], 1.0], counts[i] if weighted else 1.0
                s = z @ reference
                expected += counted * LINEAR_SCORES[name](s, y[i])
                reference -= rate * counted * SLOPES[name](s, y[i]) * z
                penalised = reference[:-1]
                penalised[:] = np.sign(penalised) * np.maximum(abs(penalised) - rate * l1, 0) / (1 + rate * l2)
            if len(part) != 1:  # settling or not makes no difference
                np.testing.assert_allclose(state.settle(), reference, rtol=1e-10, atol=1e-10)
        assert met == pytest.approx(expected, rel=1e-10)


def test_sequential_steps_leave_an_intercept_alone_that_is_not_to_be_learnt_and_take_float16():
    X, y, _, _ = example(60, 7)
    scale = np.r_[np.ones(7), 0].astype("f4")
    found = []
    for rows in (X.astype("f2"), X.astype("f4"), sparse(X.astype("f4"))):
        state = Sequential(np.zeros(8, "f4"), 0.001, 0.001)
        open_objective("hinge").sequential_sgd(Layers((7, 1)), rows, y.astype("f4"), None, np.arange(60),
                                               np.zeros(7, "f4"), scale, state, 0.1)
        found.append(state.settle())
        assert found[-1][-1] == 0
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    np.testing.assert_allclose(found[2], found[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR_SCORES)
@pytest.mark.parametrize(("how", "dtype", "kind"), KINDS)
def test_scores_and_losses(name, how, dtype, kind):
    X, y, w, _ = example(20, 21)
    out = np.empty((20, 1), kind)
    objective = opened(name)
    objective.scores(Layers((21, 1)), stored(X, how, dtype), w.astype(kind), out)
    s = X @ w[:-1] + w[-1]
    np.testing.assert_allclose(out[:, 0], s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(objective.losses(s[:, None], y), LINEAR_SCORES[name](s, y), rtol=1e-12)


@pytest.mark.parametrize("how", ["dense", "sparse"])
@pytest.mark.parametrize("name", LINEAR_SCORES)
def test_what_is_not_finite_shows_in_the_loss(name, how):
    objective, layers = opened(name), Layers((4, 1))
    for bad in (math.nan, math.inf, 1e30):
        X = np.ones((16, 4), "f4")
        X[5, 2] = bad
        y = np.ones(16, "f4")
        y[5] = 0  # so that a large score is no good one
        loss = objective.loss_and_gradient(layers, stored(X, how, "f4"), y, None, np.arange(16), np.ones(5, "f4"),
                                           np.zeros(5, "f4"))
        assert not loss < 1e25, (bad, loss)
        assert not np.isfinite(loss) or (bad == 1e30 and name != "poisson")


def test_poisson_scores_that_overflow_are_infinite():
    objective = open_objective("poisson")
    assert objective.losses(np.array([[1e4]]), np.array([3.0])) == [math.inf]
    assert objective.predictions(np.array([[1e4]]), None)["prediction"] == [math.inf]
    total = objective.loss_and_gradient(Layers((1, 1)), np.full((1, 1), 100, "f4"), np.ones(1, "f4"), None,
                                        np.zeros(1, np.int64), np.ones(2, "f4"), np.zeros(2, "f4"))
    assert total == math.inf


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_opened_as_their_settings_say(name):
    objective = open_objective(name)
    again = open_objective(name, **objective.settings)
    assert (again.name, again.settings) == (name, objective.settings)


def test_settings_that_make_no_sense_are_refused():
    assert open_objective("huber").settings == {"delta": 1.35}
    for wrong in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive"):
            open_objective("huber", delta=wrong)
    with pytest.raises(ValueError, match="unknown objective"):
        open_objective("ridge")
    with pytest.raises(TypeError):
        open_objective("linear", delta=1.0)


def test_which_are_smooth_and_how_curved():
    for name in LINEAR_SCORES:
        objective, s = opened(name), np.linspace(-4, 4, 4001)
        assert objective.convex
        assert objective.sequential
        slopes = [SLOPES[name](s, y) for y in (0.0, 1.0)]
        steepest = max(np.max(np.diff(slope)) for slope in slopes) / (s[1] - s[0])
        assert objective.smooth == (steepest < 100)
        if objective.curvature is None:
            assert name in ("hinge", "poisson")
        else:
            assert steepest == pytest.approx(objective.curvature, rel=1e-4)


@pytest.mark.parametrize(("name", "labels", "says"), [
    ("poisson", [0, -2.0], "row 1 is -2; poisson needs labels of 0 or more"), ("huber", [math.nan], "row 0 is nan"),
    ("hinge", [0, 1, 5], "row 2 is 5, which is none of the classes 0 and 1")])
def test_targets_name_the_row_with_a_label_that_cannot_be_learnt(name, labels, says):
    with pytest.raises(UserError, match=says):
        open_objective(name).targets(np.array(labels), [0.0, 1.0], np.dtype("f4"))


@pytest.mark.parametrize("name", ["logistic", "hinge", "squared-hinge"])
def test_two_classes_are_told_apart_by_the_sign(name):
    objective = open_objective(name)
    assert objective.classes("late", [3.0, 7.0]) == [3.0, 7.0]
    assert objective.targets(np.array([7.0, 3.0]), [3.0, 7.0], np.dtype("f4")).tolist() == [1, 0]
    found = objective.predictions(np.array([[-2.0], [2.0]]), [3.0, 7.0])
    assert found.pop("prediction").tolist() == [3, 7]
    if name == "logistic":
        np.testing.assert_allclose(found.pop("probability"), [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))])
    assert not found, "others know no probability"


@pytest.mark.parametrize(("values", "says"), [
    ([1.0, 2.0, 3.0], r"has 3 classes \(1, 2, 3\).*softmax"), ([1.0], r"has 1 class \(1\)"),
    (None, "too many values")])
@pytest.mark.parametrize("name", ["logistic", "hinge", "squared-hinge"])
def test_a_label_without_two_classes_is_refused(name, values, says):
    with pytest.raises(UserError, match=says):
        open_objective(name).classes("late", values)


@pytest.mark.parametrize("weighted", [False, True])
def test_metrics_are_scikit_learns(weighted):
    rng = np.random.default_rng(1)
    scores, y, counts = rng.standard_normal((200, 1)), rng.standard_normal(200), rng.random(200)
    weight = counts if weighted else None
    for name, expected in (("linear", scores[:, 0]), ("huber", scores[:, 0]), ("poisson", np.exp(scores[:, 0]))):
        found = opened(name).metrics(scores, y, weight)
        assert found["rmse"] == pytest.approx(root_mean_squared_error(y, expected, sample_weight=weight))
        assert found["r2"] == pytest.approx(r2_score(y, expected, sample_weight=weight))
        assert found["accuracy"] is None
        assert found["auc"] is None
    positive = (rng.random(200) < 0.3).astype(float)
    for name in ("logistic", "hinge"):
        found = opened(name).metrics(scores, positive, weight)
        assert found["accuracy"] == pytest.approx(accuracy_score(positive, scores[:, 0] > 0, sample_weight=weight))
        assert found["auc"] == pytest.approx(roc_auc_score(positive, scores[:, 0], sample_weight=weight))
        assert found["rmse"] is None


def test_no_rows_have_no_metrics():
    none = np.empty((0, 1))
    for name in LINEAR_SCORES:
        assert set(opened(name).metrics(none, none[:, 0], None).values()) == {None}


def test_auc_with_ties_is_scikit_learns():
    rng = np.random.default_rng(0)
    for values in (3, 50, 10 ** 9):
        scores = rng.integers(0, values, 400).astype(float)
        positive, weight = rng.random(400) < 0.3, rng.random(400)
        assert area_under_curve(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-14)
        assert area_under_curve(scores, positive, weight) == pytest.approx(
            roc_auc_score(positive, scores, sample_weight=weight), abs=1e-13)
    assert area_under_curve(scores, np.ones(400, bool)) is None
