"""Steps whose work is captured and queued again are the steps that they were, to the bit."""

from __future__ import annotations

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
from dml_hpc.data.csr import sparse
from dml_hpc.mpi import on_root
from dml_hpc.optim import OPTIMISERS
from dml_hpc.trainers import captured, sync

pytestmark = [pytest.mark.mpi, pytest.mark.maths,
              pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")]

OPTIONS = {"objective": "logistic", "algorithm": "sync", "allreduce": "hierarchical", "batch_size": 100, "epochs": 4,
           "l2": 1e-3, "l1": 1e-4, "seed": 3, "step_size": 0.02, "schedule": "cosine", "device": "cuda"}


@pytest.fixture(autouse=True)
def devices(monkeypatch):
    """The devices that this rank has opened."""
    opened = []

    class Counting(HostCuda):
        def __init__(self, node_rank):
            super().__init__(node_rank)
            opened.append(self)

    monkeypatch.setattr("dml_hpc.cuda.Cuda", Counting)
    return opened


@pytest.fixture
def folder(comm, tmp_path_factory):
    """One folder for all ranks."""
    return Path(on_root(comm, lambda: str(tmp_path_factory.mktemp("shared"))))


def data(comm, folder, kind="dense", weighted=False, rows=330, features=6):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, features)) * 2 + 1
    y = (X[:, 0] - X[:, 1] / 2 + rng.standard_normal(rows) > 0).astype(float)
    if kind == "csr":
        X[rng.random(X.shape) < 0.5] = 0
        X = sparse(X)
    weight = rng.random(rows) + 0.5 if weighted else None
    return Path(on_root(comm, lambda: str(write_dataset(folder / "data", X, y, [110, 0, rows - 110], weight=weight))))


def in_three_ways(comm, folder, where, monkeypatch, devices, **settings):
    """Train with work captured, with the same work never captured, and as where nothing can be captured.

    Returns how many times captured work was queued, over all ranks, and of how many steps, when it was.
    """
    found = []
    for way in ("captured", "as it is", "plain"):
        with monkeypatch.context() as patch:
            if way == "as it is":
                patch.setattr(captured, "MOST_GRAPHS", 0)
            if way == "plain":
                patch.setattr(sync, "captured_gradient", lambda *_: None)
                patch.setattr(sync, "Captured", lambda _: None)
            found.append(train.run(comm, Console(rank=1), [where], folder / f"{way}.h5",
                                   **{**OPTIONS, **settings}))
    assert len({result["weights_digest"] for result in found}) == 1
    assert len({result["loss"] for result in found}) == 1
    replayed = [comm.allreduce(device.replayed) for device in devices]
    assert replayed[1:] == [0, 0]
    return replayed[0], found[0]["steps"]


@pytest.mark.parametrize(("optimizer", "batch_size"), [
    *zip(OPTIMISERS, cycle((100, "full")), strict=False), (OPTIMISERS[0], "full")])
def test_every_optimiser_takes_the_same_steps(comm, folder, monkeypatch, devices, optimizer, batch_size):
    where = data(comm, folder)
    epochs = 8 if batch_size == "full" else 4
    replayed, steps = in_three_ways(comm, folder, where, monkeypatch, devices, optimizer=optimizer, epochs=epochs,
                                    batch_size=batch_size, average_iterates=optimizer in ("sgd", "adam"))
    assert replayed >= steps  # a step queues two graphs, or one while the other is new


@pytest.mark.parametrize(("kind", "settings", "weighted"), [
    ("dense", {"shuffle": False}, False), ("csr", {"shuffle": False}, True), ("dense", {"batch_size": "full"}, True),
    ("csr", {"batch_size": "full"}, False), ("dense", {}, True), ("csr", {}, False)], ids=str)
def test_whatever_rows_there_are(comm, folder, monkeypatch, devices, kind, settings, weighted):
    where = data(comm, folder, kind, weighted)
    replayed, steps = in_three_ways(comm, folder, where, monkeypatch, devices, exchange="dense",
                                    **{"epochs": 8, **settings})
    assert replayed >= steps


@pytest.mark.parametrize("settings", [
    {"allreduce": "ring"}, {"allreduce": "tree"}, {"clip_norm": 0.05}, {"dtype": "float64"}, {"scale": False},
    {"compression": "bfloat16"}, {"rows_as": "bfloat16", "scale": False}], ids=str)
def test_whatever_is_asked_for(comm, folder, monkeypatch, devices, settings):
    where = data(comm, folder)
    if "rows_as" in settings:
        where = Path(on_root(comm, lambda: str(write_dataset(
            folder / "narrow", np.random.default_rng(1).standard_normal((330, 6)).astype("f4"),
            np.arange(330) % 2, [330]))))
    assert in_three_ways(comm, folder, where, monkeypatch, devices, **settings)[0] > 0


@pytest.mark.parametrize("settings", [{"objective": "softmax"}, {"reproducible": True}], ids=str)
def test_gradients_that_cannot_be_captured_are_queued_as_they_are(comm, folder, monkeypatch, devices, settings):
    where = data(comm, folder)
    replayed, _ = in_three_ways(comm, folder, where, monkeypatch, devices, **settings)
    assert (replayed > 0) == ("objective" in settings)  # their update is captured yet


def test_rows_that_are_not_kept_are_not_captured(comm, folder, monkeypatch, devices):
    where = data(comm, folder)
    monkeypatch.setattr("dml_hpc.commands.devices.ROWS_SHARE", 0)
    replayed, steps = in_three_ways(comm, folder, where, monkeypatch, devices)
    assert 0 < replayed < comm.size * steps  # updates alone


def test_more_batches_than_graphs(comm, folder, monkeypatch, devices):
    where = data(comm, folder)
    monkeypatch.setattr(captured, "MOST_GRAPHS", 3)
    replayed, _ = in_three_ways(comm, folder, where, monkeypatch, devices, batch_size=20, shuffle=False)
    assert replayed > 0


def test_a_step_is_a_few_launches(comm, folder, monkeypatch, devices):
    """Of a full batch, after the first steps, nothing is launched one by one but what a reducer does."""
    where = data(comm, folder)
    launch, launches = HostCuda.launch, []

    def count(self, file, kernel, *arguments, **named):
        if self._captured is None:
            launches.append(kernel)
        launch(self, file, kernel, *arguments, **named)

    monkeypatch.setattr(HostCuda, "launch", count)
    counts = []
    for steps in (10, 30):
        launches.clear()
        train.run(comm, Console(rank=1), [where], folder / f"{steps}.h5", **{
            **OPTIONS, "batch_size": "full", "epochs": None, "steps": steps})
        counts.append(len(launches))
    assert counts[0] == counts[1]


def test_a_rank_whose_time_is_over_says_so(comm, folder, monkeypatch, devices):
    """Though what is captured says nothing of it."""
    where, advance = data(comm, folder), sync.Sync.advance

    def late(self, step):
        self.time_over = lambda: step == 6 and comm.rank == comm.size - 1
        return advance(self, step)

    monkeypatch.setattr(sync.Sync, "advance", late)
    found = train.run(comm, Console(rank=1), [where], folder / "m.h5", **{
        **OPTIONS, "batch_size": "full", "epochs": 20})
    assert found["steps"] == 7
    assert devices[0].replayed > 0
