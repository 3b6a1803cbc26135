"""Training on a device is training: the model of the CPU, whatever the algorithm, the objective and the ranks.

The device is the CPU in a GPU's clothes: NumPy's arrays, and the CUDA kernels themselves.
"""

from __future__ import annotations

import os
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from data_support import write_dataset
from host_device import COMPILER, HostCuda

from dml_hpc.commands import train
from dml_hpc.console import Console
from dml_hpc.data import on_device
from dml_hpc.data.csr import sparse
from dml_hpc.errors import AgreedError
from dml_hpc.kernels.cuda import long_rows
from dml_hpc.mpi import on_root
from dml_hpc.store.model import read_model

pytestmark = [pytest.mark.mpi, pytest.mark.maths,
              pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")]

OPTIONS = {"allreduce": "hierarchical", "batch_size": 100, "epochs": 2, "l2": 1e-3, "seed": 3}
ON_A_GPU = os.environ.get("DML_HPC_TEST_DEVICE") == "cuda"


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    if not ON_A_GPU:
        monkeypatch.setattr("dml_hpc.cuda.Cuda", HostCuda)


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared"))))


def fit(comm, data, output, **changes):
    return train.run(comm, Console(rank=1), [data], output, **{**OPTIONS, **changes})


def rows(objective, count=300, features=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((count, features)) * 2 + 1
    score = X[:, 0] - X[:, 1] / 2 + rng.standard_normal(count)
    if objective in ("linear", "huber"):
        return X, score
    if objective == "poisson":
        return X, rng.poisson(np.exp(np.clip(score / 3, -3, 2)))
    if objective in ("softmax", "mlp"):
        return X, np.digitize(score, [-1, 1])
    return X, (score > 0).astype(float)


def make(comm, folder, X, y, name="data", weight=None):
    cuts = [len(y) // 3, 0, len(y) - len(y) // 3]
    return Path(on_root(comm, lambda: str(write_dataset(folder / name, X, y, cuts, weight=weight))))


def both(comm, folder, data, **settings):
    """Train on the CPU and on the device; return both results and the distance between the models."""
    host = fit(comm, data, folder / "host.h5", **settings)
    there = fit(comm, data, folder / "there.h5", device="cuda", **settings)
    comm.Barrier()
    expected, weights = (read_model(folder / f"{name}.h5").weights for name in ("host", "there"))
    assert (host["device"], there["device"]) == ("cpu", "cuda")
    assert there["weights_digest"] == read_model(folder / "there.h5").digest
    return host, there, np.linalg.norm(weights - expected) / np.linalg.norm(expected)


OBJECTIVES = ("linear", "huber", "logistic", "hinge", "squared-hinge", "poisson", "softmax", "mlp")


@pytest.mark.parametrize(("objective", "kind"), [
    *zip(OBJECTIVES, cycle(("csr", "dense")), strict=False), ("logistic", "dense"), ("softmax", "dense"),
    ("mlp", "csr")])
def test_sync_gives_the_model_of_the_cpu(comm, folder, objective, kind):
    X, y = rows(objective)
    if kind == "csr":
        X[np.random.default_rng(1).random(X.shape) < 0.5] = 0
        X = sparse(X)
    data = make(comm, folder, X, y)
    small = {"hidden": (5,)} if objective == "mlp" else {}
    _, there, error = both(comm, folder, data, objective=objective, algorithm="sync", step_size=0.02, exchange="dense",
                           overlap=False, **small)
    assert error <= 2e-4
    assert {split["rows_on_device"] for split in there["per_rank"]} == {True}


@pytest.mark.parametrize("algorithm", ["local", "average", "lbfgs"])
@pytest.mark.parametrize("objective", ["logistic", "softmax", "mlp"])
def test_every_algorithm_gives_the_model_of_the_cpu(comm, folder, algorithm, objective):
    data = make(comm, folder, *rows(objective))
    changes = {"lbfgs": {"batch_size": "full", "epochs": 8}, "average": {"batch_size": None, "step_size": 0.01},
               "local": {"tau": 2, "step_size": 0.02}}[algorithm]
    if objective == "mlp":
        changes = {**changes, "hidden": (4,)}
    *_, error = both(comm, folder, data, objective=objective, algorithm=algorithm, **changes)
    assert error <= 2e-3


@pytest.mark.parametrize("allreduce", ["hierarchical", "in slices", "ring", "tree", "mpi", "auto"])
@pytest.mark.parametrize("settings", [{}, {"optimizer": "adam", "average_momentum": True}], ids=str)
def test_models_are_averaged_on_the_way_to_their_places(comm, folder, monkeypatch, allreduce, settings):
    if allreduce == "in slices":
        monkeypatch.setattr("dml_hpc.comm.on_device.hierarchical.WHOLE_BYTES", 0)
    data = make(comm, folder, *rows("logistic", count=151, features=300))
    name = "hierarchical" if allreduce == "in slices" else allreduce
    host, there, error = both(comm, folder, data, algorithm="local", tau=3, batch_size=20, step_size=0.01,
                              allreduce=name, dtype="float64", **settings)
    assert error <= 1e-9
    assert there["loss"] == pytest.approx(host["loss"], rel=1e-9)
    assert len(set(comm.allgather(there["weights_digest"]))) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
def test_every_optimiser_gives_the_model_of_the_cpu(comm, folder, optimizer):
    data = make(comm, folder, *rows("logistic"))
    *_, error = both(comm, folder, data, algorithm="sync", optimizer=optimizer, step_size=0.01, l1=1e-3,
                     average_iterates=optimizer == "adam", clip_value=0.2 if optimizer == "sgd" else None)
    assert error <= 1e-3


@pytest.mark.parametrize("settings", [
    {"dtype": "float64"}, {"clip_norm": 0.05}, {"class_weight": "balanced"}, {"scale": False}, {"intercept": False},
    {"compression": "bfloat16"}, {"allreduce": "ring"}, {"rows_as": "float16"}, {"allreduce": "auto"},
    {"validation": True}], ids=str)
def test_what_can_be_asked_for_is_done_there_too(comm, folder, settings):
    X, y = rows("logistic")
    data = make(comm, folder, X, y)
    if settings.get("validation"):
        settings = {"validation": make(comm, folder, X[:50], y[:50], "held")}
    if "rows_as" in settings:  # float32, and what 16 bits can hold
        data = make(comm, folder, (X * 8).round().astype("f4") / 8, y, "rounded")
        host = fit(comm, data, folder / "host.h5", algorithm="sync")
        there = fit(comm, data, folder / "there.h5", algorithm="sync", device="cuda", **settings)
        assert there["loss"] == pytest.approx(host["loss"], rel=1e-5)
        return
    host, there, error = both(comm, folder, data, algorithm="sync", **settings)
    assert error <= (1e-2 if "compression" in settings else 1e-3)
    assert len(there["validation_losses"]) == len(host["validation_losses"])
    assert there["loss"] == pytest.approx(host["loss"], rel=1e-3 if "compression" in settings else 1e-4)


@pytest.mark.parametrize("objective", ["logistic", "softmax"])
@pytest.mark.parametrize("algorithm", ["sync", "lbfgs"])
def test_a_reproducible_model_has_the_bits_of_one_rank(comm, folder, objective, algorithm):
    data = make(comm, folder, *rows(objective))
    settings = {"objective": objective, "algorithm": algorithm, "reproducible": True, "device": "cuda",
                "batch_size": "full" if algorithm == "lbfgs" else 100}
    alone = comm.Split(comm.rank)
    first = fit(alone, data, folder / f"alone-{comm.rank}.h5", **settings)
    alone.Free()
    for allreduce in ("hierarchical", "ring"):
        together = fit(comm, data, folder / f"{allreduce}.h5", **{**settings, "allreduce": allreduce})
        assert together["weights_digest"] == first["weights_digest"]


def test_rows_that_do_not_fit_the_device_are_copied_step_by_step(comm, folder, monkeypatch):
    data = make(comm, folder, *rows("logistic"))
    kept = fit(comm, data, folder / "kept.h5", algorithm="sync", device="cuda", reproducible=True)
    monkeypatch.setattr(on_device, "PIECE_BYTES", 600)
    monkeypatch.setattr("dml_hpc.commands.devices.ROWS_SHARE", 0)
    copied = fit(comm, data, folder / "copied.h5", algorithm="sync", device="cuda", reproducible=True)
    assert {split["rows_on_device"] for split in copied["per_rank"]} == {False}
    assert copied["weights_digest"] == kept["weights_digest"]


@pytest.mark.parametrize("is_kept", [True, False])
def test_rows_that_are_too_long_for_one_block(comm, folder, monkeypatch, is_kept):
    X = np.zeros((60, 9000))
    X[np.arange(60), np.arange(60)] = 1
    X[[3, 17, 50]] = np.random.default_rng(2).standard_normal((3, 9000)) / 100
    data = make(comm, folder, sparse(X), np.arange(60) % 2)
    if not is_kept:
        monkeypatch.setattr("dml_hpc.commands.devices.ROWS_SHARE", 0)
    launched, find = [], long_rows.find
    monkeypatch.setattr(long_rows, "find", lambda *given: launched.append(find(*given)) or launched[-1])
    settings = {"algorithm": "sync", "exchange": "dense", "overlap": False, "batch_size": 20}
    *_, error = both(comm, folder, data, **settings)
    assert error <= 2e-4
    assert any(comm.allgather(any(launched)))
    alone = comm.Split(comm.rank)
    first = fit(alone, data, folder / f"alone-{comm.rank}.h5", device="cuda", reproducible=True, **settings)
    alone.Free()
    together = fit(comm, data, folder / "together.h5", device="cuda", reproducible=True, **settings)
    assert together["weights_digest"] == first["weights_digest"]


def test_more_ranks_than_rows(comm, folder):
    data = make(comm, folder, rows("logistic", 3)[0], np.array([0.0, 1.0, 1.0]))
    *_, error = both(comm, folder, data, algorithm="sync", batch_size="full")
    assert error <= 1e-4


@pytest.mark.parametrize("settings, message", [
    ({"exchange": "sparse"}, "--exchange sparse is for ranks that compute on the CPU"),
    ({"overlap": True}, "--overlap is for ranks that compute on the CPU"),
    ({"allreduce": "nccl", "device": "cpu"}, "--allreduce nccl sums vectors that lie on GPUs"),
    ({"allreduce": "nccl", "algorithm": "lbfgs", "batch_size": "full"}, "--allreduce nccl sums vectors that lie on"),
])
def test_what_does_not_go_with_a_device_is_one_clear_line(comm, folder, settings, message):
    data = make(comm, folder, *rows("logistic"))
    with pytest.raises(AgreedError, match=message) as caught:
        fit(comm, data, folder / "m.h5", **{"algorithm": "sync", "device": "cuda", **settings})
    assert caught.value.exit_code == 2
    assert not (folder / "m.h5").exists()


def test_rows_that_16_bits_cannot_hold_are_refused(comm, folder):
    X, y = rows("logistic")
    X[5, 2] = 1e5
    data = make(comm, folder, X.astype("f4"), y)
    with pytest.raises(AgreedError, match="--rows-as float16 holds numbers up to 65,504"):
        fit(comm, data, folder / "m.h5", algorithm="sync", device="cuda", rows_as="float16")
    fit(comm, data, folder / "m.h5", algorithm="sync", device="cuda", rows_as="bfloat16")


def test_a_diverging_run_says_so(comm, folder):
    data = make(comm, folder, *rows("linear"))
    with pytest.raises(AgreedError, match=r"the loss .* at step .*--step-size"):
        fit(comm, data, folder / "m.h5", objective="linear", algorithm="sync", device="cuda", step_size=1e3)
