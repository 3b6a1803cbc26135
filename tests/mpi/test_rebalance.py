"""A rank that is slow is named; with --rebalance it gets fewer rows, and the model stays what it was."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from data_support import write_dataset
from host_device import COMPILER, HostCuda

from dml_hpc.commands.fitting import fit
from dml_hpc.commands.keeping import Keeping
from dml_hpc.commands.train_options import Options
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.data.streaming import Streamed
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import on_root
from dml_hpc.store import checkpoint, pulse
from dml_hpc.trainers import stragglers
from dml_hpc.trainers.problem import Problem

pytestmark = pytest.mark.mpi
maths = pytest.mark.maths

ROWS, FEATURES = 800, 6
OPTIONS = {"algorithm": "sync", "allreduce": "ring", "batch_size": 200, "epochs": 12, "seed": 3, "exchange": "dense",
           "overlap": False}
FORMS = {"sync": {}, "full": {"batch_size": "full", "epochs": 40}, "streamed": {}, "unshuffled": {"shuffle": False},
         "lbfgs": {"algorithm": "lbfgs", "batch_size": "full", "epochs": 30, "tolerance": 0.0, "exchange": None,
                   "overlap": None}}


class Lines(Console):
    """Keeps what is said on rank 0."""

    def __init__(self, rank):
        super().__init__(rank)
        self.lines = []

    def say(self, line=""):
        self.lines += [line] * self.speaks


def make(comm, folder, thin=False):
    """Rows of as many ones as features, or sparse ones, of which the first half has far more entries."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((ROWS, 40 if thin else FEATURES)) + 0.5
    if thin:
        X[rng.random(X.shape) < np.where(np.arange(ROWS) < ROWS // 2, 0.5, 0.95)[:, None]] = 0
    y = (X[:, 0] - X[:, 1] + rng.standard_normal(ROWS) > 0.5).astype(float)
    return on_root(comm, lambda: write_dataset(folder / f"data-{thin}", sparse(X) if thin else X, y, [300, 500]))


def train(comm, data, form="sync", keeping=None, **changes):
    """Return what came of a run, and what was said."""
    console = Lines(comm.rank)
    return fit(comm, console, [data], Options(**{**OPTIONS, **FORMS[form], **changes}), keeping=keeping), console.lines


@contextmanager
def fewer(comm):
    """Yield one rank less than there are, if there are several; the last one gets one of size 0."""
    part = comm.Split(int(comm.size > 1 and comm.rank == comm.size - 1))
    part_of_last = comm.size > 1 and comm.rank == comm.size - 1
    yield SimpleNamespace(size=0) if part_of_last else part
    part.Free()


@pytest.fixture
def pretended(monkeypatch):
    """Times that are pretended: a rank is busy for so long for its work, every other step ``turns``; a measurement is a
    step."""
    def pretend(comm, slowness, turns=None):
        def now(pace):
            work = pace._algorithm.work / (ROWS / comm.size) * 0.3
            calls = pace.calls = getattr(pace, "calls", 0) + 1
            slow = (turns if turns and calls % 2 else slowness)[comm.rank]
            before = getattr(pace, "told", (0.0, 0.0))
            pace.told = before[0] + (work - before[1]) * slow, work
            return pace.told[0], work, float(calls)

        monkeypatch.setattr(pulse, "PULSE_S", 0.0)
        monkeypatch.setattr(stragglers.Pace, "_now", now)
        monkeypatch.setattr(stragglers, "LEAST_WAIT", 0.0)
        monkeypatch.setattr("dml_hpc.trainers.rebalancing.LEAST_GAIN", 0.01)
        monkeypatch.setattr("dml_hpc.trainers.rebalancing.MOVING_SHARE", np.inf)

    return pretend


def last_slow(comm, ratio=2.0):
    return [1.0] * (comm.size - 1) + [ratio]


def streamed(monkeypatch, form):
    if form == "streamed":
        monkeypatch.setattr("dml_hpc.commands.training_run.open_reader",
                            lambda *given: Streamed(*given[:-1], most_bytes=1 << 30))


@maths
@pytest.mark.parametrize("reproducible", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_rows_leave_a_slow_rank_and_the_model_stays(comm, folder, pretended, monkeypatch, form, reproducible):
    data = make(comm, folder)
    streamed(monkeypatch, form)
    undisturbed, _ = train(comm, data, form, reproducible=reproducible)
    pretended(comm, last_slow(comm))
    still, said = train(comm, data, form, reproducible=reproducible)
    moved, told = train(comm, data, form, reproducible=reproducible, rebalance=True)
    assert undisturbed.result["rebalanced"] == still.result["rebalanced"] == []
    assert still.result["weights_digest"] == undisturbed.result["weights_digest"]
    if reproducible:
        assert moved.result["weights_digest"] == undisturbed.result["weights_digest"]
    np.testing.assert_allclose(moved.model.weights, undisturbed.model.weights, rtol=1e-3, atol=2e-5)
    assert moved.result["loss"] == pytest.approx(undisturbed.result["loss"], rel=1e-4)
    assert (moved.result["per_rank"][0]["rows_are"] == "streamed") == (form == "streamed")
    if comm.size == 1:
        assert moved.result["rebalanced"] == moved.result["stragglers"] == []
        return
    for result in (still.result, moved.result):
        (found,) = result["stragglers"]
        assert found["rank"] == comm.size - 1 and found["until_step"] is None and found["host"] and found["cores"]
        assert found["ratio"] == pytest.approx(2, rel=0.05) and len(result["busy_per_rank"]) == comm.size
    (line,) = [line for line in said if line.startswith("slow")] or [None] * (comm.rank > 0)
    assert line is None or (f"rank {comm.size - 1} (" in line and "2 times" in line and "--rebalance" in line)
    assert comm.rank > 0 or any(line.startswith("moved") for line in told)
    shares = moved.result["rebalanced"][-1]["shares"]
    rows = [one["rows"] for one in moved.result["per_rank"]]
    assert sum(rows) == ROWS and sum(shares) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(rows, np.array(shares) * ROWS, rtol=0.02, atol=8)
    whole = comm.size - 1 + 1 / 2
    np.testing.assert_allclose(shares, [*[1 / whole] * (comm.size - 1), 0.5 / whole], atol=0.02)
    assert len(moved.result["rebalanced"]) <= 3  # they settle


@maths
def test_local_steps_are_taken_on_the_rows_that_ranks_have_by_then(comm, folder, pretended):
    data = make(comm, folder)
    options = {"algorithm": "local", "tau": 1, "exchange": None, "overlap": None, "momentum": 0.0, "dtype": "float64"}
    undisturbed, _ = train(comm, data, **options)
    pretended(comm, last_slow(comm))
    moved, _ = train(comm, data, **options, rebalance=True)
    assert len(moved.result["rebalanced"]) >= (comm.size > 1)
    np.testing.assert_allclose(moved.model.weights, undisturbed.model.weights, rtol=1e-9)  # as tau is 1
    moved, _ = train(comm, data, **{**options, "tau": 3}, rebalance=True)
    assert np.isfinite(moved.model.weights).all() and moved.result["examples"] == 12 * ROWS


@maths
@pytest.mark.parametrize("form", ["sync", "lbfgs"])
def test_sparse_rows_are_moved_by_their_entries(comm, folder, pretended, form):
    data = make(comm, folder, thin=True)
    undisturbed, _ = train(comm, data, form, reproducible=True)
    assert undisturbed.result["stragglers"] == []
    pretended(comm, [1.0] * comm.size)
    same, _ = train(comm, data, form, reproducible=True, rebalance=True)
    assert same.result["stragglers"] == same.result["rebalanced"] == []  # though ranks have unequal numbers of rows
    pretended(comm, last_slow(comm))
    moved, _ = train(comm, data, form, reproducible=True, rebalance=True)
    assert moved.result["weights_digest"] == undisturbed.result["weights_digest"]
    assert len(moved.result["rebalanced"]) >= (comm.size > 1)


@maths
def test_a_run_that_is_resumed_begins_with_equal_shares_and_ends_with_the_same_bits(comm, folder, pretended):
    data = make(comm, folder)
    undisturbed, _ = train(comm, data, reproducible=True)
    pretended(comm, last_slow(comm))
    on_root(comm, lambda: checkpoint.prepare(folder / "checkpoints"))
    asked = iter([0] * 36)
    stopped = Keeping(folder / "checkpoints", resume=True, asked=lambda: next(asked, signal.SIGTERM))
    with pytest.raises(AgreedError, match="after step"):
        train(comm, data, reproducible=True, rebalance=True, keeping=stopped)
    with fewer(comm) as some:
        if some.size:
            resumed, _ = train(some, data, reproducible=True, rebalance=False,
                               keeping=Keeping(folder / "checkpoints", resume=True))
            assert resumed.result["resumed_from"] > 30 and resumed.result["rebalanced"] == []
            assert resumed.result["weights_digest"] == undisturbed.result["weights_digest"]


@maths
def test_what_rows_touch_is_exchanged_by_those_who_have_them(comm, folder, pretended):
    data = make(comm, folder, thin=True)
    options = {"exchange": "sparse", "momentum": 0.0, "dtype": "float64"}
    undisturbed, _ = train(comm, data, **options)
    pretended(comm, last_slow(comm))
    moved, _ = train(comm, data, **options, rebalance=True)
    assert moved.result["exchange_used"] == "sparse" and len(moved.result["rebalanced"]) >= (comm.size > 1)
    np.testing.assert_allclose(moved.model.weights, undisturbed.model.weights, rtol=1e-8, atol=1e-12)


@maths
@pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_on_a_device_move_too(comm, folder, pretended, monkeypatch, shuffle):
    if os.environ.get("DML_HPC_TEST_DEVICE") != "cuda":
        monkeypatch.setattr("dml_hpc.cuda.Cuda", HostCuda)
    data = make(comm, folder)
    options = {"device": "cuda", "exchange": None, "overlap": None, "shuffle": shuffle}
    undisturbed, _ = train(comm, data, **options)
    exact, _ = train(comm, data, **options, reproducible=True)
    pretended(comm, last_slow(comm))
    moved, _ = train(comm, data, **options, rebalance=True)
    np.testing.assert_allclose(moved.model.weights, undisturbed.model.weights, rtol=1e-3, atol=2e-5)
    same, _ = train(comm, data, **options, rebalance=True, reproducible=True)
    assert same.result["weights_digest"] == exact.result["weights_digest"]
    for run in (moved, same):
        assert len(run.result["rebalanced"]) >= (comm.size > 1)
        assert all(one["rows_on_device"] for one in run.result["per_rank"])


def test_who_is_slow_now_and_then_keeps_its_rows(comm, folder, pretended):
    data = make(comm, folder)
    pretended(comm, [1.0] * comm.size, turns=[1.0] * (comm.size - 1) + [2.5])
    found, _ = train(comm, data, rebalance=True)
    assert found.result["rebalanced"] == found.result["stragglers"] == []


def test_who_has_no_rows_moves_none(comm, folder, pretended):
    data = on_root(comm, lambda: write_dataset(folder / "few", np.arange(6.0).reshape(3, 2), np.array([0, 1, 1]), [3]))
    pretended(comm, last_slow(comm))
    for form in ("sync", "lbfgs"):
        few, _ = train(comm, data, form, rebalance=True, batch_size="full")
        assert comm.size < 4 or few.result["rebalanced"] == []
        assert sum(one["rows"] for one in few.result["per_rank"]) == 3


def test_rows_that_a_rank_cannot_take_stay_where_they_are(comm, folder, pretended, monkeypatch):
    data = make(comm, folder)
    expected, _ = train(comm, data, reproducible=True)
    from dml_hpc.commands import training_run

    opened = []

    def refuse(dataset, batches, *_):
        opened.append(batches.share)
        if comm.rank == 0 and batches.share > 1 / comm.size + 0.01:
            raise UserError("there is no room")

    monkeypatch.setattr(training_run, "most_row_bytes", refuse)
    pretended(comm, last_slow(comm))
    stayed, said = train(comm, data, reproducible=True, rebalance=True)
    assert stayed.result["rebalanced"] == [] and len(opened) == (3 if comm.size > 1 else 1)
    assert stayed.result["weights_digest"] == expected.result["weights_digest"]
    assert comm.rank > 0 or comm.size == 1 or any("rank 0 cannot take others (there is no room)" in line
                                                  for line in said)


@maths
def test_under_a_memory_limit_rows_have_the_room_that_they_had(comm, folder, pretended, room):
    data = make(comm, folder)
    limit = room(256)
    expected, _ = train(comm, data, reproducible=True, memory_limit=limit)
    pretended(comm, last_slow(comm))
    moved, _ = train(comm, data, reproducible=True, memory_limit=limit, rebalance=True)
    assert moved.result["weights_digest"] == expected.result["weights_digest"]
    assert len(moved.result["rebalanced"]) >= (comm.size > 1)


def test_machines_that_learn_alone_are_watched_too(comm, folder, pretended):
    data = make(comm, folder)
    options = {"algorithm": "average", "exchange": None, "overlap": None, "batch_size": None, "rounds": 20,
               "epochs": 20}
    undisturbed, _ = train(comm, data, **options)
    pretended(comm, last_slow(comm))
    watched, said = train(comm, data, **options)
    assert watched.result["weights_digest"] == undisturbed.result["weights_digest"]
    assert [one["rank"] for one in watched.result["stragglers"]] == [comm.size - 1] * (comm.size > 1)
    assert not any("--rebalance" in line for line in said)
    with pytest.raises(AgreedError, match="--rebalance moves rows between ranks"):
        train(comm, data, **options, rebalance=True)


@contextmanager
def slowed(seconds_a_row):
    """Have this rank take longer for its rows."""
    plain, fixed = Problem.loss_and_gradient, Problem.fixed_point_gradient

    def wait(parts):
        time.sleep(seconds_a_row * sum(len(part.rows) for part in parts))  # as long as a slow rank would compute
        return parts

    Problem.loss_and_gradient = lambda self, parts, *rest: plain(self, wait(list(parts)), *rest)
    Problem.fixed_point_gradient = lambda self, parts, *rest: fixed(self, wait(list(parts)), *rest)
    try:
        yield
    finally:
        Problem.loss_and_gradient, Problem.fixed_point_gradient = plain, fixed


def test_a_rank_that_does_take_longer_is_found_by_its_times(comm, folder, monkeypatch):
    data = make(comm, folder)
    expected, _ = train(comm, data, reproducible=True, epochs=60)
    monkeypatch.setattr(pulse, "PULSE_S", 0.03)
    monkeypatch.setattr(stragglers, "MEASURED_S", 0.03)
    with slowed(4e-4 / 4 * comm.size if comm.rank == comm.size - 1 else 4e-5):
        found, _ = train(comm, data, reproducible=True, rebalance=True, epochs=60)
    assert found.result["weights_digest"] == expected.result["weights_digest"]
    if comm.size > 1:
        assert comm.size - 1 in [one["rank"] for one in found.result["stragglers"]]
        busy = found.result["busy_per_rank"]
        assert busy[-1] == max(busy)
        rows = [one["rows"] for one in found.result["per_rank"]]
        assert found.result["rebalanced"] and rows[-1] == min(rows) and rows[-1] < 0.7 * ROWS / comm.size
