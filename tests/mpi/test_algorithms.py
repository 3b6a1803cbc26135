"""Every algorithm, objective and penalty reaches what an independent reference says, on any number of ranks."""

from __future__ import annotations

import json
from itertools import cycle, pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_support import write_dataset
from scipy.optimize import minimize

from dml_hpc.commands import compare, train
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import on_root
from dml_hpc.store.model import read_model
from dml_hpc.trainers.theory import told

pytestmark = pytest.mark.mpi
maths = pytest.mark.maths

ROWS, FEATURES = 600, 6


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared"))))


def examples(objective, rows=ROWS, features=FEATURES, seed=0, thin=False):
    """Return X and y of a kind that ``objective`` learns."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features))
    if thin:
        X *= rng.random((rows, features)) < 0.5
    score = X @ np.linspace(-1, 1, features) + 0.5 * rng.standard_normal(rows)
    if objective in ("linear", "huber"):
        return X, score + 3 * (rng.random(rows) < 0.05)
    if objective == "poisson":
        return X, rng.poisson(np.exp(0.5 * score)).astype(float)
    if objective in ("softmax", "mlp"):
        return X, np.digitize(score, [-0.7, 0.7]).astype(float)
    return X, (score > 0).astype(float)


def make(comm, folder, name, X, y, shard_rows=None, **more):
    shards = shard_rows or [len(y) // 3, 0, len(y) - len(y) // 3]
    return Path(on_root(comm, lambda: str(write_dataset(folder / name, X, y, shards, **more))))


def fit(comm, data, output, **options):
    options = {"allreduce": "ring", "dtype": "float64", "seed": 3, **options}
    return train.run(comm, Console(rank=1), [data], output, **options)


def weights_of(comm, path):
    comm.Barrier()
    return read_model(path).weights


OBJECTIVES = ["linear", "huber", "logistic", "hinge", "squared-hinge", "poisson", "softmax", "mlp"]


@maths
@pytest.mark.parametrize(("objective", "thin"), [
    *zip(OBJECTIVES, cycle((True, False)), strict=False), ("logistic", False), ("softmax", False), ("mlp", True)])
def test_ranks_reproduce_one_rank(comm, folder, objective, thin):
    X, y = examples(objective, thin=thin)
    data = make(comm, folder, "data", sparse(X) if thin else X, y, dtype="float64")
    alone = comm.Split(comm.rank)
    smooth = objective != "hinge"
    more = {"hidden": (5,)} if objective == "mlp" else {}
    for algorithm in ("sync", "lbfgs") if smooth else ("sync",):
        settings = {"objective": objective, "algorithm": algorithm, "l2": 1e-3, **more}
        settings.update({"batch_size": 64, "epochs": 3} if algorithm == "sync" else {"epochs": 15})
        one = fit(alone, data, folder / f"{algorithm}-{comm.rank}.h5", **settings)
        many = fit(comm, data, folder / f"{algorithm}.h5", **settings)
        expected = read_model(folder / f"{algorithm}-{comm.rank}.h5").weights
        error = np.linalg.norm(weights_of(comm, folder / f"{algorithm}.h5") - expected) / np.linalg.norm(expected)
        assert error <= 1e-6, algorithm
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-9)
        exact = [fit(who, data, folder / f"{algorithm}-exact-{name}.h5", reproducible=True,
                     **settings)["weights_digest"] for who, name in ((alone, comm.rank), (comm, "all"))]
        assert exact[0] == exact[1], algorithm
    alone.Free()


def standardised(X):
    return (X - X.mean(0)) / X.std(0)


def penalised_loss(objective, X, y, classes=3):
    """Return mean loss + ½·l2·‖w‖² as a function of the parameters, in plain NumPy, with l2 = 0.01."""
    Z = np.c_[standardised(X), np.ones(len(y))]
    t = 2 * y - 1

    def value(w):
        if objective == "softmax":
            W = w.reshape(-1, classes)
            s = Z @ W
            losses = np.logaddexp.reduce(s, axis=1) - s[np.arange(len(y)), y.astype(int)]
            return losses.mean() + 0.005 * np.sum(W[:-1] ** 2)
        s = Z @ w
        r = np.abs(s - y)
        losses = {"linear": r * r / 2, "huber": np.where(r <= 1.35, r * r / 2, 1.35 * r - 1.35**2 / 2),
                  "logistic": np.logaddexp(0, -t * s), "squared-hinge": np.maximum(0, 1 - t * s) ** 2,
                  "poisson": np.exp(np.minimum(s, 50)) - y * s}[objective]
        return losses.mean() + 0.005 * np.sum(w[:-1] ** 2)

    return value


@maths
@pytest.mark.parametrize("objective", ["linear", "huber", "logistic", "squared-hinge", "poisson", "softmax"])
def test_lbfgs_reaches_the_optimum(comm, folder, objective):
    X, y = examples(objective, seed=2)
    data = make(comm, folder, "data", X, y, dtype="float64")
    result = fit(comm, data, folder / "m.h5", objective=objective, batch_size="full", l2=0.01, tolerance=1e-13,
                 algorithm=None)
    assert result["algorithm"] == "lbfgs"
    value = penalised_loss(objective, X, y)
    best = minimize(value, np.zeros((FEATURES + 1) * (3 if objective == "softmax" else 1)), method="BFGS",
                    options={"gtol": 1e-9, "maxiter": 2000})
    assert result["loss"] + result["penalty"] == pytest.approx(best.fun, rel=1e-6)


@maths
def test_lbfgs_with_l1_finds_scikit_learns_lasso(comm, folder):
    from sklearn.linear_model import ElasticNet, Lasso

    X, y = examples("linear", features=12, seed=7)
    data = make(comm, folder, "data", X, y, dtype="float64")
    for name, l1, l2, reference in (("lasso", 0.1, 0.0, Lasso(0.1, tol=1e-12)),
                                    ("net", 0.1, 0.1, ElasticNet(0.2, l1_ratio=0.5, tol=1e-12))):
        fit(comm, data, folder / f"{name}.h5", objective="linear", algorithm="lbfgs", l1=l1, l2=l2, tolerance=1e-14,
            epochs=300)
        expected = reference.fit(standardised(X), y).coef_
        got = weights_of(comm, folder / f"{name}.h5")[:-1] * X.std(0)
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert np.array_equal(got == 0, expected == 0)


@maths
@pytest.mark.parametrize(("algorithm", "optimizer"), [
    ("sync", "sgd"), ("sync", "adagrad"), ("sync", "adamw"), ("local", "nesterov"), ("local", "adam")])
def test_every_optimiser_learns(comm, folder, algorithm, optimizer):
    X, y = examples("logistic", rows=1200, seed=3)
    data = make(comm, folder, "data", X, y)
    best = fit(comm, data, folder / "best.h5", algorithm="lbfgs")["loss"]
    result = fit(comm, data, folder / "m.h5", algorithm=algorithm, optimizer=optimizer, batch_size=60, epochs=20,
                 step_size={"adagrad": 1.0, "sgd": None, "nesterov": None}.get(optimizer, 0.05))
    # Alone, four ranks learn from 15 rows at a time.
    assert best - 1e-9 <= result["loss"] < (1.03 if algorithm == "sync" else 1.15) * best


def test_local_steps_averaged_every_time_are_synchronous_ones(comm, folder):
    X, y = examples("logistic", rows=1000, seed=4)
    data = make(comm, folder, "data", X, y, dtype="float64")
    settings = {"batch_size": 50, "momentum": 0.0, "epochs": 3, "l2": 1e-3}
    fit(comm, data, folder / "sync.h5", algorithm="sync", **settings)
    fit(comm, data, folder / "local.h5", algorithm="local", tau=1, **settings)
    np.testing.assert_allclose(weights_of(comm, folder / "local.h5"), weights_of(comm, folder / "sync.h5"), rtol=1e-9,
                               atol=1e-12)


@maths
@pytest.mark.parametrize("average_momentum", [False, True])
def test_local_sgd_learns_with_few_averages(comm, folder, average_momentum):
    X, y = examples("logistic", rows=1500, seed=5)
    data = make(comm, folder, "data", X, y)
    best = fit(comm, data, folder / "best.h5", algorithm="lbfgs")["loss"]
    result = fit(comm, data, folder / "m.h5", algorithm="local", tau=7, batch_size=50, epochs=10,
                 average_momentum=average_momentum)
    assert result["loss"] < 1.1 * best and result["steps"] == 300


@maths
@pytest.mark.parametrize(("objective", "thin", "more"), [
    ("logistic", False, {}), ("huber", True, {"l2": 1e-3}), ("hinge", True, {"l1": 1e-4}),
    ("softmax", True, {"l2": 1e-3}), ("softmax", False, {}), ("mlp", False, {"hidden": (4,)}),
    ("linear", False, {"replicas": True}),
    ("logistic", True, {"rounds": 5, "weighting": "rows"}), ("logistic", False, {"batch_size": 8})])
def test_as_many_machines_learn_the_same_on_any_number_of_ranks(comm, folder, objective, more, thin):
    X, y = examples(objective, seed=6, thin=thin)
    data = make(comm, folder, "data", sparse(X) if thin else X, y, dtype="float64")
    alone = comm.Split(comm.rank)
    settings = {"objective": objective, "algorithm": "average", "machines": 5, "epochs": 4, "step_size": 0.01, **more}
    one = fit(alone, data, folder / f"m-{comm.rank}.h5", **settings)
    alone.Free()
    many = fit(comm, data, folder / "m.h5", **settings)
    np.testing.assert_allclose(weights_of(comm, folder / "m.h5"), read_model(folder / f"m-{comm.rank}.h5").weights,
                               rtol=1e-9, atol=1e-12)
    assert many["loss"] == pytest.approx(one["loss"]) and many["losses"] == pytest.approx(one["losses"])
    assert many["theory"]["variance"] == pytest.approx(one["theory"]["variance"], rel=1e-6)
    assert many["theory"]["machines"] == 5 and many["theory"]["loss_of_one"] >= 0
    assert many["examples"] == one["examples"]


@maths
@pytest.mark.parametrize(("more", "scale"), [
    ({"optimizer": "adagrad"}, True), ({"optimizer": "sgd", "momentum": 0.0}, False),
    ({"optimizer": "sgd", "momentum": 0.0, "l2": 0.01, "l1": 0.001}, True),
    ({"optimizer": "adagrad", "l1": 0.001}, False)])
def test_exchanging_what_rows_touch_gives_the_steps_of_whole_sums(comm, folder, more, scale):
    X, y = examples("logistic", rows=700, features=60, seed=8)
    X[np.random.default_rng(1).random(X.shape) < 0.95] = 0
    data = make(comm, folder, "data", sparse(X), y, dtype="float64")
    settings = {"algorithm": "sync", "batch_size": 20, "epochs": 3, "scale": scale, **more}
    whole = fit(comm, data, folder / "whole.h5", exchange="dense", **settings)
    few = fit(comm, data, folder / "few.h5", exchange="sparse", **settings)
    assert (whole["exchange_used"], few["exchange_used"]) == ("dense", "sparse")
    np.testing.assert_allclose(weights_of(comm, folder / "few.h5"), weights_of(comm, folder / "whole.h5"), rtol=1e-8,
                               atol=1e-11)
    assert few["losses"] == pytest.approx(whole["losses"])


def test_the_exchange_is_chosen_by_measuring(comm, folder):
    def write():
        rng = np.random.default_rng(0)
        with h5py.File(folder / "wide.h5", "w") as file:
            group = file.create_group("X")
            group.attrs["shape"] = (400, 1 << 22)
            group["data"], group["indptr"] = np.ones(2000, "f4"), np.arange(401) * 5
            group["indices"] = np.sort(rng.integers(0, 1 << 22, (400, 5)), axis=1).reshape(-1).astype("i4")
            file["y"] = rng.integers(0, 2, 400).astype(float)

    on_root(comm, write)
    result = fit(comm, folder / "wide.h5", folder / "m.h5", batch_size=16, epochs=1, dtype="float32", allreduce="mpi",
                 scale=False)
    assert (result["optimizer"], result["exchange_used"]) == ("adagrad", "sparse")


@pytest.mark.parametrize("scale", [False, True])
def test_sums_under_way_while_ranks_compute_give_the_same_steps(comm, folder, scale):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((240, 300)) + 1
    data = make(comm, folder, "data", X, np.digitize(X[:, 0], [0.5, 1.5]).astype(float), dtype="float64")
    settings = {"objective": "mlp", "hidden": (256, 260), "algorithm": "sync", "batch_size": 40, "epochs": 2,
                "scale": scale, "step_size": 1e-3, "l2": 1e-3}
    fit(comm, data, folder / "plain.h5", overlap=False, **settings)
    for reducer in ("ring", "hierarchical"):
        result = fit(comm, data, folder / f"{reducer}.h5", overlap=True, **{**settings, "allreduce": reducer})
        assert result["exchange_used"] == "overlapped"
        got, expected = weights_of(comm, folder / f"{reducer}.h5"), weights_of(comm, folder / "plain.h5")
        assert np.linalg.norm(got - expected) <= 1e-8 * np.linalg.norm(expected)


@maths
def test_a_gradient_is_shortened_to_its_longest_norm(comm, folder):
    X, y = examples("linear", seed=9)
    data = make(comm, folder, "data", X, y * 100, dtype="float64")
    settings = {"objective": "linear", "algorithm": "sync", "batch_size": "full", "steps": 1, "step_size": 1.0,
                "momentum": 0.0, "schedule": "constant", "scale": False}
    fit(comm, data, folder / "free.h5", **settings)
    for name, more in (("m", {}), ("r", {"reproducible": True})):
        fit(comm, data, folder / f"{name}.h5", clip_norm=0.5, **more, **settings)
        free, short = weights_of(comm, folder / "free.h5"), weights_of(comm, folder / f"{name}.h5")
        np.testing.assert_allclose(short, 0.5 * free / np.linalg.norm(free), rtol=1e-5)


@maths
def test_averaged_iterates_are_nearer_the_optimum(comm, folder):
    X, y = examples("logistic", rows=1000, seed=10)
    data = make(comm, folder, "data", X, y, dtype="float64")
    settings = {"batch_size": 10, "momentum": 0.0, "epochs": 10, "schedule": "constant", "step_size": 1.0}
    best = fit(comm, data, folder / "best.h5", algorithm="lbfgs")["loss"]
    for algorithm in ("sync", "local"):
        last = fit(comm, data, folder / "last.h5", algorithm=algorithm, overwrite=True, **settings)["loss"]
        average = fit(comm, data, folder / "mean.h5", algorithm=algorithm, average_iterates=True, overwrite=True,
                      **settings)["loss"]
        assert average - best < 0.5 * (last - best)


@pytest.mark.parametrize("algorithm", ["sync", "local", "average", "lbfgs"])
def test_a_time_budget_ends_every_algorithm(comm, folder, algorithm):
    X, y = examples("logistic", rows=3000)
    data = make(comm, folder, "data", X, y)
    more = {"tolerance": 0.0} if algorithm == "lbfgs" else {}
    result = fit(comm, data, folder / "m.h5", algorithm=algorithm, time_budget=0.3, **more)
    assert result["work_s"] < 5 and result["steps"] > 0
    assert result["stopped"] == "the time is over" or algorithm == "lbfgs"


def test_training_stops_when_the_loss_settles_or_the_validation_loss_rises(comm, folder):
    X, y = examples("logistic", rows=1000, seed=12)
    data = make(comm, folder, "data", X, y)
    settings = {"algorithm": "sync", "epochs": 200, "batch_size": 100}
    result = fit(comm, data, folder / "m.h5", tolerance=1e-3, schedule="constant", **settings)
    assert result["stopped"] == "the loss no longer falls" and result["epochs"] < 100
    rng = np.random.default_rng(0)
    few = make(comm, folder, "few", np.c_[X[:60], rng.standard_normal((60, 60))], y[:60])
    held = make(comm, folder, "held", np.c_[X[500:], rng.standard_normal((500, 60))], y[500:])
    result = fit(comm, few, folder / "v.h5", validation=held, patience=4, objective="logistic", algorithm="sync",
                 epochs=200, batch_size=20, schedule="constant")
    assert "has not fallen 4 times" in result["stopped"]
    kept = min(result["validation_losses"])
    assert result["validation_losses"].index(kept) == len(result["validation_losses"]) - 5
    from dml_hpc.commands import evaluate

    comm.Barrier()
    loss = evaluate.run(comm, Console(rank=1), folder / "v.h5", [held], None, None)["loss"]
    assert loss == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("algorithm", ["sync", "local", "average", "lbfgs"])
def test_every_algorithm_leaves_the_same_trace(comm, folder, algorithm):
    X, y = examples("logistic", rows=2000)
    data = make(comm, folder, "data", X, y)
    result = fit(comm, data, folder / "m.h5", algorithm=algorithm, epochs=4, trace=folder / "t.json")
    assert len(result["trace"]) == comm.size and json.dumps(result, allow_nan=False)
    for points in result["trace"]:
        assert points
        for point in points:
            assert point.keys() == {"seconds", "examples", "loss", "bytes_sent", "idle",
                                    "read", "compute", "communicate", "wait"}
        assert all(a["seconds"] <= b["seconds"] and a["examples"] <= b["examples"]
                   for a, b in pairwise(points))
    assert sum(points[-1]["examples"] for points in result["trace"]) == pytest.approx(result["examples"], rel=0.01)
    comm.Barrier()
    events = json.loads((folder / "t.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == set(range(comm.size))
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert names <= {"read", "compute", "communicate", "wait"} and "compute" in names
    assert all(event["ts"] >= -1e4 and event["dur"] > 0 for event in events if event["ph"] == "X")


@pytest.mark.parametrize(("place", "says"), [("X", "feature 2 of row 7 of .*part-00002.h5 is nan"),
                                             ("step", "try --step-size")])
@pytest.mark.parametrize("algorithm", ["sync", "local", "lbfgs"])
def test_a_diverging_run_says_where_and_what_to_try(comm, folder, algorithm, place, says):
    X, y = examples("linear", rows=400, seed=1)
    if place == "X":
        X[140] = X[133 + 7] * 1.0
        X[140, 2] = np.nan
    data = make(comm, folder, "data", X, y, [133, 0, 267])
    more = {"step_size": 1e3, "batch_size": 50} if algorithm != "lbfgs" else {}
    if algorithm == "lbfgs" and place == "step":
        pytest.skip("a line search finds its step")
    with pytest.raises(AgreedError, match=says) as failure:
        fit(comm, data, folder / "m.h5", objective="linear", algorithm=algorithm, scale=False, epochs=40, **more)
    assert failure.value.exit_code == 1 and not (folder / "m.h5").exists()


def test_a_rising_loss_stops_the_run(comm, folder):
    X, y = examples("linear", rows=2000, seed=1)
    data = make(comm, folder, "data", X, y)
    with pytest.raises(AgreedError, match=r"the loss (rose|became) .*try --step-size"):
        fit(comm, data, folder / "m.h5", objective="linear", algorithm="sync", batch_size=50, step_size=2.5,
            momentum=0.0, schedule="constant", epochs=400)


@maths
@pytest.mark.parametrize("thin", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("objective", ["logistic", "linear", "softmax"])
def test_a_weight_counts_as_so_many_rows(comm, folder, objective, thin):
    X, y = examples(objective, seed=13, thin=thin)
    counts = np.random.default_rng(2).integers(0, 4, len(y)).astype(float)
    repeated = np.repeat(np.arange(len(y)), counts.astype(int))
    kind = sparse if thin else np.asarray
    data = make(comm, folder, "weighted", kind(X), y, dtype="float64", weight=counts)
    other = make(comm, folder, "repeated", kind(X[repeated]), y[repeated], dtype="float64")
    settings = {"objective": objective, "algorithm": "lbfgs", "l2": 0.01, "scale": False, "tolerance": 1e-14}
    one, two = (fit(comm, which, folder / f"{name}.h5", **settings) for which, name in ((data, "a"), (other, "b")))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-9)
    np.testing.assert_allclose(weights_of(comm, folder / "a.h5"), weights_of(comm, folder / "b.h5"), rtol=1e-4,
                               atol=1e-6)
    ignored = fit(comm, data, folder / "c.h5", sample_weight=False, **settings)
    assert ignored["loss"] != pytest.approx(one["loss"], rel=1e-6)


@maths
def test_balanced_classes_are_scikit_learns(comm, folder):
    from sklearn.linear_model import LogisticRegression

    X, y = examples("logistic", seed=14)
    y = ((y > 0) & (X[:, 0] > 0.5)).astype(float)
    data = make(comm, folder, "data", X, y, dtype="float64")
    for name, ours, theirs in (("a", "balanced", "balanced"), ("b", {1.0: 3.0}, {0: 1, 1: 3})):
        fit(comm, data, folder / f"{name}.h5", algorithm="lbfgs", l2=0.01, class_weight=ours, scale=False,
            tolerance=1e-14)
        total = np.where(y > 0, len(y) / (2 * y.sum()), len(y) / (2 * (1 - y).sum())).sum() if name == "a" else \
            (1 + 2 * y).sum()
        reference = LogisticRegression(C=1 / (0.01 * total), class_weight=theirs, tol=1e-12, max_iter=10000).fit(X, y)
        np.testing.assert_allclose(weights_of(comm, folder / f"{name}.h5")[:-1], reference.coef_[0], rtol=1e-4)
    with pytest.raises(AgreedError, match="--class-weight names 7"):
        fit(comm, data, folder / "c.h5", class_weight={7.0: 1.0})


@pytest.mark.parametrize(("options", "says"), [
    ({"algorithm": "lbfgs", "step_size": 0.1}, "has no use for --step-size"),
    ({"algorithm": "lbfgs", "objective": "hinge"}, "needs a smooth loss"),
    ({"algorithm": "average", "momentum": 0.5}, "has no use for --momentum"),
    ({"algorithm": "sync", "tau": 5}, "has no use for --tau"),
    ({"algorithm": "average", "machines": 100, "time_budget": 1.0}, "--time-budget does not go with more --machines"),
    ({"algorithm": "local", "reproducible": True}, "by its nature"),
    ({"huber_delta": 1.0}, "--huber-delta is for --objective huber"),
    ({"exchange": "sparse"}, "--exchange sparse is for sparse rows"),
    ({"time_budget": 1.0, "schedule": "cosine"}, "needs to know where a run ends"),
    ({"objective": "poisson"}, "label of row"),
    ({"objective": "logistic", "class_weight": {3.0: 1.0}}, "two"),
])
def test_what_does_not_go_together_is_refused(comm, folder, options, says):
    X, y = examples("linear", rows=30)
    data = make(comm, folder, "data", X, y if "class_weight" in options or options.get("objective") == "poisson" else
                (y > 0).astype(float))
    with pytest.raises(AgreedError, match=says) as refusal:
        fit(comm, data, folder / "m.h5", **options)
    assert refusal.value.exit_code == 2 and not (folder / "m.h5").exists()


def test_more_ranks_than_rows_train_by_every_algorithm(comm, folder):
    data = make(comm, folder, "data", np.array([[0.0], [1.0]]), np.array([0.0, 1.0]), [0, 2, 0])
    for algorithm in ("sync", "local", "average", "lbfgs"):
        result = fit(comm, data, folder / f"{algorithm}.h5", algorithm=algorithm, epochs=2)
        assert np.isfinite(result["loss"]) and sum(rank["rows"] for rank in result["per_rank"]) == 2, algorithm


def test_compare_ranks_algorithms_by_their_loss(comm, folder):
    X, y = examples("logistic", rows=1500, seed=15)
    data = make(comm, folder, "data", X, y)
    contenders = [("sync", {"algorithm": "sync"}), ("local:tau=3", {"algorithm": "local", "tau": 3}),
                  ("average", {"algorithm": "average"}), ("lbfgs", {"algorithm": "lbfgs"})]
    result = compare.run(comm, Console(rank=1), [data], contenders, folder / "c.svg", False, epochs=3, allreduce="mpi")
    losses = [row["loss"] for row in result["contenders"]]
    assert losses == sorted(losses) and {row["contender"] for row in result["contenders"]} == {n for n, _ in contenders}
    comm.Barrier()
    assert "local:tau=3" in (folder / "c.svg").read_text()


def test_rows_with_a_weight_that_is_none_are_named(comm, folder):
    X, y = examples("logistic", rows=90)
    data = make(comm, folder, "data", X, y, weight=np.zeros(90))
    with pytest.raises(AgreedError, match="weigh"):
        fit(comm, data, folder / "m.h5")
    assert not (folder / "m.h5").exists()


def test_h5_of_ones_own_may_have_weights(comm, folder):
    X, y = examples("logistic", rows=90)

    def write():
        with h5py.File(folder / "own.h5", "w") as file:
            file["X"], file["y"], file["w"] = X, y, np.arange(90.0)

    on_root(comm, write)
    one = fit(comm, folder / "own.h5", folder / "m.h5", weight_key="w", algorithm="lbfgs")
    other = fit(comm, folder / "own.h5", folder / "n.h5", x_key="X", algorithm="lbfgs")
    assert one["loss"] != pytest.approx(other["loss"], rel=1e-6)


def test_the_first_sums_of_a_reducer_may_be_gathered_ones(comm, folder):
    X, y = examples("mlp")
    data = make(comm, folder, "data", X, y)
    settings = {"objective": "mlp", "hidden": (8,), "algorithm": "lbfgs", "epochs": 3}
    losses = [fit(comm, data, folder / f"{name}.h5", **{**settings, "allreduce": name})["loss"]
              for name in ("ring", "hierarchical", "tree", "mpi")]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)


def test_rounds_without_examples_and_ranks_without_machines_change_nothing(comm, folder):
    X, y = examples("linear")
    data = make(comm, folder, "data", X, y)
    settings = {"objective": "linear", "algorithm": "average", "machines": 2, "steps": 50, "step_size": 0.01}
    once = fit(comm, data, folder / "a.h5", **settings)
    often = fit(comm, data, folder / "b.h5", rounds=200, **settings)
    assert often["loss"] == pytest.approx(once["loss"], rel=0.2)
    assert once["theory"]["loss_of_one"] == pytest.approx(once["loss"], rel=0.3)


def test_theory_can_be_told_of_any_penalty(comm, folder):
    X, y = examples("linear")
    data = make(comm, folder, "data", X, y)
    for l2 in (0.1, 600.0):
        found = fit(comm, data, folder / f"{l2}.h5", objective="linear", algorithm="average", steps=50, l2=l2)
        assert 0 < found["theory"]["contraction"] < 1 and 0 <= found["theory"]["start_left"] < 1
        assert found["theory"]["examples_needed"] >= 1 and told(found["theory"])


def test_looking_at_validation_data_changes_nothing(comm, folder):
    X, y = examples("logistic", rows=900, features=40)
    data = make(comm, folder, "data", X, y)
    for more in ({"compression": "topk"}, {}):
        settings = {"algorithm": "sync", "average_iterates": True, "dtype": "float32", "epochs": 4, "batch_size": 100,
                    **more}
        blind = fit(comm, data, folder / "a.h5", overwrite=True, **settings)
        looking = fit(comm, data, folder / "b.h5", overwrite=True, validation=data, patience=9, **settings)
        assert looking["losses"] == pytest.approx(blind["losses"], rel=1e-6)


def test_what_a_run_reads_is_never_replaced(comm, folder):
    X, y = examples("logistic")
    data = make(comm, folder, "data", X, y)
    for options in ({"output": data / "part-00000.h5"}, {"trace": data / "manifest.json"}):
        output = options.pop("output", folder / "m.h5")
        with pytest.raises(AgreedError, match="is what this run reads"):
            fit(comm, data, output, overwrite=True, **options)
    comm.Barrier()
    fit(comm, data, folder / "m.h5", algorithm="lbfgs", epochs=2)


def test_a_contender_that_diverges_is_listed_and_one_that_cannot_run_is_refused_first(comm, folder):
    X, y = examples("linear", rows=900)
    data = make(comm, folder, "data", X, y)
    contenders = [("average", {"algorithm": "average", "step_size": 1e6}), ("sync", {"algorithm": "sync"})]
    shared = {"objective": "linear", "epochs": 2, "allreduce": "mpi"}
    result = compare.run(comm, Console(rank=1), [data], contenders, None, False, **shared)
    assert [("failed" in row) for row in result["contenders"]] == [False, True] and "exit_code" not in result
    assert "--step-size" in result["contenders"][1]["failed"]
    result = compare.run(comm, Console(rank=1), [data], contenders[:1], None, False, **shared)
    assert result["exit_code"] == 1
    with pytest.raises(AgreedError, match="lbfgs: --algorithm lbfgs has no use for --step-size"):
        contenders = [*contenders, ("lbfgs", {"algorithm": "lbfgs", "step_size": 1.0})]
        compare.run(comm, Console(rank=1), [data], contenders, None, False, **shared)


def test_streamed_parts_can_be_sent_while_others_are_computed(comm, folder, room):
    rng = np.random.default_rng(0)
    rows = 75_000 * comm.size
    X = rng.standard_normal((rows, 64)).astype("f4")
    data = make(comm, folder, "data", X, (X[:, 0] > 0).astype(float), [rows // 3, rows - rows // 3])
    settings = {"objective": "mlp", "hidden": (1024, 70), "algorithm": "sync", "batch_size": 15_000 * comm.size,
                "steps": 3, "dtype": "float32"}
    losses = []
    for overlap in (False, True):
        result = fit(comm, data, folder / f"{overlap}.h5", overlap=overlap, memory_limit=room(15),
                     **settings)
        assert {split["rows_are"] for split in result["per_rank"]} == {"streamed"}
        losses.append(result["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
