"""What an algorithm says of itself between two steps is all that the later ones depend on, on any number of ranks."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
from data_support import write_dataset
from host_device import COMPILER, HostCuda

from dml_hpc.comm import REDUCERS
from dml_hpc.comm.clock import Clock
from dml_hpc.commands.algorithms import open_algorithm
from dml_hpc.commands.devices import open_rows
from dml_hpc.commands.learnable import open_learnable
from dml_hpc.commands.opening import open_data
from dml_hpc.commands.train_options import Options, settled
from dml_hpc.commands.training_run import Run, compile_kernels
from dml_hpc.console import Console
from dml_hpc.data.csr import sparse
from dml_hpc.mpi import on_root
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.scaling import identity, of_sparse, standardising
from dml_hpc.store.in_memory import InMemory
from dml_hpc.trainers.on_device import DeviceProblem
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace

pytestmark = pytest.mark.mpi
maths = pytest.mark.maths

ROWS, WIDE, HALF, ALL = 240, 2500, 7, 10
"""Rows; features that no reducer leaves to one rank or to all; steps before and after the state is taken, of 6 to the
epoch."""
OPTIONS = {"algorithm": "sync", "allreduce": "ring", "batch_size": 40, "steps": ALL, "dtype": "float64", "seed": 3,
           "exchange": "dense", "overlap": False}


@contextmanager
def opened(comm, data, kept=None, **changes):
    """Yield a new algorithm of these options for the block, which is to go on from a state where one is ``kept``."""
    given = Options(**{**OPTIONS, **changes})
    objective = open_objective(given.objective, **given.objective_settings)
    dataset = open_data(comm, [data], None, None, statistics=given.scale)
    label = dataset.manifest.label
    classes = objective.classes(label.name, label.values)
    options = settled(given, objective, dataset.kind == "csr", dataset.features, dataset.rows)
    layers, dtype = objective.layers(dataset.features, classes), np.dtype(options.dtype)
    figures = dataset.manifest.statistics
    if not options.scale:
        scaling = identity(layers, options.intercept, dtype)
    elif dataset.kind == "csr":
        scaling = of_sparse(layers, figures.minimum, figures.maximum, figures.numeric, options.intercept, dtype)
    else:
        scaling = standardising(layers, figures.mean, figures.deviation, figures.numeric, options.intercept, dtype)
    learnable = open_learnable(comm, dataset, objective, classes, dtype, None, True)
    problem = Problem(objective, layers, scaling, dataset.rows, options.l1, options.l2, dtype, None)
    moved = open_rows(comm, Console(rank=1), options.device)
    if moved is not None:
        problem = DeviceProblem(problem, moved)
    clock = Clock()
    run = Run(comm, Console(rank=1), dataset, problem, learnable, options, None, clock, Trace(clock), lambda: False,
              False, moved, kept)
    compile_kernels(run)
    with open_algorithm(run) as found:
        if kept is not None:
            found.algorithm.restore(kept)
        clock.start()
        yield found.algorithm


def kept_of(comm, algorithm):
    """Keep an algorithm's state, as it would come back from JSON, once it is seen to be whole."""
    state = algorithm.state()
    covered = {}
    for pieces in comm.allgather([(piece.name, piece.start, len(piece.array), piece.total) for piece in state.pieces]):
        for name, start, count, total in pieces:
            times = covered.setdefault(name, np.zeros(total, int))
            assert len(times) == total
            times[start:start + count] += 1
    assert all((times == 1).all() for times in covered.values())
    assert all(values == state.values for values in comm.allgather(state.values))
    kept = InMemory(comm, state)
    kept.values, kept.own = json.loads(json.dumps([kept.values, kept.own]))
    return kept


def go_on(algorithm, first, last):
    """Take these steps; return the model."""
    for step in range(first, last):
        algorithm.advance(step)
    return algorithm.parameters().copy()


def first_half(comm, data, half=HALF, stop=ALL, **options):
    """Return the state after some steps, and the model after all."""
    with opened(comm, data, **options) as algorithm:
        go_on(algorithm, 0, half)
        kept = kept_of(comm, algorithm)
        return kept, go_on(algorithm, half, stop)


def resumed(comm, data, kept, half=HALF, stop=ALL, **options):
    """Return the model after all steps, of which a new algorithm takes those after the state was kept."""
    with opened(comm, data, kept, **options) as algorithm:
        return go_on(algorithm, half, stop)


@contextmanager
def fewer(comm):
    """Yield all ranks but the last as one communicator, and the last one alone as another."""
    some = comm.Split(int(comm.size > 1 and comm.rank == comm.size - 1), comm.rank)
    yield some
    some.Free()


@contextmanager
def one(comm):
    """Yield this rank alone."""
    alone = comm.Split(comm.rank)
    yield alone
    alone.Free()


def near(got, expected, most=1e-7):
    return np.linalg.norm(got - expected) <= most * np.linalg.norm(expected)


def make(comm, folder, features=WIDE, thin=False, rows=ROWS, classes=2, dtype="float64"):
    def write():
        rng = np.random.default_rng(0)
        X = rng.standard_normal((rows, features)) + 0.5
        if thin:
            X[rng.random(X.shape) < 0.95] = 0
        y = X[:, :2].sum(axis=1) + rng.standard_normal(rows)
        y = np.digitize(y, np.quantile(y, np.arange(1, classes) / classes)).astype(float)
        cuts = [rows // 3, 0, rows - rows // 3]
        return str(write_dataset(folder / f"data-{features}-{thin}-{rows}", sparse(X) if thin else X, y, cuts, dtype))

    return Path(on_root(comm, write))


SETTINGS = {
    "sgd": {"l2": 1e-3},
    "plain": {"momentum": 0.0},
    "adam": {"optimizer": "adam", "clip_value": 0.5},
    "adagrad": {"optimizer": "adagrad", "l1": 1e-3, "l2": 1e-2},
    "averaged": {"optimizer": "nesterov", "average_iterates": True, "warmup": 1.0},
    "clipped": {"clip_norm": 0.05},
    "clipped-averaged": {"clip_norm": 0.05, "optimizer": "adamw", "l2": 1e-2, "average_iterates": True},
}


def reducers_for(name):
    """Return all for one of the settings, and one for each of the others."""
    place = list(SETTINGS).index(name)
    return REDUCERS if place == 0 else (REDUCERS[place % len(REDUCERS)],)


@maths
@pytest.mark.parametrize(("name", "thin"), [*((name, False) for name in SETTINGS), ("adagrad", True),
                                            ("averaged", True)])
def test_sums_in_fixed_point_go_on_to_the_same_bits_on_any_number_of_ranks(comm, folder, name, thin):
    data = make(comm, folder, thin=thin)
    settings = {"reproducible": True, "dtype": "float32" if thin else "float64", **SETTINGS[name]}
    with one(comm) as alone, fewer(comm) as some:
        with opened(alone, data, **settings) as algorithm:
            undisturbed = go_on(algorithm, 0, ALL)
        kept_alone, _ = first_half(alone, data, **settings)
        for reducer in reducers_for(name):
            kept, model = first_half(comm, data, allreduce=reducer, **settings)
            assert kept.values["unit"] != 2.0**-20  # it has been adapted
            assert np.array_equal(model, undisturbed), reducer
            for who, state in ((comm, kept), (some, kept), (comm, kept_alone)):
                assert np.array_equal(resumed(who, data, state, allreduce=reducer, **settings), undisturbed), reducer


@maths
@pytest.mark.parametrize(("name", "thin"), [*((name, False) for name in SETTINGS), ("adam", True)])
def test_sums_in_floats_go_on_to_the_same_bits_on_as_many_ranks(comm, folder, name, thin):
    data, settings = make(comm, folder, thin=thin), SETTINGS[name]
    with one(comm) as alone, fewer(comm) as some:
        kept_alone, expected = first_half(alone, data, **settings)
        for reducer in reducers_for(name):
            with opened(comm, data, allreduce=reducer, **settings) as algorithm:
                undisturbed = go_on(algorithm, 0, ALL)
            kept, model = first_half(comm, data, allreduce=reducer, **settings)
            assert np.array_equal(model, undisturbed) and near(model, expected), reducer
            assert np.array_equal(resumed(comm, data, kept, allreduce=reducer, **settings), undisturbed), reducer
            for who, state in ((some, kept), (comm, kept_alone)):
                assert near(resumed(who, data, state, allreduce=reducer, **settings), expected), reducer


@pytest.mark.parametrize("average_iterates", [False, True])
@pytest.mark.parametrize("features", [1, 700])
def test_a_model_that_one_rank_owns_or_every_rank(comm, folder, features, average_iterates):
    data = make(comm, folder, features)
    settings = {"average_iterates": average_iterates, "optimizer": "adam"}
    with fewer(comm) as some:
        for reducer in REDUCERS:
            kept, model = first_half(comm, data, allreduce=reducer, **settings)
            assert np.array_equal(resumed(comm, data, kept, allreduce=reducer, **settings), model)
            assert near(resumed(some, data, kept, allreduce=reducer, **settings), model)


def test_a_state_of_another_reducer_will_do(comm, folder):
    data = make(comm, folder)
    settings = {"optimizer": "adam", "average_iterates": True}
    kept, model = first_half(comm, data, allreduce="tree", **settings)
    for reducer in REDUCERS:
        assert near(resumed(comm, data, kept, allreduce=reducer, **settings), model)


def test_the_state_of_the_beginning_and_of_an_end(comm, folder):
    data = make(comm, folder, 6)
    for algorithm in ("sync", "local"):
        settings = {"algorithm": algorithm, "allreduce": "hierarchical", "average_iterates": True,
                    **({"exchange": None, "overlap": None, "tau": 1} if algorithm == "local" else {})}
        for half in (0, ALL):
            kept, model = first_half(comm, data, half, **settings)
            assert np.array_equal(resumed(comm, data, kept, half, **settings), model)
            with opened(comm, data, **settings) as again:  # what is given back is what was taken
                again.restore(kept)
                other = kept_of(comm, again)
            assert other.own == kept.own and set(other.names()) == set(kept.names())
            assert all(np.array_equal(other.vector(name), kept.vector(name)) for name in kept.names())


@maths
@pytest.mark.parametrize("more", [{"optimizer": "adagrad", "l1": 1e-3}, {"momentum": 0.0, "l2": 0.01, "l1": 1e-3},
                                  {"momentum": 0.0}])
def test_exchanging_what_rows_touch(comm, folder, more):
    data = make(comm, folder, 400, thin=True)
    settings = {"exchange": "sparse", **more}
    with fewer(comm) as some:
        with opened(comm, data, **settings) as algorithm:
            undisturbed = go_on(algorithm, 0, ALL)
        kept, model = first_half(comm, data, **settings)
        assert near(model, undisturbed, 1e-12)
        assert np.array_equal(resumed(comm, data, kept, **settings), model)
        assert near(resumed(some, data, kept, **settings), model)
        # Whichever form is the faster one when the run goes on.
        assert near(resumed(comm, data, kept, **{**settings, "exchange": "dense"}), model)
        dense, _ = first_half(comm, data, **{**settings, "exchange": "dense"})
        assert near(resumed(comm, data, dense, **settings), model)


@maths
@pytest.mark.parametrize("scale", [False, True])
def test_sums_under_way_while_ranks_compute(comm, folder, scale):
    data = make(comm, folder, 300, classes=3)
    settings = {"objective": "mlp", "hidden": (256, 260), "overlap": True, "scale": scale, "step_size": 1e-3,
                "l2": 1e-3, "optimizer": "adam"}
    with fewer(comm) as some:
        for reducer in ("ring", "mpi", "hierarchical"):
            changes = {**settings, "allreduce": reducer}
            with opened(comm, data, **changes) as algorithm:
                undisturbed = go_on(algorithm, 0, ALL)
            kept, model = first_half(comm, data, **changes)
            assert np.array_equal(model, undisturbed)
            assert np.array_equal(resumed(comm, data, kept, **changes), undisturbed)
            assert near(resumed(some, data, kept, **changes), model)
            assert near(resumed(comm, data, kept, **{**changes, "overlap": False}), model)
        plain, _ = first_half(comm, data, **{**settings, "overlap": False})
        assert near(resumed(comm, data, plain, **settings), model)


LOCAL = {"algorithm": "local", "tau": 2, "exchange": None, "overlap": None, "steps": 2 * ALL}


@maths
@pytest.mark.parametrize("more", [{}, {"optimizer": "adam", "average_momentum": True}, {"average_iterates": True},
                                  {"optimizer": "adagrad", "l1": 1e-3, "clip_norm": 0.1}])
def test_local_steps_go_on_to_the_same_bits_on_as_many_ranks(comm, folder, more):
    data = make(comm, folder)
    for reducer in ("ring", "hierarchical"):
        settings = {**LOCAL, **more, "allreduce": reducer}
        with opened(comm, data, **settings) as algorithm:
            undisturbed = go_on(algorithm, 0, ALL)
        kept, model = first_half(comm, data, **settings)
        assert np.array_equal(model, undisturbed)
        assert np.array_equal(resumed(comm, data, kept, **settings), undisturbed)


def test_on_another_number_of_ranks_local_takes_the_mean_of_the_states(comm, folder):
    """Of four ranks, two of three rows have none, and nothing to bring."""
    for rows in (ROWS, 3):
        data = make(comm, folder, 6, rows=rows)
        settings = {**LOCAL, "optimizer": "adam", "average_iterates": True}
        with one(comm) as alone:
            kept, _ = first_half(comm, data, **settings)
            learnt = [rank for rank in range(comm.size) if kept.own[rank]["number"]]
            assert len(learnt) == min(comm.size, rows)
            with opened(alone, data, **settings) as algorithm:
                algorithm.restore(kept)
                mine = kept_of(alone, algorithm)
                model = go_on(algorithm, HALF, ALL)
        assert mine.own == [{"number": 2 * HALF, "batches": 2 * HALF}] and np.isfinite(model).all()
        assert np.array_equal(mine.vector("weights"), kept.vector("weights"))
        for name in ("state0", "state1", "average"):
            mean = np.mean([kept.vector(f"{name}/{rank}") for rank in learnt], axis=0)
            np.testing.assert_allclose(mine.vector(f"{name}/0"), mean, rtol=1e-14)


def test_local_steps_averaged_every_time_go_on_as_synchronous_ones_on_any_number_of_ranks(comm, folder):
    data = make(comm, folder, 6)
    settings = {**LOCAL, "tau": 1, "steps": ALL, "average_momentum": True, "l2": 1e-3}
    with one(comm) as alone, fewer(comm) as some, opened(alone, data, l2=1e-3) as algorithm:
        expected = go_on(algorithm, 0, ALL)
        kept, _ = first_half(comm, data, **settings)
        for who in (comm, some, alone):
            assert near(resumed(who, data, kept, **settings), expected, 1e-9)


@pytest.mark.parametrize("reproducible", [False, True])
def test_more_ranks_than_rows(comm, folder, reproducible):
    data = make(comm, folder, 4, rows=2)
    settings = {"batch_size": "full", "optimizer": "adam", "reproducible": reproducible}
    with fewer(comm) as some:
        kept, model = first_half(comm, data, **settings)
        assert np.array_equal(resumed(comm, data, kept, **settings), model)
        assert near(resumed(some, data, kept, **settings), model, 0 if reproducible else 1e-7)


@maths
@pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")
@pytest.mark.parametrize("name", ["adam", "averaged", "clipped"])
def test_vectors_on_a_device(comm, folder, monkeypatch, name):
    if os.environ.get("DML_HPC_TEST_DEVICE") != "cuda":
        monkeypatch.setattr("dml_hpc.cuda.Cuda", HostCuda)
    data = make(comm, folder, dtype="float32")
    settings = {"dtype": "float32", "device": "cuda", **SETTINGS[name]}
    with fewer(comm) as some:
        for reducer in ("hierarchical", "ring", "tree"):
            exact = {**settings, "allreduce": reducer, "reproducible": True}
            kept, model = first_half(comm, data, **exact)
            for who in (comm, some):
                assert np.array_equal(resumed(who, data, kept, **exact), model), reducer
            floats = {**settings, "allreduce": reducer}
            kept, model = first_half(comm, data, **floats)
            assert near(resumed(comm, data, kept, **floats), model, 1e-4), reducer
            assert near(resumed(comm, data, kept, **{**floats, "device": "cpu"}), model, 1e-4), reducer
        kept, model = first_half(comm, data, **{**settings, **LOCAL})
        assert near(resumed(comm, data, kept, **{**settings, **LOCAL}), model, 1e-4)
