"""Factors of ratings by ALS: those of a dense loop in float64, the same bits on any number of ranks and threads."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.comm.clock import Clock
from dml_hpc.commands import mf, mf_evaluate
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import MemoryRatings
from dml_hpc.decomposition.mf.als import Als, Settings
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.errors import EXIT_AGAIN, AgreedError
from dml_hpc.store.rating_factors import read_rating_factors
from dml_hpc.store.saving import Saving

pytestmark = pytest.mark.mpi

TRAIN, TEST = (tuple(part[cut] for part in low_rank()) for cut in (slice(300, None), slice(0, 300)))
USERS, ITEMS = 90, 60
COUNTS = (*TRAIN[:2], np.random.default_rng(5).poisson(1.0, len(TRAIN[0])).astype(np.float32))
"""Implicit ratings: some are 0, which is as if they were not there."""


def factorise(comm, given=TRAIN, shape=(4, 6), epochs: int = 3, held=None, weights: np.ndarray | None = None,
              **settings) -> tuple[Outcome, list[np.ndarray], MemoryRatings]:
    """Return what came of it, all ranks' factors (and biases, as a last column), and the ratings, on every rank."""
    ratings = MemoryRatings(*given, weights, shape=shape)
    settings = {"k": 4, "l2": 0.02, **settings}
    with Als(comm, ratings, Settings(**settings), Clock(), held) as als:
        outcome = learn(als, None, Limits(epochs), Saving(comm, lambda line: None), lambda _: None)
        own = [np.column_stack([part.factors, *([] if part.biases is None else [part.biases])])
               for part in als.parts()]
    return outcome, [np.concatenate([parts[side] for parts in comm.allgather(own)]) for side in (0, 1)], ratings


def alone(comm, *arguments, **options):
    """Return what one rank finds by itself."""
    own = comm.Split(comm.rank)
    try:
        return factorise(own, *arguments, **options)
    finally:
        own.Free()


def dense(ratings: MemoryRatings, given, weights, values: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return ratings and weights as (users, items) float64, in the order of numbers; 0 where there are none."""
    found = np.zeros((2, ratings.grid.users, ratings.grid.items))
    at = ratings.user_numbers(given[0]), ratings.item_numbers(given[1])
    found[(0, *at)], found[(1, *at)] = given[2], 1 if weights is None else weights
    return found[0], found[1]


CASES = {
    "explicit": {}, "no biases": {"biases": False}, "cg": {"solver": "cg"}, "threads": {"threads": 3},
    "weights": {"weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)}, "wide": {"k": 40},
    "implicit": {"given": COUNTS, "alpha": 5.0, "l2": 0.5},
    "implicit cg": {"given": COUNTS, "alpha": 5.0, "l2": 0.5, "solver": "cg"},
    "implicit weights": {"given": COUNTS, "alpha": 5.0, "solver": "cg", "threads": 2,
                         "weights": np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32)},
    "one block": {"shape": (1, 1)}, "a heavy user": {"given": low_rank(heavy=True)},
    "few rows": {"given": (np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([1, 2, 3], np.float32))},
    "auto": {"l2": None, "threads": 2}, "auto cg": {"l2": None, "solver": "cg", "k": 20},
    "auto weights": {"l2": None, "biases": False, "weights": np.linspace(0, 1, len(TRAIN[0])).astype(np.float32) * (
        np.arange(len(TRAIN[0])) % 7 > 0)},
    "auto few rows": {"l2": None, "given": (np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([1, 2, 3], np.float32))},
    "singular": {"l2": 0.0, "k": 20}, "empty blocks": {"given": low_rank(count=40), "shape": (9, 9)},
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_and_threads_finds_the_same_bits(comm, case):
    one, factors, _ = alone(comm, **{**CASES[case], "threads": 1})
    outcome, found, _ = factorise(comm, **CASES[case])
    for wanted, got in zip(factors, found, strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert np.isfinite(got).all()
    assert outcome.rmse_train == one.rmse_train and outcome.losses == one.losses
    assert np.isfinite(outcome.losses).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_explicit_half_steps_minimise_the_objective(comm, weighted, biases):
    weights = np.linspace(0.5, 2, len(TRAIN[0])).astype(np.float32) if weighted else None
    outcome, (p, q), ratings = factorise(comm, weights=weights, biases=biases, epochs=4)
    r, w = dense(ratings, TRAIN, weights)
    mean = (w * r).sum() / w.sum()
    scale = np.sqrt((w * (r - mean)**2).sum() / w.sum())
    p, q = p.astype(np.float64), q.astype(np.float64)
    if not biases:
        p, q = (np.column_stack([rows, np.zeros(len(rows))]) for rows in (p, q))
    off = (r - mean) / scale - p[:, :-1] @ q[:, :-1].T - p[:, -1:] - q[:, -1]
    assert outcome.rmse_train[-1] == pytest.approx(scale * np.sqrt((w * off**2).sum() / w.sum()), rel=1e-4)
    penalty = 0.02 * ((w.sum(1) * (p**2).sum(1)).sum() + (w.sum(0) * (q**2).sum(1)).sum())
    assert outcome.losses[-1] == pytest.approx(((w * off**2).sum() + penalty) / 2, rel=1e-5)
    assert (np.diff(outcome.losses) < 0).all()
    # The items were solved for last: the gradient of the objective by each is 0.
    against = -(w * off).T @ p[:, :-1] + 0.02 * w.sum(0)[:, None] * q[:, :-1]
    np.testing.assert_allclose(against, 0, atol=2e-4 * np.abs((w * r).T @ p[:, :-1]).max())
    if biases:
        np.testing.assert_allclose(-(w * off).sum(0) + 0.02 * w.sum(0) * q[:, -1], 0, atol=1e-3)


def variational(r: np.ndarray, w: np.ndarray, q: np.ndarray, epochs: int) -> tuple[list[np.ndarray], float, float]:
    """Return users and items, a bias behind each, the training RMSE, and the deviation of the noise, by a dense loop.

    What `dml_hpc.decomposition.mf.penalties` says, in float64, of ratings ``r`` (users, items) that weigh ``w``, from
    items ``q`` (items, k) on; each row by itself.
    """
    k, total = q.shape[1], w.sum()
    mean = (w * r).sum() / total
    scale = np.sqrt((w * (r - mean)**2).sum() / total)
    per_rating = total / np.count_nonzero(w)  # weights of 1, on average
    ratings, weights = [(r - mean) / scale, ((r - mean) / scale).T], [w / per_rating, w.T / per_rating]
    total = np.count_nonzero(w)
    x = [np.zeros((len(r), k + 1)), np.column_stack([q, np.zeros(len(q))])]
    prior, noise = [np.ones(k + 1), np.full(k + 1, 1 / k)], 0.3
    variances = [np.zeros(k + 1), np.zeros(k + 1)]
    squares = [np.zeros(k + 1), np.full(k + 1, 1 / k)]
    for _ in range(epochs):
        for side in (0, 1):
            other = np.column_stack([x[1 - side][:, :k], np.ones(len(x[1 - side]))])
            heavy = weights[side].sum(1)
            own = np.zeros((len(heavy), k + 1))
            for n in np.flatnonzero(heavy):
                A = (other.T * weights[side][n]) @ other
                A += np.diag(heavy[n] * np.append(variances[1 - side][:k], 0) + noise / prior[side])
                x[side][n] = np.linalg.solve(A, other.T @ (weights[side][n] * (ratings[side][n] - x[1 - side][:, k])))
                curvature = np.append((squares[1 - side] + variances[1 - side])[:k], 1)
                own[n] = noise / (heavy[n] * curvature + noise / prior[side])
            variances[side], squares[side] = heavy @ own / total, heavy @ x[side]**2 / total
            prior[side] = (x[side][heavy > 0]**2 + own[heavy > 0]).mean(0)
        off = ratings[0] - x[0][:, :k] @ x[1][:, :k].T - x[0][:, k:] - x[1][:, k]
        (a, b), (v, s) = squares, variances
        noise = (weights[0] * off**2).sum() / total + ((a + v) * (b + s) - a * b)[:k].sum() + v[k] + s[k]
    return x, scale * np.sqrt((weights[0] * off**2).sum() / total), scale * np.sqrt(noise)


@pytest.mark.parametrize("weighted", [False, True])
def test_penalties_are_learnt_as_a_dense_loop_does(comm, weighted):
    weights = np.linspace(5, 20, len(TRAIN[0])).astype(np.float32) if weighted else None
    ratings = MemoryRatings(*TRAIN, weights, shape=(4, 6))
    begun = np.zeros((ratings.grid.items, 4))
    with Als(comm, ratings, Settings(4, None), Clock()) as als:
        als.begin()
        begun[:] = np.concatenate(comm.allgather(als.parts()[1].factors))
        for epoch in range(6):
            met = als.improve(epoch)
        found = [np.concatenate(parts) for parts in zip(*comm.allgather(
            [np.column_stack([part.factors, part.biases]) for part in als.parts()]), strict=True)]
        noise = als.noise
    wanted, rmse, deviation = variational(*dense(ratings, TRAIN, weights), begun, 6)
    assert met.loss is None and met.rmse == pytest.approx(rmse, rel=2e-3)
    assert noise == pytest.approx(deviation, rel=2e-3)
    for got, own in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, own, atol=0.01)


@pytest.mark.parametrize("noise", [0.2, 1.0])
def test_learnt_penalties_predict_as_well_as_the_best_of_many(comm, noise):
    """Twice as many factors as there are: a penalty that is too small, or too large, is felt."""
    rng = np.random.default_rng(11)
    shape, k = (150, 100), 3
    users, items = (part.reshape(-1) for part in np.indices(shape))
    kept = rng.permutation(len(users))[:4000]
    given = (rng.normal(size=(shape[0], k)) @ rng.normal(size=(k, shape[1])) / np.sqrt(k)
             + noise * rng.normal(size=shape)).reshape(-1).astype(np.float32)
    parts = [tuple(array[kept[cut]] for array in (users, items, given)) for cut in (slice(3000), slice(3000, None))]
    held = MemoryRatings(*parts[1], shape=(2, 2), n_users=shape[0], n_items=shape[1])
    errors = {l2: factorise(comm, parts[0], epochs=10, held=held, k=2 * k, l2=l2)[0].rmse_test[-1]
              for l2 in (None, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)}
    assert errors.pop(None) < 1.02 * min(errors.values())


def test_implicit_ratings_minimise_the_objective_over_all_pairs(comm):
    alpha, l2 = 5.0, 0.5
    outcome, (p, q), ratings = factorise(comm, COUNTS, alpha=alpha, l2=l2, epochs=4)
    r, _ = dense(ratings, COUNTS, None)
    c, wanted = 1 + alpha * r, (r > 0).astype(np.float64)
    p, q = p.astype(np.float64), q.astype(np.float64)
    assert outcome.losses[-1] == pytest.approx((c * (wanted - p @ q.T)**2).sum() + l2 * ((p**2).sum() + (q**2).sum()),
                                               rel=1e-5)
    for i in range(len(q)):
        exact = np.linalg.solve((p.T * c[:, i]) @ p + l2 * np.eye(4), p.T @ (c[:, i] * wanted[:, i]))
        np.testing.assert_allclose(q[i], exact, rtol=1e-3, atol=1e-4)
    assert outcome.rmse_train == [] and (np.diff(outcome.losses) < 0).all()
    cg, _, _ = factorise(comm, COUNTS, alpha=alpha, l2=l2, epochs=12, solver="cg")
    exact, _, _ = factorise(comm, COUNTS, alpha=alpha, l2=l2, epochs=12)
    assert cg.losses[-1] == pytest.approx(exact.losses[-1], rel=0.02)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_held_out_ratings_are_predicted_to_within_the_noise(comm, solver):
    held = MemoryRatings(*TEST, shape=(2, 3), n_users=USERS, n_items=ITEMS)
    outcome, _, _ = factorise(comm, epochs=10, held=held, k=2, solver=solver)
    assert outcome.errors is not None and outcome.errors.rmse is not None and outcome.errors.rmse < 0.2
    assert outcome.rmse_test[-1] == outcome.errors.rmse and outcome.errors.ratings == 300


@pytest.mark.parametrize("l2", [None, 0.02])
def test_equal_ratings_leave_no_error_that_rounding_could_make_negative(comm, l2):
    users, items = np.divmod(np.random.default_rng(2).permutation(40 * 30)[:960], 30)
    outcome, _, _ = factorise(comm, (users, items, np.full(960, 4.0, np.float32)), solver="cg", l2=l2)
    assert 0 <= outcome.rmse_train[-1] < 1e-3


def test_who_has_no_ratings_gets_zeros(comm):
    users, items, ratings = TRAIN
    keep = (users != 7) & (items != 3)
    given = tuple(part[keep] for part in TRAIN)
    ratings = MemoryRatings(*given, shape=(4, 6), n_users=USERS, n_items=ITEMS)
    with Als(comm, ratings, Settings(4, 0.02), Clock()) as als:
        learn(als, None, Limits(2), Saving(comm, lambda line: None), lambda _: None)
        for part, number in zip(als.parts(), (ratings.user_numbers([7])[0], ratings.item_numbers([3])[0]), strict=True):
            if part.first <= number < part.first + len(part.factors):
                assert not part.factors[number - part.first].any() and part.biases[number - part.first] == 0


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
    return mf.run(comm, Console(rank=1), train, output, **{"algorithm": "als", "k": 4, "epochs": 4, **options})


def test_the_file_predicts_what_the_run_has_told(comm, folder, data):
    train, test = data
    told = run(comm, train, folder / "f.h5", test=test)
    found = mf_evaluate.run(comm, Console(rank=1), folder / "f.h5", test)
    assert found["rmse"] == pytest.approx(told["rmse_test"], rel=1e-5)
    assert found["mae"] == pytest.approx(told["mae_test"], rel=1e-5)
    assert (found["unknown_users"], found["unknown_items"]) == (1, 1) == (told["unknown_users"], told["unknown_items"])
    assert mf_evaluate.run(comm, Console(rank=1), folder / "f.h5", train)["rmse"] == pytest.approx(
        told["rmse_train"], rel=1e-5)
    file = read_rating_factors(folder / "f.h5")
    assert file.is_whole and file.settings["algorithm"] == "als" and not file.settings["implicit"]
    assert told["ranks_at_work"] == comm.size and told["solver"] == "cholesky"
    assert (told["bytes_sent"] > 0) == (comm.size > 1)


@pytest.mark.parametrize("options", [{}, {"algorithm": "sgd"}])
def test_ranks_with_nothing_to_do_write_nothing(comm, folder, options):
    if comm.rank == 0:
        import_ratings(folder, "few", (np.array([0, 0]), np.array([0, 1]), np.array([1, 2], np.float32)), (1, 2))
    comm.Barrier()
    told = run(comm, folder / "few", folder / "f.h5", **options)
    file = read_rating_factors(folder / "f.h5")
    assert file.is_whole and file.digest == told["weights_digest"] and file.item_factors.shape == (2, 4)


def test_implicit_ratings_are_learnt_from_a_file(comm, folder):
    if comm.rank == 0:
        import_ratings(folder, "counts", COUNTS, (2, 2))
    comm.Barrier()
    told = run(comm, folder / "counts", folder / "f.h5", implicit=True)
    assert (told["rmse_train"], told["rmses_train"], told["rmse_test"], told["biases"]) == (None, [], None, False)
    assert told["loss"] == told["losses"][-1] < told["losses"][0] and (told["alpha"], told["solver"]) == (40.0, "cg")
    file = read_rating_factors(folder / "f.h5")
    assert file.settings["implicit"] and file.settings["alpha"] == 40 and file.mean == 0 and file.user_biases is None


@pytest.mark.parametrize("options", [{}, {"solver": "cg"}])
def test_a_stopped_run_goes_on_at_another_number_of_ranks(comm, folder, data, options, monkeypatch):
    train, _ = data
    whole = run(comm, train, folder / "whole.h5", **options)
    from dml_hpc.commands import keeping

    stops = {"after": 2}
    monkeypatch.setattr(keeping.Asked, "on_signals", lambda: lambda: signal.SIGTERM if stops["after"] <= 0 else 0)
    improve = Als.improve

    def counted(self, *arguments):
        stops["after"] -= 1
        return improve(self, *arguments)

    monkeypatch.setattr(Als, "improve", counted)
    with pytest.raises(AgreedError) as error:
        run(comm, train, folder / "x.h5", checkpoint=folder / "kept", **options)
    assert error.value.exit_code == EXIT_AGAIN and not (folder / "x.h5").exists()
    comm.Barrier()
    stops["after"] = 99
    few = comm.Split(0 if comm.rank < max(1, comm.size - 1) else 1, comm.rank)
    if comm.rank < max(1, comm.size - 1):
        again = run(few, train, folder / "x.h5", checkpoint=folder / "kept", resume=True, **options)
        assert again["weights_digest"] == whole["weights_digest"] and again["resumed_from"] == 2
        assert again["losses"] == whole["losses"]
    few.Free()
    comm.Barrier()
    with pytest.raises(AgreedError, match="was written with --k 4, and this run has --k 5"):
        run(comm, train, folder / "y.h5", checkpoint=folder / "kept", resume=True, k=5, **options)


def test_a_run_goes_on_without_the_ratings_it_was_tested_on(comm, folder, data):
    train, test = data
    run(comm, train, folder / "f.h5", test=test, checkpoint=folder / "kept")
    told = run(comm, train, folder / "g.h5", epochs=6, checkpoint=folder / "kept", resume=True)
    assert (told["epochs"], told["rmse_test"], told["mae_test"], told["rmses_test"]) == (6, None, None, [])
    told = run(comm, train, folder / "h.h5", epochs=6, test=test, checkpoint=folder / "kept", resume=True)
    found = mf_evaluate.run(comm, Console(rank=1), folder / "h.h5", test)
    assert told["rmse_test"] == pytest.approx(found["rmse"], rel=1e-5) and told["rmses_test"] == []


def test_it_stops_when_the_error_no_longer_falls(comm, folder, data):
    told = run(comm, data[0], folder / "f.h5", test=data[1], epochs=50, tolerance=0.02)
    assert told["stopped"] == "the error no longer falls" and told["epochs"] < 50
    told = run(comm, data[0], folder / "g.h5", epochs=None, time_budget=1e-6)
    assert told["stopped"] == "the time is over" and told["epochs"] == 1


def test_what_cannot_be_is_refused(comm, folder, data):
    train, test = data
    for options, words in (({"schedule": "cosine"}, "--schedule is for --algorithm sgd, and this is --algorithm als"),
                           ({"factors": "float16"}, "--factors is for --algorithm sgd"),
                           ({"tolerance": 0.1}, "--tolerance needs --test while penalties are found"),
                           ({"algorithm": "sgd", "implicit": True}, "--implicit is for --algorithm als"),
                           ({"alpha": 3.0}, "--alpha is for --implicit"),
                           ({"implicit": True, "biases": True}, "no biases"),
                           ({"implicit": True, "test": test}, "mf evaluate FACTORS RATINGS --at 10"),
                           ({"implicit": True}, "holds negative ratings"),
                           ({"reproducible": True, "time_budget": 1.0}, "give --epochs instead")):
        with pytest.raises(AgreedError, match=words) as error:
            run(comm, train, folder / "f.h5", **options)
        assert error.value.exit_code == 2 and not (folder / "f.h5").exists()
