"""L-BFGS goes on between any two iterations, and averaging in the middle of a round, as if nothing had happened."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
from test_state import COMPILER, HostCuda, fewer, first_half, go_on, kept_of, make, near, one, opened, resumed

from dml_hpc.comm import REDUCERS
from dml_hpc.data.streaming import Streamed
from dml_hpc.errors import AgreedError

pytestmark = pytest.mark.mpi
maths = pytest.mark.maths

LBFGS = {"algorithm": "lbfgs", "batch_size": "full", "exchange": None, "overlap": None, "steps": None,
         "tolerance": -1.0}
PENALTIES = {"l2": {"l2": 1e-3}, "l1": {"l1": 1e-3, "l2": 1e-4}, "huber": {"objective": "huber"}}


@maths
@pytest.mark.parametrize("thin", [False, True], ids=["dense", "csr"])
@pytest.mark.parametrize("name", PENALTIES)
def test_lbfgs_in_fixed_point_goes_on_to_the_same_bits_on_any_number_of_ranks(comm, folder, name, thin):
    data = make(comm, folder, 300, thin=thin)
    settings = {**LBFGS, **PENALTIES[name], "reproducible": True}
    with one(comm) as alone, fewer(comm) as some:
        with opened(alone, data, **settings) as algorithm:
            undisturbed = go_on(algorithm, 0, 16)
        for half in (1, 13):  # the history is full after ten
            kept_alone, _ = first_half(alone, data, half, 16, **settings)
            for reducer in ("ring", "hierarchical"):
                kept, model = first_half(comm, data, half, 16, allreduce=reducer, **settings)
                assert kept.values["gradient"]["unit"] != 2.0**-20  # it has been adapted
                assert np.array_equal(model, undisturbed)
                for who, state in ((comm, kept), (some, kept), (alone, kept), (comm, kept_alone)):
                    found = resumed(who, data, state, half, 16, allreduce=reducer, **settings)
                    assert np.array_equal(found, undisturbed)


@maths
@pytest.mark.parametrize("features", [1, 300])
@pytest.mark.parametrize("name", PENALTIES)
def test_lbfgs_in_floats_goes_on_to_the_same_bits_on_as_many_ranks(comm, folder, name, features):
    data, settings = make(comm, folder, features), {**LBFGS, **PENALTIES[name]}
    with one(comm) as alone, fewer(comm) as some:
        kept_alone, expected = first_half(alone, data, 3, 6, **settings)
        for reducer in REDUCERS:
            with opened(comm, data, allreduce=reducer, **settings) as algorithm:
                undisturbed = go_on(algorithm, 0, 6)
            kept, model = first_half(comm, data, 3, 6, allreduce=reducer, **settings)
            assert np.array_equal(model, undisturbed) and near(model, expected, 1e-6), reducer
            assert np.array_equal(resumed(comm, data, kept, 3, 6, allreduce=reducer, **settings), undisturbed), reducer
            for who, state in ((some, kept), (comm, kept_alone)):
                assert near(resumed(who, data, state, 3, 6, allreduce=reducer, **settings), expected, 1e-6), reducer


def test_an_end_of_lbfgs_stays_one(comm, folder):
    data, settings = make(comm, folder, 6), {**LBFGS, "l2": 1e-2, "tolerance": -1.0}
    with fewer(comm) as some:
        with opened(comm, data, **settings) as algorithm:
            step = 0
            while (done := algorithm.advance(step).done) is None:
                step += 1
            model, kept = algorithm.parameters().copy(), kept_of(comm, algorithm)
        for who in (comm, some):
            with opened(who, data, kept, **settings) as algorithm:
                met = algorithm.advance(step + 1)
                assert (met.done, met.rows) == (done, 0)
                assert np.array_equal(algorithm.parameters(), model)


def test_lbfgs_that_has_settled_goes_on_where_less_is_tolerated(comm, folder):
    data, settings = make(comm, folder, 6), {**LBFGS, "l2": 1e-2}
    with opened(comm, data, **{**settings, "tolerance": 1e-3}) as algorithm:
        step = 0
        while algorithm.advance(step).done is None:
            step += 1
        kept = kept_of(comm, algorithm)
    with opened(comm, data, kept, **{**settings, "tolerance": 0.0}) as algorithm:
        assert algorithm.advance(step + 1).rows > 0


class Interruption(Exception):  # noqa: N818 -- no error
    """Raised on all ranks together."""


@dataclass
class Journey:
    """What is known of a run once it has come to its end."""

    model: np.ndarray
    losses: list[float]
    rows: list[int]
    examples: int
    spread: object

    def same_as(self, other, exact):
        mine, theirs = ([run.model, np.array(run.losses)] + ([] if run.spread is None else [
            run.spread.first, run.spread.half, np.array([run.spread.variance])]) for run in (self, other))
        equal = np.array_equal if exact else lambda a, b: near(a, b, 1e-6)
        return (len(mine) == len(theirs) and all(map(equal, mine, theirs)) and self.examples == other.examples
                and self.rows[len(self.rows) - 1:] == other.rows[len(other.rows) - 1:])


def travel(comm, data, legs=(), hooked=True, **settings):
    """Take a run to its end on ``comm``.

    Before that come ``legs``: a communicator, and after how many pauses the run is broken off there.
    """
    step, kept = 0, None
    for who, pauses in (*legs, (comm, None)):
        step, kept = who.bcast((step, kept))  # where ranks were parted they have come to different places
        with opened(who, data, kept, **settings) as algorithm:
            paused, rows = [], []

            def pause(chunks, who=who, pauses=pauses, algorithm=algorithm, paused=paused):
                assert who.allgather(chunks) == [chunks] * who.size
                paused.append(chunks)
                if len(paused) == pauses:
                    raise Interruption(kept_of(who, algorithm))
                return 1 + len(paused) % 3

            if hooked:
                algorithm.pause = pause
            try:
                while step < settings.get("rounds", 1):
                    rows.append(algorithm.advance(step).rows)
                    step += 1
            except Interruption as interrupted:
                kept = interrupted.args[0]
                assert kept.values["in_round"]
                continue
            assert pauses is None
            return Journey(algorithm.parameters().copy(), algorithm.epoch_losses(), rows, algorithm.most_examples(),
                           algorithm.spread)
    raise AssertionError


AVERAGE = {"algorithm": "average", "batch_size": 1, "exchange": None, "overlap": None, "steps": None, "epochs": 11,
           "step_size": 0.01, "machines": 5}
ROUNDS = {
    "one": {},
    "dense-penalties": {"l1": 1e-4, "l2": 1e-2, "objective": "hinge"},
    "csr-penalties": {"thin": True, "l1": 1e-4, "l2": 1e-2},
    "csr-l2": {"thin": True, "l2": 1e-2, "objective": "linear"},
    "softmax": {"thin": True, "objective": "softmax", "l1": 1e-4, "l2": 1e-3, "classes": 3},
    "rounds": {"rounds": 3, "weighting": "rows"},
    "csr-rounds": {"thin": True, "rounds": 2, "l2": 1e-2},
    "replicas": {"replicas": True, "epochs": 9},
    "batches": {"batch_size": 16, "rounds": 2, "l2": 1e-3},
    "mlp": {"objective": "mlp", "hidden": (4,), "classes": 3},
    "few": {"machines": 2, "rounds": 2, "weighting": "rows"},
    "alone": {"machines": 1, "rounds": 2},
    "float32": {"dtype": "float32", "thin": True, "l1": 1e-4, "l2": 1e-2},
}


def case(comm, folder, name):
    settings = {**AVERAGE, **ROUNDS[name]}
    kind = {key: settings.pop(key) for key in ("thin", "classes") if key in settings}
    if settings.get("objective") == "mlp":
        settings["batch_size"] = 16
    return make(comm, folder, 30, rows=241, **kind), settings


@maths
@pytest.mark.parametrize("name", ROUNDS)
def test_averaging_goes_on_in_mid_round(comm, folder, name):
    data, settings = case(comm, folder, name)
    most = 1e-6 if settings.get("dtype") != "float32" else 1e-4
    straight = travel(comm, data, hooked=False, **settings)
    assert travel(comm, data, **settings).same_as(straight, exact=True)  # pauses change nothing
    for legs in ([2, 1, 2], [1, 1, 1, 1], [4, 2]):
        found = travel(comm, data, [(comm, pauses) for pauses in legs], **settings)
        assert found.same_as(straight, exact=True), legs
    with one(comm) as alone, fewer(comm) as some:
        expected = travel(alone, data, hooked=False, **settings)
        legs = [(comm, 2), (some, 1), (comm, 1), (alone, 1), (some, 1)]
        for who, first in ((comm, 0), (some, 1), (alone, 2), (comm, 3)):
            found = travel(who, data, [*legs[first:], *legs[:first]], **settings)
            assert near(found.model, expected.model, most), first
            assert most > 1e-6 or found.same_as(expected, exact=False), first


@pytest.mark.parametrize("name", ["rounds", "few", "batches"])
def test_averaging_goes_on_between_rounds(comm, folder, name):
    data, settings = case(comm, folder, name)
    rounds = settings["rounds"]
    straight = travel(comm, data, hooked=False, **settings)
    with fewer(comm) as some:
        for half in range(rounds + 1):
            kept, model = first_half(comm, data, half, rounds, **settings)
            assert np.array_equal(model, straight.model)
            assert not kept.values["in_round"]
            assert np.array_equal(resumed(comm, data, kept, half, rounds, **settings), model)
            assert near(resumed(some, data, kept, half, rounds, **settings), model)


def test_without_machines_named_the_run_goes_on_with_as_many_as_it_had(comm, folder):
    data, settings = case(comm, folder, "rounds")
    named, unnamed = {**settings, "machines": comm.size}, {**settings, "machines": None}
    with fewer(comm) as some:
        straight = travel(comm, data, hooked=False, **named)
        assert travel(comm, data, [(comm, 3), (some, 2)], **unnamed).same_as(straight, exact=False)
        kept, _ = first_half(comm, data, 1, 2, **unnamed)
        with pytest.raises(AgreedError, match=f"begun with {comm.size}; give that"), \
                opened(some, data, kept, **{**settings, "machines": comm.size + 1}):
            pass


def test_the_time_may_be_over_for_one_rank_before_another(comm, folder):
    data, settings = case(comm, folder, "one")
    settings.update(machines=None, epochs=None, time_budget=1e9)
    paused, kept = [], []

    def learn(algorithm):
        algorithm.time_over = lambda: algorithm._machines[0].chunk >= 4 * (comm.rank + 1)
        met = algorithm.advance(0)
        assert met.late
        return algorithm.parameters().copy(), algorithm.most_examples(), met

    with opened(comm, data, **settings) as algorithm:
        def pause(chunks):
            paused.append(chunks)
            kept.append(kept_of(comm, algorithm))
            return 2

        algorithm.pause = pause
        model, *figures = learn(algorithm)
    assert paused == [1] + [2] * (len(paused) - 1) and len(set(comm.allgather(len(paused)))) == 1
    assert len(paused) >= 2 * comm.size
    for state in kept:
        with opened(comm, data, state, **settings) as algorithm:
            again, *others = learn(algorithm)
            assert np.array_equal(again, model) and others == figures


def test_a_loss_that_goes_wrong_on_one_rank_ends_the_round_for_all(comm, folder):
    data, settings = case(comm, folder, "one")
    settings.update(objective="linear", step_size=1e30)
    with opened(comm, data, **settings) as algorithm, np.errstate(all="ignore"):
        algorithm.pause = lambda chunks: 1
        assert not np.isfinite(algorithm.advance(0).loss)


def test_rows_that_each_rank_reads_for_itself_stay_with_as_many_ranks(comm, folder, monkeypatch):
    data = make(comm, folder, 4, rows=50_000 * comm.size)  # of some chunks an epoch, or all would be read as one
    settings = {**AVERAGE, "machines": None, "rounds": 3, "epochs": 2}
    kept_at_hand, _ = first_half(comm, data, 1, 2, **settings)
    monkeypatch.setattr("dml_hpc.commands.algorithms.fits_resident", lambda *about: False)
    monkeypatch.setattr("dml_hpc.commands.algorithms.open_reader", lambda *about: Streamed(*about[:-1], 1 << 20))
    straight = travel(comm, data, hooked=False, **settings)
    assert travel(comm, data, [(comm, 1), (comm, 2)], **settings).same_as(straight, exact=True)
    kept, _ = first_half(comm, data, 1, 2, **settings)
    with pytest.raises(AgreedError, match="rows that were all in memory, which they are not now"), \
            opened(comm, data, kept_at_hand, **settings):
        pass
    if comm.size > 1:
        with one(comm) as alone, pytest.raises(AgreedError, match=f"go on with {comm.size} ranks, or begin anew"), \
                opened(alone, data, kept, **settings):
            pass
    monkeypatch.undo()
    with pytest.raises(AgreedError, match="read piece by piece, which they are not now"), \
            opened(comm, data, kept, **settings):
        pass


@maths
@pytest.mark.skipif(COMPILER is None, reason="there is no g++ to compile the CUDA kernels for the CPU")
@pytest.mark.parametrize("name", ["csr-penalties", "one", "batches"])
def test_machines_on_a_device(comm, folder, monkeypatch, name):
    if os.environ.get("DML_HPC_TEST_DEVICE") != "cuda":
        monkeypatch.setattr("dml_hpc.cuda.Cuda", HostCuda)
    data, settings = case(comm, folder, name)
    settings.update(dtype="float32", device="cuda")
    with fewer(comm) as some:
        straight = travel(comm, data, hooked=False, **settings)
        for legs in ([(comm, 2)], [(comm, 3), (some, 1), (comm, 2)]):
            assert near(travel(comm, data, legs, **settings).model, straight.model, 1e-4)
        kept = travel(comm, data, [(comm, 2)], **{**settings, "device": "cpu"})
        assert near(kept.model, straight.model, 1e-3)
