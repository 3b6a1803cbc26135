"""``dml-hpc mf evaluate``: how far predictions of ratings are off."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import open_ratings
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.store.rating_factors import RatingFactors, read_rating_factors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PART = 1 << 16
"""Ratings that are predicted at a time."""


def run(comm: Intracomm, console: Console, factors: Path, ratings: Path) -> dict[str, Any]:
    """Collective: predict all ``ratings``; return the keys of the ``--json`` object on every rank.

    Each rank predicts some of the blocks; only sums travel. Ratings count by their weights. Users and items are matched
    by their ids; for one that is not known the prediction is made of what is: the other's bias, and the mean.
    """
    started = time.perf_counter()
    with agreed(comm):
        found = read_rating_factors(factors)
        if comm.rank == 0 and not found.is_whole:
            raise UserError(f"{factors} is damaged: its numbers are not those it was saved with; run mf again")
    held = open_ratings(comm, ratings)
    with agreed(comm):
        if not held.grid.ratings:
            raise UserError(f"{ratings} holds no ratings to evaluate on")
    sums = np.zeros(6)
    with agreed(comm):
        users, items = found.users.numbers(held.users.values), found.items.numbers(held.items.values)
        grid = held.grid
        for place in range(*split(grid.shape[0] * grid.shape[1], comm.size, comm.rank)):
            u, i = divmod(place, grid.shape[1])
            block = held.block(u, i)
            for first in range(0, len(block.ratings), _PART):
                part = slice(first, first + _PART)
                own = users[block.users[part] + grid.user_bounds[u]], items[block.items[part] + grid.item_bounds[i]]
                weight = 1.0 if block.weights is None else block.weights[part].astype(np.float64)
                off = block.ratings[part] - predicted(found, *own)
                sums += [np.sum(weight * np.ones(len(off))), np.sum(weight * off * off), np.sum(weight * np.abs(off)),
                         np.sum(own[0] < 0), np.sum(own[1] < 0), len(off)]
    weight, squares, sizes, unknown_users, unknown_items, count = np.sum(comm.allgather(sums), axis=0).tolist()
    with agreed(comm):
        if not weight > 0:
            raise UserError(f"the ratings of {ratings} weigh {weight:g} in all; there is nothing to evaluate on")
    result = {"ratings": int(count), "rmse": math.sqrt(squares / weight), "mae": sizes / weight,
              "unknown_users": int(unknown_users), "unknown_items": int(unknown_items), "k": found.k,
              "factors": str(factors), "data": str(ratings), "weights_digest": found.digest,
              "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
    console.say(f"evaluate {factors} on {ratings}: {int(count):,} ratings, RMSE {result['rmse']:.4f}, "
                f"MAE {result['mae']:.4f}")
    if unknown_users or unknown_items:
        console.say(f"         {int(unknown_users):,} are of users and {int(unknown_items):,} of items that the "
                    "factors do not know")
    return result


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
