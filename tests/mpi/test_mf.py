"""Factors of ratings by SGD: the same on any number of ranks, as good as the noise allows, kept and gone on from."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.comm.clock import Clock
from dml_hpc.commands import mf, mf_evaluate
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import MemoryRatings
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.decomposition.mf.sgd import Settings, Sgd
from dml_hpc.decomposition.mf.steps import DEFAULT_STEP_SIZE, StepSizes
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.errors import EXIT_AGAIN, AgreedError
from dml_hpc.store.rating_factors import read_rating_factors
from dml_hpc.store.saving import Saving

pytestmark = pytest.mark.mpi

TRAIN, TEST = (tuple(part[cut] for part in low_rank()) for cut in (slice(300, None), slice(0, 300)))


def factorise(comm, given=TRAIN, shape=(4, 6), epochs: int = 3, schedule: str = "adagrad", held=None,
              weights: np.ndarray | None = None, step_size: float | None = None,
              **settings) -> tuple[Outcome, list[np.ndarray]]:
    """Return what came of it, and all ranks' factors, in the order of users and items, on every rank."""
    ratings = MemoryRatings(*given, weights, shape=shape)
    settings = {"k": 4, "l2": 0.02, "adaptive": schedule == "adagrad", **settings}
    with Sgd(comm, ratings, Settings(**settings), Clock(), held) as sgd:
        outcome = learn(sgd, StepSizes(schedule, step_size or DEFAULT_STEP_SIZE[schedule], epochs), Limits(epochs),
                        Saving(comm, lambda line: None), lambda _: None)
        users = np.concatenate(comm.allgather(sgd.users.factors.copy()))
        items = np.concatenate([rows for own in comm.allgather([rows.factors.copy() for _, rows in sgd.items()])
                                for rows in own])
    return outcome, [users, items]


def alone(comm, *arguments, **options):
    """Return what one rank finds by itself."""
    own = comm.Split(comm.rank)
    try:
        return factorise(own, *arguments, **options)
    finally:
        own.Free()


@pytest.mark.maths
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (5, 5), (7, 3), (3, 10), (6, 7)])
def test_every_block_has_one_turn_and_no_two_of_a_stratum_meet(comm, shape):
    for ranks in range(1, shape[0] + 3):
        strata = Strata(np.ones(shape, np.int64), ranks)
        done = set()
        for stratum in range(strata.length):
            items = [strata.item(strata.place(u), stratum) for u in range(shape[0])]
            items = [(u, i) for u, i in enumerate(items) if i is not None]
            assert len({i for _, i in items}) == len(items)
            done.update(items)
        assert len(done) == shape[0] * shape[1]
        assert [u for rank in range(ranks) for u in strata.own(rank)] == list(range(shape[0]))
        assert [i for rank in range(ranks) for i in strata.home(rank)] == list(range(shape[1]))


CASES = {
    "adagrad": {}, "constant": {"schedule": "constant"}, "no biases": {"biases": False},
    "bold driver": {"schedule": "bold-driver"}, "threads": {"threads": 2}, "half": {"factors": "float16"},
    "one block": {"shape": (1, 1)}, "few items": {"shape": (6, 2)}, "as many stripes": {"shape": (4, 4)},
    "weights": {"weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)},
    "a heavy user": {"given": low_rank(heavy=True)}, "wide": {"k": 150},
    "empty blocks": {"given": low_rank(count=40), "shape": (9, 9)},
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_finds_the_same_bits(comm, case):
    one, factors = alone(comm, **{**CASES[case], **({"threads": 1} if case == "threads" else {})})
    outcome, found = factorise(comm, **CASES[case])
    for wanted, got in zip(factors, found, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert outcome.rmse_train == one.rmse_train and np.isfinite(outcome.rmse_train).all()


@pytest.mark.parametrize("biases", [False, True])
def test_the_penalty_means_the_same_for_ratings_of_any_unit(comm, biases):
    one, factors = factorise(comm, l2=0.3, biases=biases)
    other, found = factorise(comm, (*TRAIN[:2], 64 * TRAIN[2]), l2=0.3, biases=biases)
    for wanted, got in zip(factors, found, strict=True):
        np.testing.assert_array_equal(got, wanted)  # both of ratings divided by their deviation
    assert other.rmse_train == [64 * rmse for rmse in one.rmse_train]


@pytest.mark.parametrize("factors", ["float32", "float16"])
def test_held_out_ratings_are_predicted_to_within_the_noise(comm, factors):
    held = MemoryRatings(*TEST, shape=(2, 3), n_users=90, n_items=60)
    outcome, _ = factorise(comm, epochs=30, held=held, factors=factors, k=2, step_size=0.3)
    errors = outcome.errors
    assert errors is not None and errors.rmse is not None and errors.rmse < 0.2  # noise 0.1, deviation 0.9
    assert outcome.rmse_test[-1] == errors.rmse and errors.ratings == 300
    assert outcome.rmse_train[-1] < outcome.rmse_train[0]


@pytest.fixture
def data(comm, folder) -> tuple[Path, Path]:
    """Data sets to learn from and to test on; the latter has a user and an item that the former has not."""
    if comm.rank == 0:
        import_ratings(folder, "train", TRAIN, (4, 6))
        import_ratings(folder, "test", tuple(np.append(part, more).astype(part.dtype) for part, more in zip(
            TEST, ([777, 5], [4, 888], [3.0, 2.0]), strict=True)), (3, 2))
    comm.Barrier()
    return folder / "train", folder / "test"


def run(comm, train: Path, output: Path, **options):
    return mf.run(comm, Console(rank=1), train, output, **{"k": 4, "epochs": 4, **options})


def test_the_file_predicts_what_the_run_has_told(comm, folder, data):
    train, test = data
    told = run(comm, train, folder / "f.h5", test=test, biases=True)
    found = mf_evaluate.run(comm, Console(rank=1), folder / "f.h5", test)
    assert found["rmse"] == pytest.approx(told["rmse_test"], rel=1e-5)
    assert found["mae"] == pytest.approx(told["mae_test"], rel=1e-5)
    assert (found["unknown_users"], found["unknown_items"]) == (1, 1) == (told["unknown_users"], told["unknown_items"])
    file = read_rating_factors(folder / "f.h5")
    assert file.is_whole and file.digest == told["weights_digest"] and file.k == 4
    u, i = file.users.numbers([f"u{TEST[0][0]}"])[0], file.items.numbers(TEST[1][:1])[0]
    assert file.user_biases is not None and file.item_biases is not None
    score = file.mean + file.user_biases[u] + file.item_biases[i] + file.user_factors[u] @ file.item_factors[i]
    assert mf_evaluate.predicted(file, np.array([u]), np.array([i]))[0] == pytest.approx(score, rel=1e-6)
    assert mf_evaluate.predicted(file, np.array([-1]), np.array([-1]))[0] == file.mean
    assert told["ranks_at_work"] == min(comm.size, 4) and len(told["per_rank"]) == comm.size


@pytest.mark.parametrize("schedule", ["adagrad", "bold-driver"])
def test_a_stopped_run_goes_on_at_another_number_of_ranks(comm, folder, data, schedule, monkeypatch):
    train, _ = data
    whole = run(comm, train, folder / "whole.h5", schedule=schedule)
    from dml_hpc.commands import keeping

    stops = {"after": 2}
    monkeypatch.setattr(keeping.Asked, "on_signals", lambda: lambda: signal.SIGTERM if stops["after"] <= 0 else 0)
    learnt = Sgd.learn

    def counted(self, *arguments):
        stops["after"] -= 1
        return learnt(self, *arguments)

    monkeypatch.setattr(Sgd, "learn", counted)
    with pytest.raises(AgreedError) as error:
        run(comm, train, folder / "x.h5", schedule=schedule, checkpoint=folder / "kept")
    assert error.value.exit_code == EXIT_AGAIN and not (folder / "x.h5").exists()
    comm.Barrier()
    stops["after"] = 99
    few = comm.Split(0 if comm.rank < max(1, comm.size - 1) else 1, comm.rank)
    if comm.rank < max(1, comm.size - 1):
        again = run(few, train, folder / "x.h5", schedule=schedule, checkpoint=folder / "kept", resume=True)
        assert again["weights_digest"] == whole["weights_digest"] and again["resumed_from"] == 2
        assert again["rmses_train"] == whole["rmses_train"]
    few.Free()
    comm.Barrier()
    with pytest.raises(AgreedError, match="was written with --k 4, and this run has --k 5"):
        run(comm, train, folder / "y.h5", schedule=schedule, checkpoint=folder / "kept", resume=True, k=5)


def test_what_diverges_is_told_in_one_line(comm, folder, data):
    with pytest.raises(AgreedError, match=r"RMSE .* in epoch 1: the step size 90 is too large .* try --step-size 0.1") \
            as error:
        run(comm, data[0], folder / "f.h5", step_size=90.0)
    assert error.value.exit_code == 1 and not (folder / "f.h5").exists()


def test_it_stops_when_the_error_no_longer_falls(comm, folder, data):
    told = run(comm, data[0], folder / "f.h5", test=data[1], epochs=50, tolerance=0.05)
    assert told["stopped"] == "the error no longer falls" and told["epochs"] < 50
    assert told["rmses_test"][-1] > 0.95 * told["rmses_test"][-2]
    told = run(comm, data[0], folder / "g.h5", epochs=None, time_budget=1e-6)
    assert told["stopped"] == "the time is over" and told["epochs"] == 1


def test_what_cannot_be_is_refused(comm, folder, data):
    train, _ = data
    for options, words in (({"reproducible": True, "time_budget": 1.0}, "give --epochs instead"),
                           ({"schedule": "cosine", "epochs": None, "time_budget": 1.0}, "say which with --epochs"),
                           ({"test": folder / "nowhere"}, "nowhere")):
        with pytest.raises(AgreedError, match=words) as error:
            run(comm, train, folder / "f.h5", **options)
        assert error.value.exit_code == 2
    if comm.rank == 0:
        import_ratings(folder, "large", (*TRAIN[:2], 1e20 * TRAIN[2]), (4, 6))
    comm.Barrier()
    with pytest.raises(AgreedError, match="leave out --factors float16"):
        run(comm, folder / "large", folder / "f.h5", factors="float16")
    with pytest.raises(AgreedError, match="holds no factors of users and items"):
        mf_evaluate.run(comm, Console(rank=1), train / "ids.h5", train)
    told = run(comm, train, folder / "f.h5")
    comm.Barrier()
    if comm.rank == 0:
        with open(folder / "f.h5", "r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\x7f" * 64)
    comm.Barrier()
    if told:
        with pytest.raises(AgreedError, match="damaged"):
            mf_evaluate.run(comm, Console(rank=1), folder / "f.h5", train)
