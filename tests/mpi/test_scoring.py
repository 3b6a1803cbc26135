"""Evaluating and predicting with models of every kind, on any number of ranks, with weights of rows."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset

from dml_hpc.commands import evaluate, predict
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import on_root
from dml_hpc.objectives import open_objective
from dml_hpc.store.model import Model, write_model

pytestmark = [pytest.mark.mpi, pytest.mark.maths]

FEATURES = 6


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared"))))


def some_rows(rows=500, seed=0):
    rng = np.random.default_rng(seed)
    X = np.where(rng.random((rows, FEATURES)) < 0.7, rng.standard_normal((rows, FEATURES)), 0).astype(np.float32)
    return X, rng.random(rows) * 3, rng


def save(comm, path, name, classes, dtype="float32", **settings):
    """Write a model of random parameters; return its objective, layers and parameters."""
    objective = open_objective(name, **settings)
    layers = objective.layers(FEATURES, classes)
    parameters = (np.random.default_rng(7).standard_normal(layers.size) / 2).astype(dtype)
    on_root(comm, lambda: write_model(path, Model(name, objective.settings, layers.widths, parameters, None, "y",
                                                  classes, None)))
    return objective, layers, parameters


def store(comm, path, X, y, weight):
    """Write an HDF5 file without a manifest."""
    def write():
        with h5py.File(path, "w") as file:
            file["X"], file["y"], file["w"] = X, y, weight
    on_root(comm, write)


def evaluated(comm, model, data, weight_key=None):
    result = evaluate.run(comm, Console(rank=1), model, [data], None, None, weight_key)
    assert json.dumps(result)
    work_s = result.pop("work_s")
    assert comm.allgather(result) == [result] * comm.size and work_s > 0
    return result


def predicted(comm, model, data, output):
    result = predict.run(comm, Console(rank=1), model, [data], None, None, output, overwrite=True)
    comm.Barrier()
    with h5py.File(output, "r") as file:
        found = {name: file[name][()] for name in result["datasets"]}
        assert set(file) == set(found)
        classes = json.loads(file.attrs["classes"])
    comm.Barrier()
    return found, classes


def plain_scores(layers, parameters, X, activation):
    a = X.astype(float)
    for layer in range(len(layers.widths) - 1):
        block = layers.block(parameters, layer).astype(float)
        a = a @ block[:-1] + block[-1]
        if layer + 2 < len(layers.widths):
            a = np.tanh(a) if activation == "tanh" else np.maximum(a, 0)
    return a


@pytest.mark.parametrize(("name", "settings"), [("softmax", {}), ("mlp", {"hidden": (5, 4), "activation": "tanh"})])
@pytest.mark.parametrize("classes", [[-1.0, 2.0], [1.0, 2.0, 5.0, 7.0]])
@pytest.mark.parametrize("weighted", [False, True])
def test_classes_are_told_apart_as_scikit_learn_counts(comm, folder, name, settings, classes, weighted):
    from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

    X, weight, rng = some_rows()
    y = rng.choice(classes, len(X))
    objective, layers, parameters = save(comm, folder / "m.h5", name, classes, **settings)
    store(comm, folder / "d.h5", X, y, weight)
    counts = weight if weighted else None
    scores = plain_scores(layers, parameters, X, settings.get("activation"))
    p = objective.predictions(scores, classes)["probability"]
    found, kept = predicted(comm, folder / "m.h5", folder / "d.h5", folder / "p.h5")
    assert kept == classes and set(found) == {"score", "prediction", "probability"}
    np.testing.assert_allclose(found["score"], scores, atol=1e-4)
    np.testing.assert_allclose(found["probability"], p, atol=1e-5)
    np.testing.assert_array_equal(found["prediction"], np.array(classes)[scores.argmax(1)])
    result = evaluated(comm, folder / "m.h5", folder / "d.h5", "w" if weighted else None)
    assert result["loss"] == pytest.approx(log_loss(y, p, sample_weight=counts), rel=1e-5)
    assert result["accuracy"] == pytest.approx(accuracy_score(y, found["prediction"], sample_weight=counts))
    assert result["total_weight"] == pytest.approx(weight.sum() if weighted else len(y))
    margin = found["score"][:, 1] - found["score"][:, 0]
    auc = roc_auc_score(y == classes[1], margin, sample_weight=counts) if len(classes) == 2 else None
    assert result["auc"] == (None if auc is None else pytest.approx(auc, abs=1e-5))
    assert result["rmse"] is None and result["r2"] is None


@pytest.mark.parametrize(("name", "settings", "labels"), [
    ("linear", {}, "any"), ("huber", {"delta": 0.7}, "any"), ("mlp", {"hidden": (5,)}, "any"),
    ("poisson", {}, "counts")])
@pytest.mark.parametrize("weighted", [False, True])
def test_numbers_are_predicted_as_scikit_learn_counts(comm, folder, name, settings, labels, weighted):
    from sklearn.metrics import r2_score, root_mean_squared_error

    X, weight, rng = some_rows()
    y = rng.poisson(2, len(X)) if labels == "counts" else rng.standard_normal(len(X))
    objective, layers, parameters = save(comm, folder / "m.h5", name, None, "float64", **settings)
    store(comm, folder / "d.h5", X, y, weight)
    scores = plain_scores(layers, parameters, X, "relu")
    found, _ = predicted(comm, folder / "m.h5", folder / "d.h5", folder / "p.h5")
    np.testing.assert_allclose(found["score"], scores[:, 0], atol=1e-5)
    expected = np.exp(scores[:, 0]) if name == "poisson" else scores[:, 0]
    np.testing.assert_allclose(found["prediction"], expected, rtol=1e-4, atol=1e-5)
    counts = weight if weighted else None
    result = evaluated(comm, folder / "m.h5", folder / "d.h5", "w" if weighted else None)
    assert result["loss"] == pytest.approx(np.average(objective.losses(scores, y), weights=counts), rel=1e-5)
    assert result["rmse"] == pytest.approx(root_mean_squared_error(y, expected, sample_weight=counts), rel=1e-5)
    assert result["r2"] == pytest.approx(r2_score(y, expected, sample_weight=counts), rel=1e-5)
    assert result["accuracy"] is None and result["auc"] is None


@pytest.mark.parametrize("name", ["logistic", "hinge", "squared-hinge"])
def test_two_classes_by_one_score_are_counted_by_weight(comm, folder, name):
    from sklearn.metrics import accuracy_score, roc_auc_score

    X, weight, rng = some_rows()
    y = rng.choice([3.0, 4.0], len(X))
    _, layers, parameters = save(comm, folder / "m.h5", name, [3.0, 4.0], "float64")
    store(comm, folder / "d.h5", X, y, weight)
    scores = plain_scores(layers, parameters, X, None)[:, 0]
    result = evaluated(comm, folder / "m.h5", folder / "d.h5", "w")
    assert result["accuracy"] == pytest.approx(accuracy_score(y, np.where(scores > 0, 4.0, 3.0), sample_weight=weight))
    assert result["auc"] == pytest.approx(roc_auc_score(y, scores, sample_weight=weight), abs=1e-6)


@pytest.mark.parametrize("form", ["dense", "half", "sparse", "gzip"])
def test_shards_of_any_form_give_the_same_scores(comm, folder, form):
    X, _, rng = some_rows()
    X = X.astype(np.float16).astype(np.float32)
    y = rng.choice([1.0, 2.0, 5.0], len(X))
    _, layers, parameters = save(comm, folder / "m.h5", "softmax", [1.0, 2.0, 5.0])
    rows = sparse(X) if form == "sparse" else X
    stored = {"half": "float16"}.get(form, "float32")
    on_root(comm, lambda: write_dataset(folder / "data", rows, y, [100, 0, 400], stored,
                                        "gzip" if form == "gzip" else None) and None)
    found, _ = predicted(comm, folder / "m.h5", folder / "data", folder / "p.h5")
    np.testing.assert_allclose(found["score"], plain_scores(layers, parameters, X, None), atol=1e-4)
    assert evaluated(comm, folder / "m.h5", folder / "data")["accuracy"] == \
        pytest.approx(np.mean(found["prediction"] == y))


def test_fewer_rows_than_ranks_and_weights_of_nothing(comm, folder):
    X, _, _ = some_rows(2)
    save(comm, folder / "m.h5", "softmax", [0.0, 1.0, 2.0])
    store(comm, folder / "d.h5", X, np.array([1.0, 2.0]), np.array([1.0, 0.0]))
    one = evaluated(comm, folder / "m.h5", folder / "d.h5", "w")
    assert one["total_weight"] == 1 and one["accuracy"] in (0, 1)
    assert len(predicted(comm, folder / "m.h5", folder / "d.h5", folder / "p.h5")[0]["score"]) == 2
    store(comm, folder / "e.h5", X, np.array([1.0, 2.0]), np.zeros(2))
    with pytest.raises(AgreedError, match="weigh 0 in all") as refusal:
        evaluated(comm, folder / "m.h5", folder / "e.h5", "w")
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(("bad", "says"), [(-1.0, "the weight of row 130 is -1"), (np.nan, "the weight of row 130 is")])
def test_a_weight_that_is_none_is_named(comm, folder, bad, says):
    X, weight, _ = some_rows()
    weight[130] = bad
    save(comm, folder / "m.h5", "linear", None)
    store(comm, folder / "d.h5", X, np.zeros(len(X)), weight)
    with pytest.raises(AgreedError, match=says):
        evaluated(comm, folder / "m.h5", folder / "d.h5", "w")


def test_a_label_of_no_class_is_named(comm, folder):
    X, weight, _ = some_rows()
    save(comm, folder / "m.h5", "softmax", [0.0, 1.0, 2.0])
    store(comm, folder / "d.h5", X, np.full(len(X), 9.0), weight)
    with pytest.raises(AgreedError, match="is 9, which is none of the classes 0, 1, 2"):
        evaluated(comm, folder / "m.h5", folder / "d.h5")
