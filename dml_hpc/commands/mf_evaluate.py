"""``dml-hpc mf evaluate``: how far predictions of ratings are off, and how good recommendations would have been."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.commands.mf_options import rank_threads
from dml_hpc.commands.serving import open_factors, seen_by
from dml_hpc.console import Console
from dml_hpc.data.ratings.by_row import by_row, matched
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.decomposition.mf.blocks import summed_exactly
from dml_hpc.decomposition.mf.ranking import MEASURES, hits_of, measured
from dml_hpc.decomposition.mf.top import BLOCK_ROWS, Side, Top
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.store.rating_factors import RatingFactors
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PART = 1 << 16
"""Ratings that are predicted at a time."""


def run(comm: Intracomm, console: Console, factors: Path, ratings: Path, at: int | None = None,
        seen: Path | None = None, relevant: float | None = None, threads: int | None = None) -> dict[str, Any]:
    """Collective: predict all ``ratings``; return the keys of the ``--json`` object on every rank.

    Each rank predicts some of the blocks; only sums travel, whose bits do not depend on the ranks. Ratings count by
    their weights. Users and items are matched by their ids; for one that is not known the prediction is made of what
    is: the other's bias, and the mean. With ``at``, users are recommended so many items, none that they have rated in
    ``seen``, and these are compared with those that they gave at least ``relevant`` (None: any rating) here; see
    `measured`. Raises `AgreedError`.
    """
    started = time.perf_counter()
    with agreed(comm):
        if at is None and (seen is not None or relevant is not None):
            raise UserError(f"--{'seen' if seen is not None else 'relevant'} is for recommendations: say with --at of "
                            "how many")
    found = open_factors(comm, factors)
    implicit = bool(found.settings.get("implicit"))
    with agreed(comm):
        if implicit and at is None:
            raise UserError(f"{factors} was learnt with --implicit: it predicts preferences, not ratings; give --at 10 "
                            "to see how good its recommendations are")
    held = open_ratings(comm, ratings)
    rated = None if seen is None else open_ratings(comm, seen)
    with agreed(comm):
        if not held.grid.ratings:
            raise UserError(f"{ratings} holds no ratings to evaluate on")
    result = _errors(comm, found, held, implicit) | {"at": at, "relevant": relevant} | (
        dict.fromkeys(("users_evaluated", *MEASURES)) if at is None else
        _ranked(comm, found, held, rated, at, relevant, threads or rank_threads()))
    result |= {"implicit": implicit, "k": found.k, "factors": str(factors), "data": str(ratings),
               "seen": None if seen is None else str(seen), "weights_digest": found.digest,
               "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
    _tell(console, result)
    return result


def _errors(comm: Intracomm, found: RatingFactors, held: StoredRatings, implicit: bool) -> dict[str, Any]:
    """Collective: return how far predictions are off; None where they are no ratings."""
    sums: list[tuple[int, np.ndarray]] = []
    with agreed(comm):
        users, items = matched(found.users, held.users), matched(found.items, held.items)
        grid = held.grid
        for place in range(*split(grid.shape[0] * grid.shape[1], comm.size, comm.rank)):
            u, i = divmod(place, grid.shape[1])
            block = held.block(u, i)
            of_block = np.zeros(6)
            for first in range(0, len(block.ratings), _PART):
                part = slice(first, first + _PART)
                own = users[block.users[part] + grid.user_bounds[u]], items[block.items[part] + grid.item_bounds[i]]
                weight = 1.0 if block.weights is None else block.weights[part].astype(np.float64)
                off = np.zeros(len(own[0])) if implicit else block.ratings[part] - predicted(found, *own)
                of_block += [np.sum(weight * np.ones(len(off))), np.sum(weight * off * off),
                             np.sum(weight * np.abs(off)), np.sum(own[0] < 0), np.sum(own[1] < 0), len(off)]
            sums.append((place, of_block))
            progressed()
    # In the order of the blocks, whoever had them.
    ordered = [of_block for own in comm.allgather(sums) for _, of_block in own]
    weight, squares, sizes, unknown_users, unknown_items, count = np.add.accumulate(ordered, axis=0)[-1].tolist()
    with agreed(comm):
        if not weight > 0:
            raise UserError(f"the ratings of {held.path} weigh {weight:g} in all; there is nothing to evaluate on")
    return {"ratings": int(count), "rmse": None if implicit else math.sqrt(squares / weight),
            "mae": None if implicit else sizes / weight, "unknown_users": int(unknown_users),
            "unknown_items": int(unknown_items)}


def _ranked(comm: Intracomm, found: RatingFactors, held: StoredRatings, rated: StoredRatings | None, at: int,
            relevant: float | None, threads: int) -> dict[str, Any]:
    """Collective: return how good recommendations are, as means over the known users with anything relevant."""
    start_compiler()
    with first_on_node(comm):
        Top.compile()
    measures = [np.zeros((0, len(MEASURES)))]
    with agreed(comm):
        users, items = matched(found.users, held.users), matched(found.items, held.items)
        known = np.sort(users[users >= 0])
        own = known[slice(*split(len(known), comm.size, comm.rank))]
        place = np.full(len(found.users) + 1, -1)  # the last is where −1 leads: unknown
        place[own] = np.arange(len(own))
        # An item that is not known is never recommended, but was relevant: it gets a number behind all others.
        beyond = items < 0
        items = np.where(beyond, len(found.items) + np.cumsum(beyond) - 1, items)
        of_users = by_row(held, place[users], items, len(own))
        assert of_users.ratings is not None
        liked = np.ones(len(of_users.ratings), bool) if relevant is None else of_users.ratings >= np.float32(relevant)
        starts, left = (np.zeros(len(own) + 1, np.int64), np.empty(0, np.int32)) if rated is None else seen_by(
            found, rated, own)
        user = np.repeat(np.arange(len(own)), np.diff(of_users.starts))
        if len(left):  # what has been seen is no more to be found
            before = (np.repeat(np.arange(len(own)), np.diff(starts)) << 32) | left
            liked &= ~np.isin((user << 32) | of_users.columns, before, assume_unique=True)
        counts = np.bincount(user[liked], minlength=len(own))
        wanted, bounds = of_users.columns[liked], np.concatenate([[0], np.cumsum(counts)])
        top = Top(Side(found.user_factors, found.user_biases), Side(found.item_factors, found.item_biases), at,
                  found.mean)
        for first, best in zip(range(0, len(own), BLOCK_ROWS), top.blocks(own, starts, left, threads), strict=True):
            part = slice(first, first + len(best.rows))
            hits = hits_of(best.columns, bounds[first:first + len(best.rows) + 1], wanted)
            some = counts[part] > 0
            measures.append(measured(hits[some], counts[part][some], at).T)
            progressed()
    found_here = np.concatenate(measures)
    sums, counted = summed_exactly(comm, found_here).tolist(), sum(comm.allgather(len(found_here)))
    with agreed(comm):
        if not counted:
            raise UserError(f"no user that {found.path} knows has anything relevant in {held.path}"
                            + ("" if relevant is None else f"; give a lower --relevant than {relevant:g}"))
    return {"users_evaluated": counted, **{name: total / counted for name, total in zip(MEASURES, sums, strict=True)}}


def _tell(console: Console, result: dict[str, Any]) -> None:
    errors = "" if result["rmse"] is None else f", RMSE {result['rmse']:.4f}, MAE {result['mae']:.4f}"
    console.say(f"evaluate {result['factors']} on {result['data']}: {result['ratings']:,} ratings{errors}")
    if result["unknown_users"] or result["unknown_items"]:
        console.say(f"         {result['unknown_users']:,} are of users and {result['unknown_items']:,} of items that "
                    "the factors do not know")
    if result["at"] is not None:
        console.say(f"ranked   the best {result['at']:,} for {result['users_evaluated']:,} users: " + ", ".join(
            f"{name.upper() if len(name) < 5 else name} {result[name]:.4f}" for name in MEASURES))


def predicted(factors: RatingFactors, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return predictions (n,) float64 for pairs of numbers (n,), −1 for what is not known."""
    known = (users >= 0) & (items >= 0)
    score = np.full(len(users), factors.mean)
    p, q = factors.user_factors[users[known]], factors.item_factors[items[known]]
    score[known] += np.einsum("ij,ij->i", p, q, dtype=np.float32)
    for biases, numbers in ((factors.user_biases, users), (factors.item_biases, items)):
        if biases is not None:
            score[numbers >= 0] += biases[numbers[numbers >= 0]]
    return score
