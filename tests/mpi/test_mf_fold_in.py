"""Factors of users (or items) who came later: those that least squares in float64 finds, on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ratings_support import import_ratings, low_rank

from dml_hpc.commands import mf, mf_fold_in
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.errors import AgreedError
from dml_hpc.mpi import Alone
from dml_hpc.store.rating_factors import read_rating_factors

pytestmark = pytest.mark.mpi

QUIET = Console(rank=1)
GIVEN = low_rank()


def best_rows(rows: dict[str, list[tuple[int, float]]], others: np.ndarray, biases: np.ndarray | None, mean: float,
              scale: float, penalties: np.ndarray, alpha: float | None) -> dict[str, np.ndarray]:
    """Return for each row the factors, and its bias behind them, that minimise its error, in float64, as in the file.

    ``others`` and ``biases`` are as in the file. Explicit: Σ(r − prediction)²/s² + Σ ρ_j·p_j²/s + ρ·b²/s², s the scale.
    ``penalties`` (2, k + 1) are those of p and b for each rating, and for the row.
    """
    found = {}
    k = others.shape[1]
    for name, entries in rows.items():
        at = [place for place, _ in entries]
        r = np.array([value for _, value in entries])
        Q = others[at].astype(float)
        if alpha is not None:
            confidence = np.ones(len(others))
            confidence[at] += alpha * r
            liked = np.zeros(len(others))
            liked[at] = r > 0
            whole = others.astype(float)
            matrix = whole.T * confidence @ whole + np.diag(penalties[1, :k])
            found[name] = np.linalg.solve(matrix, whole.T @ (confidence * liked))
            continue
        target = r - mean
        if biases is not None:
            target = target - biases[at]
            Q = np.column_stack([Q, np.ones(len(r))])
        penalty = ((len(r) * penalties[0] + penalties[1]) * [*[scale] * k, 1.0])[:Q.shape[1]]
        found[name] = np.linalg.solve(Q.T @ Q + np.diag(penalty), Q.T @ target)
    return found


@pytest.fixture
def later(comm, folder) -> Path:
    """Ratings to learn from, of all users below 70, and ``later``: of those from 65 on, one with none that counts."""
    if comm.rank == 0:
        early, late = GIVEN[0] < 70, GIVEN[0] >= 65
        shifted = (*GIVEN[:2], GIVEN[2] + 10)  # above 0, as implicit ones have to be
        import_ratings(folder, "early", tuple(part[early] for part in shifted), (4, 6))
        import_ratings(folder, "late", tuple(np.append(part[late], more).astype(part.dtype) for part, more in zip(
            shifted, ([777, 80], [888, 999], [13.0, 12.0]), strict=True)), (3, 2))
    comm.Barrier()
    return folder


CASES = {"als": {"algorithm": "als", "l2": 0.02}, "no biases": {"algorithm": "als", "biases": False, "l2": 0.02},
         "auto": {"algorithm": "als"}, "sgd": {},
         "half": {"factors": "float16"}, "implicit": {"algorithm": "als", "implicit": True, "alpha": 2.0}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("items", [False, True], ids=["users", "items"])
def test_who_came_later_gets_what_least_squares_says(comm, later, case, items):
    if items and case not in ("auto", "implicit"):
        return
    mf.run(comm, QUIET, later / "early", later / "f.h5", k=4, epochs=3, **CASES[case])
    before = read_rating_factors(later / "f.h5")
    told = mf_fold_in.run(comm, QUIET, later / "f.h5", later / "late", later / "g.h5", items=items, update=True)
    after = read_rating_factors(later / "g.h5")
    assert after.is_whole and after.digest == told["weights_digest"]
    late = open_ratings(Alone(), later / "late")
    ids, other_ids = (before.users, before.items) if items else (before.items, before.users)
    rows: dict[str, list[tuple[int, float]]] = {}
    for u in range(late.grid.shape[0]):
        for i in range(late.grid.shape[1]):
            block = late.block(u, i)
            user = late.users.values[block.users + late.grid.user_bounds[u]].tolist()
            item = late.items.values[block.items + late.grid.item_bounds[i]].tolist()
            for name, other, rating in zip(*((item, user) if items else (user, item)), block.ratings.tolist(),
                                           strict=True):
                if (place := int(ids.numbers([other])[0])) >= 0:
                    rows.setdefault(name, []).append((place, rating))
    fixed, fixed_biases = (before.user_factors, before.user_biases) if items else (before.item_factors,
                                                                                 before.item_biases)
    penalties = np.zeros((2, 5))
    if case == "auto":
        penalties[:] = before.settings["penalties"]["item" if items else "user"]
        assert before.settings["l2"] == told["l2"] == "auto" and penalties[:, :4].min() > 0 == penalties[0, 4]
    else:
        penalties[int(case == "implicit")] = before.settings["l2"]
    wanted = best_rows(rows, fixed, fixed_biases, before.mean, before.settings["scale"], penalties,
                       before.settings.get("alpha"))
    known, got, biases, old = (after.items, after.item_factors, after.item_biases, before.item_factors) if items else (
        after.users, after.user_factors, after.user_biases, before.user_factors)
    tolerance = 2e-3 if case == "half" else 2e-4
    for name, x in wanted.items():
        row = int(known.numbers([name])[0])
        np.testing.assert_allclose(got[row], x[:4], atol=tolerance)
        if biases is not None:
            np.testing.assert_allclose(biases[row], x[4], atol=tolerance)
    assert len(known) == len(set(known.values)) == len(set(other_ids.values) | set(wanted))
    others = [row for row, name in enumerate(other_ids.values) if name not in wanted]
    np.testing.assert_array_equal(got[others], old[others])  # where they were, as they were
    assert got.dtype == old.dtype and after.settings["l2"] == before.settings["l2"]
    own = comm.Split(comm.rank)
    mf_fold_in.run(own, QUIET, later / "f.h5", later / "late", later / f"alone{comm.rank}.h5", items=items, update=True)
    own.Free()
    assert (later / f"alone{comm.rank}.h5").read_bytes() == (later / "g.h5").read_bytes()
    if not items:
        assert (told["users_without_ratings"], told["unknown_items"]) == (1, 2)
        assert told["users_added"] == len(set(wanted) - set(other_ids.values))
        assert (told["rmse"] is None) == (case == "implicit")
        comm.Barrier()
        with pytest.raises(AgreedError, match="give --update"):
            mf_fold_in.run(comm, QUIET, later / "f.h5", later / "early", later / "h.h5")
        assert not (later / "h.h5").exists()


def test_converged_least_squares_stay_where_they_are(comm, later):
    mf.run(comm, QUIET, later / "early", later / "f.h5", k=2, algorithm="als", epochs=80)
    mf_fold_in.run(comm, QUIET, later / "f.h5", later / "early", later / "g.h5", update=True)
    before, after = (read_rating_factors(later / name) for name in ("f.h5", "g.h5"))
    np.testing.assert_allclose(after.user_factors, before.user_factors, atol=2e-3)
    np.testing.assert_array_equal(after.item_factors, before.item_factors)


def test_ids_that_were_imported_as_text_stand_for_whole_numbers(comm, later):
    if comm.rank == 0:
        import_ratings(later, "text", tuple(part[GIVEN[0] < 70] for part in GIVEN), (4, 6), text_ids=True)
    comm.Barrier()
    mf.run(comm, QUIET, later / "early", later / "f.h5", k=2, epochs=1)
    told = mf_fold_in.run(comm, QUIET, later / "f.h5", later / "text", later / "g.h5", items=True,
                          update=True)
    after = read_rating_factors(later / "g.h5")
    assert told["items_updated"] == 60 and not after.items.is_text and after.is_whole
