"""Networks: gradients against finite differences and plain NumPy, optima against scikit-learn, steps against loops."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dml_hpc.data.csr import sparse
from dml_hpc.data.reading import Rows
from dml_hpc.errors import UserError
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.network import Mlp, Softmax
from dml_hpc.objectives.propagation import MOST_ROWS
from dml_hpc.objectives.sequential import Sequential

NETWORKS = {
    "softmax": (Softmax(), 4), "two classes": (Softmax(), 2), "relu": (Mlp((5,)), 3), "tanh": (Mlp((5,), "tanh"), 3),
    "deep": (Mlp((6, 3, 4), "tanh"), 20), "deep relu": (Mlp((7, 4)), 2), "a number": (Mlp((5, 3), "tanh"), 1),
}
FEATURES = 6


def plain(network, layers, parameters, X, y, weight=None):
    """Return the summed loss and the gradient, in NumPy."""
    values, last = [X], len(layers.widths) - 2
    for layer in range(last + 1):
        block = layers.block(parameters, layer)
        s = values[-1] @ block[:-1] + block[-1]
        values.append(s if layer == last else np.tanh(s) if network.activation == "tanh" else np.maximum(s, 0))
    s, counts = values[-1], np.ones(len(X)) if weight is None else weight
    if layers.outputs == 1:
        losses, slopes = (s[:, 0] - y) ** 2 / 2, s - y[:, None]
    else:
        p = np.exp(s - s.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        slopes = p - np.eye(layers.outputs)[y.astype(int)]
        losses = -np.log(p[np.arange(len(y)), y.astype(int)])
    slopes = slopes * counts[:, None]
    gradient = np.empty(layers.size)
    for layer in reversed(range(last + 1)):
        block = layers.block(gradient, layer)
        block[:-1], block[-1] = values[layer].T @ slopes, slopes.sum(0)
        slopes = slopes @ layers.block(parameters, layer)[:-1].T
        slopes = slopes * ((1 - values[layer] ** 2) if network.activation == "tanh" else values[layer] > 0)
    return losses @ counts, gradient


def problem(name, rows=300, seed=0):
    network, outputs = NETWORKS[name]
    rng = np.random.default_rng(seed)
    layers = Layers((FEATURES, *network.hidden, outputs))
    X = np.where(rng.random((rows, FEATURES)) < 0.6, rng.standard_normal((rows, FEATURES)), 0)
    y = rng.standard_normal(rows) if outputs == 1 else rng.integers(0, outputs, rows).astype(float)
    return network, layers, X, y, rng.standard_normal(layers.size) / 2, rng.random(rows) * 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_agree_with_finite_differences(name, weighted):
    network, layers, X, y, parameters, weight = problem(name, 40)
    weight, rows = weight if weighted else None, np.random.default_rng(1).permutation(40)[:30]

    def loss(at, gradient=None):
        return network.loss_and_gradient(layers, X, y, weight, rows, at,
                                         np.zeros(layers.size) if gradient is None else gradient)

    gradient = np.full(layers.size, 2.0)
    assert loss(parameters, gradient) == pytest.approx(
        plain(network, layers, parameters, X[rows], y[rows], None if weight is None else weight[rows])[0], rel=1e-12)
    steps = 1e-6 * np.eye(layers.size)
    slopes = np.array([(loss(parameters + step) - loss(parameters - step)) / 2e-6 for step in steps])
    np.testing.assert_allclose(gradient - 2, slopes, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("order", ["all", "some", "shuffled"])
def test_dense_sparse_and_half_rows_give_the_gradient_of_plain_numpy(name, dtype, order):
    network, layers, X, y, parameters, weight = problem(name, 2 * MOST_ROWS + 50)
    X = X.astype("f2").astype(float)
    rows = {"all": np.arange(len(X)), "some": np.arange(7, 90),
            "shuffled": np.random.default_rng(2).permutation(len(X))[:MOST_ROWS + 3]}[order]
    expected, slopes = plain(network, layers, parameters, X[rows], y[rows], weight[rows])
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    for form in (X, X.astype("f4"), X.astype("f2"), sparse(X), sparse(X.astype("f4"))):
        gradient = np.zeros(layers.size, dtype)
        loss = network.loss_and_gradient(layers, form, y.astype(dtype), weight.astype(dtype), rows,
                                         parameters.astype(dtype), gradient)
        assert loss == pytest.approx(expected, rel=tolerance)
        np.testing.assert_allclose(gradient, slopes, atol=tolerance * np.abs(slopes).max())
        scores = np.empty((len(y), layers.outputs), dtype)
        network.scores(layers, form, parameters.astype(dtype), scores)
        assert network.losses(scores[rows], y[rows]) @ weight[rows] == pytest.approx(expected, rel=tolerance)


def test_hooks_tell_when_a_block_is_needed_and_when_its_gradient_is_final():
    network, layers, X, y, parameters, _ = problem("deep", 2 * MOST_ROWS)
    gradient, seen, told = np.zeros(layers.size), np.full(layers.size, np.nan), []
    network.needed = told.append
    network.finished = lambda start, stop: seen.__setitem__(slice(start, stop), gradient[start:stop])
    try:
        for form in (X, sparse(X)):
            gradient[:], seen[:] = 0, np.nan
            network.loss_and_gradient(layers, form, y, None, np.arange(len(X)), parameters, gradient)
            np.testing.assert_array_equal(seen, gradient)
    finally:
        network.needed = network.finished = None
    assert told == [0, 1, 2, 3] * 2


def test_a_wide_layer_is_finished_piece_by_piece():
    network, rng, ranges = Mlp((300,)), np.random.default_rng(0), []
    layers = network.layers(2000, [0.0, 1.0])
    X, parameters = rng.standard_normal((20, 2000)), rng.standard_normal(layers.size) / 50
    network.finished = lambda start, stop: ranges.append((start, stop))
    gradient, y = np.zeros(layers.size), (rng.random(20) < 0.5).astype(float)
    network.loss_and_gradient(layers, X, y, None, np.arange(20), parameters, gradient)
    np.testing.assert_allclose(gradient, plain(network, layers, parameters, X, y)[1], atol=1e-10)
    assert ranges[0] == (layers.starts[1], layers.size) and len(ranges) > 3
    assert ranges[1][0] == 0 and ranges[-1][1] == layers.starts[1]
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges[1:]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("kind", "dtype"), [("dense", "float64"), ("sparse", "float64"), ("half", "float32")])
def test_fixed_point_sums_are_the_gradient_however_rows_are_split(name, kind, dtype):
    network, layers, X, y, parameters, weight = problem(name)
    rng = np.random.default_rng(3)
    shift = (rng.standard_normal(FEATURES) if kind != "sparse" else np.zeros(FEATURES)).astype(dtype)
    scale = rng.random(FEATURES + 1).astype(dtype) + 0.5
    X = X.astype("f2").astype(float)
    form = {"dense": X.astype(dtype), "sparse": sparse(X.astype(dtype)), "half": X.astype("f2")}[kind]
    arguments = layers, form, y.astype(dtype), weight.astype(dtype)

    def summed(*parts):
        out = np.zeros(layers.size + 3, np.int64)
        for rows in parts:
            network.fixed_point_gradient(*arguments, rows, parameters.astype(dtype), shift, scale, 2.0**24, 2.0**24,
                                         out)
        return out

    rows = rng.permutation(len(y))[:250]
    whole = summed(rows)
    np.testing.assert_array_equal(whole, summed(np.sort(rows)))
    np.testing.assert_array_equal(whole, summed(*np.array_split(rows, 7)))
    gradient = np.zeros(layers.size)
    loss, gradient = plain(network, layers, parameters, X[rows], y[rows], weight[rows])
    first = layers.block(gradient, 0)
    first[:-1] -= shift.astype(float)[:, None] * first[-1]
    first *= scale.astype(float)[:, None]
    tolerance = 1e-4 if dtype == "float32" else 1e-6
    np.testing.assert_allclose(whole[:-3] / 2.0**24, gradient, atol=tolerance * max(np.abs(gradient).max(), 1))
    assert whole[-3] / 2.0**24 == pytest.approx(loss, rel=tolerance)
    assert np.abs(whole[:-3]).max() <= whole[-2] * 2.0**32 and whole[-3] <= whole[-1] * 2.0**32
    assert 0 <= whole[-1] - len(rows) <= loss / 2**8


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_too_large_for_fixed_point_show_in_the_masses(bad):
    network, layers, X, y, parameters, _ = problem("softmax", 10)
    X[:, 2] = bad
    out = np.zeros(layers.size + 3, np.int64)
    network.fixed_point_gradient(layers, X, y, None, np.arange(10), parameters, np.zeros(FEATURES),
                                 np.ones(FEATURES + 1), 2.0**60, 2.0**60, out)
    assert out[-2] >= 1 << 30


def test_what_is_not_finite_shows_in_the_loss():
    for name in NETWORKS:
        network, layers, X, y, parameters, _ = problem(name, 20)
        X[5, 2] = np.nan
        for form in (X, sparse(X)):
            loss = network.loss_and_gradient(layers, form, y, None, np.arange(20), parameters, np.zeros(layers.size))
            assert np.isnan(loss)


def test_scores_of_any_size_give_a_finite_cross_entropy():
    network, layers = Softmax(), Layers((1, 3))
    parameters = np.array([1.0, 2, -3, 0, 0, 0])
    X, y = np.array([[1e4], [-1e4]]), np.array([0.0, 1])
    loss = network.loss_and_gradient(layers, X, y, None, np.arange(2), parameters, np.zeros(6))
    assert loss == pytest.approx(1e4 + 5e4)


@pytest.mark.parametrize("l2", [0.1, 1.0])
def test_the_optimum_of_softmax_is_scikit_learns(l2):
    from scipy.optimize import minimize
    from sklearn.linear_model import LogisticRegression

    network, layers, X, y, _, weight = problem("softmax", 400)
    rows = np.arange(len(y))

    def penalised(parameters):
        gradient = np.zeros(layers.size)
        loss = network.loss_and_gradient(layers, X, y, weight, rows, parameters, gradient)
        for start, stop in layers.penalised:
            loss += l2 / 2 * parameters[start:stop] @ parameters[start:stop]
            gradient[start:stop] += l2 * parameters[start:stop]
        return loss, gradient

    found = minimize(penalised, network.initial(layers, 0, np.dtype(float)), jac=True, method="L-BFGS-B",
                     options={"gtol": 1e-9, "ftol": 0, "maxiter": 1000})
    reference = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=10000).fit(X, y, weight)
    block = layers.block(found.x, 0)
    np.testing.assert_allclose(block[:-1].T, reference.coef_, atol=1e-5)
    np.testing.assert_allclose(block[-1] - block[-1].mean(), reference.intercept_ - reference.intercept_.mean(),
                               atol=1e-5)


@pytest.mark.parametrize(("kind", "weighted", "l1", "l2"), [
    ("dense", False, 0, 0), ("dense", False, 0.1, 0.3), ("half", True, 0, 0.3), ("half", True, 0.1, 0),
    ("sparse", True, 0, 0.3), ("sparse", True, 0.1, 0.3), ("sparse", True, 0, 0),
    ("sparse by 1", False, 0.1, 0), ("sparse by 1", False, 0, 0.3)])
def test_one_example_at_a_time_is_a_plain_loop(kind, l1, l2, weighted):
    network, layers, X, y, parameters, weight = problem("softmax", 500)
    X = X.astype("f2").astype(float)
    rng = np.random.default_rng(4)
    shift = np.zeros(FEATURES) if "sparse" in kind else rng.standard_normal(FEATURES)
    scale = np.ones(FEATURES + 1) if kind == "sparse by 1" else rng.random(FEATURES + 1) + 0.5
    form = sparse(X) if "sparse" in kind else X.astype("f2" if kind == "half" else "f8")
    state, met = Sequential(parameters.copy(), l1, l2), 0.0
    parts = [(rng.permutation(500)[:200], 0.2), (np.arange(100), 0.05), (rng.integers(0, 500, 200), 0.1)]
    W, b, expected = parameters[:-4].reshape(FEATURES, 4).copy(), parameters[-4:].copy(), 0.0
    for rows, step in parts:
        met += network.sequential_sgd(layers, form, y, weight if weighted else None, rows, shift, scale, state, step)
        for i in rows:
            z, counts = (X[i] - shift) * scale[:-1], weight[i] if weighted else 1
            s = z @ W + b
            p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
            expected -= counts * np.log(p[int(y[i])])
            slope = counts * (p - np.eye(4)[int(y[i])])
            W -= step * np.outer(z, slope)
            W = np.sign(W) * np.maximum(np.abs(W) - step * l1, 0) / (1 + step * l2)
            b -= step * scale[-1] * slope
        if step == 0.05:
            np.testing.assert_allclose(state.settle(), np.r_[W.ravel(), b], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state.settle(), np.r_[W.ravel(), b], rtol=1e-10, atol=1e-12)
    assert met == pytest.approx(expected)
    assert not l1 or 0 < (W == 0).mean() < 1


def test_networks_start_the_same_everywhere_and_break_symmetry():
    for activation in ("relu", "tanh"):
        network = Mlp((400, 300), activation)
        layers = network.layers(500, None)
        start = network.initial(layers, 3, np.dtype("f4"))
        assert start.dtype == np.float32
        np.testing.assert_array_equal(start, Mlp((400, 300), activation).initial(layers, 3, np.dtype("f4")))
        assert not np.array_equal(start, network.initial(layers, 4, np.dtype("f4")))
        second = layers.block(start, 1)
        expected = 2 / 400 if activation == "relu" else 2 / 700
        assert second[:-1].var() == pytest.approx(expected, rel=0.02) and not second[-1].any()
    assert not Softmax().initial(Layers((3, 2)), 1, np.dtype(float)).any()


def test_classes_are_numbered_whatever_their_values():
    network, classes = Softmax(), [-1.0, 7.0, 2.5]
    assert network.targets(np.array([2.5, -1, 7, 7]), classes, np.dtype("f4")).tolist() == [2, 0, 1, 1]
    for strange in (3.0, np.nan, 99.0):
        with pytest.raises(UserError, match=r"the label of row 1 is .*none of the classes -1, 7, 2\.5"):
            network.targets(np.array([7.0, strange]), classes, np.dtype("f4"))
    scores = np.array([[0, 1, 3.0], [1e4, 0, 0], [0, 0, 0]])
    found = network.predictions(scores, classes)
    assert found["prediction"].tolist() == [2.5, -1, -1]
    np.testing.assert_allclose(found["probability"][0], np.exp(scores[0]) / np.exp(scores[0]).sum())
    np.testing.assert_allclose(found["probability"].sum(1), 1)
    for network in (Softmax(), Mlp()):
        with pytest.raises(UserError, match=r"has 1 class \(4\); .* needs at least two"):
            network.classes("y", [4.0])
    with pytest.raises(UserError, match="too many values for classes"):
        Softmax().classes("y", None)
    assert Mlp().classes("y", None) is None and Mlp().layers(3, None).widths == (3, 128, 1)


def test_metrics_are_scikit_learns():
    from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score, root_mean_squared_error

    rng = np.random.default_rng(5)
    scores, weight, empty = rng.standard_normal((200, 3)), rng.random(200), np.empty(0)
    y = rng.integers(0, 3, 200).astype(float)
    network = Softmax()
    p = network.predictions(scores, [0.0, 1, 2])["probability"]
    assert network.losses(scores, y) @ weight / weight.sum() == pytest.approx(log_loss(y, p, sample_weight=weight))
    halves = network.tallies(scores[:70], y[:70], weight[:70]) + network.tallies(scores[70:], y[70:], weight[70:])
    expected = accuracy_score(y, scores.argmax(1), sample_weight=weight)
    assert network.metrics_of(halves)["accuracy"] == pytest.approx(expected)
    assert network.metrics(scores, y, weight) == network.metrics_of(network.tallies(scores, y, weight))
    assert network.metrics(scores[:0], empty, None)["accuracy"] is None
    two, positive = scores[:, :2], (y > 0).astype(float)
    assert network.tallies(two, positive, None) is None
    found = network.metrics(two, positive, weight)
    assert found["auc"] == pytest.approx(roc_auc_score(positive, two[:, 1] - two[:, 0], sample_weight=weight))
    number = Mlp().metrics(scores[:, :1], scores[:, 1], weight)
    assert number["rmse"] == pytest.approx(root_mean_squared_error(scores[:, 1], scores[:, 0], sample_weight=weight))
    assert number["r2"] == pytest.approx(r2_score(scores[:, 1], scores[:, 0], sample_weight=weight))


def test_objectives_are_opened_by_name_and_settings():
    network = open_objective("mlp", hidden=[3, 2], activation="tanh")
    assert network.settings == {"hidden": [3, 2], "activation": "tanh"} and not network.convex
    assert open_objective("softmax").settings == {} and open_objective("softmax").convex
    for wrong in ({"hidden": []}, {"hidden": [0]}, {"activation": "step"}):
        with pytest.raises(ValueError, match="no network"):
            open_objective("mlp", **wrong)


def test_nothing_at_all_is_no_loss():
    for name in NETWORKS:
        network, layers, X, y, parameters, _ = problem(name, 5)
        gradient, none = np.zeros(layers.size), np.empty(0, np.int64)
        for form in (X, X[:0], X.astype("f2"), sparse(X)):
            assert network.loss_and_gradient(layers, form, y, None, none, parameters, gradient) == 0
            network.scores(layers, form[:0], parameters, np.empty((0, layers.outputs)))
        assert not gradient.any()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", ["dense", "sparse", "half"])
def test_a_batch_in_many_places_gives_the_gradient_of_its_rows_together(kind, weighted):
    network, layers, X, y, parameters, weight = problem("deep", 3 * MOST_ROWS)
    if kind == "half":
        X = X.astype("f2")
    edges = [0, 7, 7, 30, MOST_ROWS + 100, 3 * MOST_ROWS - 200, 3 * MOST_ROWS]  # a large part among small ones
    order = np.random.default_rng(5).permutation(len(X))
    parts = []
    for start, stop in pairwise(edges):
        rows = order[start:stop]
        whole = np.sort(rows) if stop - start > MOST_ROWS else rows
        parts.append(Rows(sparse(X) if kind == "sparse" else X, y, whole, weight if weighted else None))
    expected_gradient = np.zeros(layers.size)
    expected = network.loss_and_gradient(layers, X.astype(float), y, weight if weighted else None, np.arange(len(X)),
                                         parameters, expected_gradient)
    for shape in (list, iter):
        gradient, seen, told = np.zeros(layers.size), np.full(layers.size, np.nan), []
        network.needed = told.append
        network.finished = lambda start, stop: seen.__setitem__(slice(start, stop), gradient[start:stop])  # noqa: B023
        try:
            loss = network.batch_loss_and_gradient(layers, shape(parts), parameters, gradient)
        finally:
            network.needed = network.finished = None
        assert loss == pytest.approx(expected, rel=1e-12) and told == [0, 1, 2, 3]
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(seen, gradient)


def test_a_batch_of_no_rows_tells_that_all_is_finished():
    network, layers, *_ = problem("deep", 10)
    needed, finished = [], []
    network.needed, network.finished = needed.append, lambda *range: finished.append(range)
    try:
        assert network.batch_loss_and_gradient(layers, [], np.zeros(layers.size), np.zeros(layers.size)) == 0
    finally:
        network.needed = network.finished = None
    assert needed == [0, 1, 2, 3] and finished == [(0, layers.size)]
