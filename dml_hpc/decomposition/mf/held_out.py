"""Ratings that were held out: how far predictions are off, measured as the item stripes pass by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.ratings.blocks import Grid
from dml_hpc.data.ratings.ids import Ids
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.decomposition.mf.blocks import summed, summed_exactly
from dml_hpc.decomposition.mf.strata import Strata
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Part(NamedTuple):
    """Ratings of one user stripe for one item stripe; numbers are relative to these, −1 for what is not known."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray


class Errors(NamedTuple):
    """How far off: root mean square and mean absolute error, each rating by its weight, and what is not known."""

    rmse: float | None
    mae: float | None
    ratings: int
    unknown_users: int
    unknown_items: int


class HeldOut:
    """The ratings of ``held``, each on the rank that has its user among ``grid``'s stripes as ``strata`` deal them.

    Collective. They are matched with the ratings that are learnt from by the ``users``' and ``items``' ids. Those of
    users that are not known are with user stripe 0, those of items that are not known with item stripe 0. ``measure``
    is called for the blocks in any order, then `errors` once. Raises `AgreedError` where ``held`` cannot be read.
    """

    def __init__(self, comm: Intracomm, held: Ratings, grid: Grid, users: Ids, items: Ids, strata: Strata):
        self._comm, self._shape = comm, strata.users
        self._parts: dict[tuple[int, int], Part] = {}
        self.ratings = held.grid.ratings
        bounds = np.append(grid.user_bounds[strata.bounds], np.full(comm.size - strata.active, grid.users))
        self.unknown, found = _dealt(comm, held, users, items, bounds)
        self._sort(grid, found)
        self._sums = np.zeros((self._shape, 3))
        self._room = np.empty(max((len(part.users) for part in self._parts.values()), default=0), np.float32)

    def _sort(self, grid: Grid, found: list[np.ndarray]) -> None:
        users, items, ratings, weights = found
        u, i = _stripe(grid.user_bounds, users), _stripe(grid.item_bounds, items)
        keys = u * (len(grid.item_bounds) - 1) + i
        order = np.argsort(keys, kind="stable")
        cuts = np.flatnonzero(np.diff(keys[order])) + 1
        for places in np.split(order, cuts) if len(order) else ():
            own = int(u[places[0]]), int(i[places[0]])
            relative = [np.where(numbers[places] < 0, -1, numbers[places] - bounds[stripe]).astype(np.int32)
                        for numbers, bounds, stripe in ((users, grid.user_bounds, own[0]),
                                                        (items, grid.item_bounds, own[1]))]
            self._parts[own] = Part(relative[0], relative[1], ratings[places], weights[places])

    def part(self, u: int, i: int) -> tuple[Part, np.ndarray] | None:
        """Return the ratings of a block, and where their predictions (n,) float32 go; None: there are none."""
        part = self._parts.get((u, i))
        return None if part is None else (part, self._room[:len(part.users)])

    def measure(self, u: int, part: Part, predicted: np.ndarray) -> None:
        """Count what a block's ratings are predicted to be."""
        off = part.ratings.astype(np.float64) - predicted
        # Not BLAS, whose order of addition depends on its number of threads.
        self.count(u, [part.weights.sum(dtype=np.float64), (part.weights * off * off).sum(),
                       (part.weights * np.abs(off)).sum()])

    def count(self, u: int, sums: list[float]) -> None:
        """Count ratings of which the weights, the weighted squares and sizes of what predictions are off have these
        ``sums``.
        """
        self._sums[u] += sums

    def errors(self) -> Errors:
        """Collective: return the errors of all that was measured since the last call."""
        weight, squares, sizes = summed(self._comm, self._sums).tolist()
        self._sums[:] = 0
        users, items = self.unknown
        if not weight > 0:
            return Errors(None, None, self.ratings, users, items)
        return Errors(math.sqrt(squares / weight), sizes / weight, self.ratings, users, items)


class HeldRows:
    """The ratings of ``held``, each on the rank that has its user's row, of which ``bounds`` (ranks + 1,) deal all.

    Collective. Matched as in `HeldOut`; those of users that are not known are with row 0. ``users`` (n,) int32 are
    relative to this rank's first, ``items`` (n,) int32 places in a table once `renumber` is called; −1: not known.
    """

    def __init__(self, comm: Intracomm, held: Ratings, users: Ids, items: Ids, bounds: np.ndarray):
        self._comm, self._ratings = comm, held.grid.ratings
        self._unknown, found = _dealt(comm, held, users, items, bounds)
        self.users = np.where(found[0] < 0, -1, found[0] - bounds[comm.rank]).astype(np.int32)
        self.items = found[1].astype(np.int32)
        self.given, self.weights = found[2].astype(np.float64), found[3].astype(np.float64)
        self.predicted = np.empty(len(self.users), np.float32)

    @property
    def known_items(self) -> np.ndarray:
        """The items (m,) int32 that are known, some several times."""
        return self.items[self.items >= 0]

    def renumber(self, places: np.ndarray) -> None:
        """Take each item's place (items,) int32 in a table for its number."""
        known = self.items >= 0
        self.items[known] = places[self.items[known]]

    def errors(self) -> Errors:
        """Collective: return the errors of ``predicted`` (n,) float32, the same bits for any number of ranks."""
        off, weights = self.given - self.predicted, self.weights
        return self.told(summed_exactly(self._comm, np.stack(
            [weights, weights * off * off, weights * np.abs(off)], axis=1)))

    def told(self, sums: np.ndarray) -> Errors:
        """Return the errors when all ranks' weights, and weighted squares and sizes of what is off, have ``sums``."""
        weight, squares, sizes = sums.tolist()
        if not weight > 0:
            return Errors(None, None, self._ratings, *self._unknown)
        return Errors(math.sqrt(squares / weight), sizes / weight, self._ratings, *self._unknown)


def _dealt(comm: Intracomm, held: Ratings, users: Ids, items: Ids,
           bounds: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Collective: return how many ratings have unknown users and items, and this rank's ratings, in their order.

    These are numbers of users and items, −1: not known, ratings and weights; a rank has those of the users that
    ``bounds`` (ranks + 1,) deal it, the first rank that has any those of unknown ones.
    """
    with agreed(comm):
        found = _numbered(comm, held, users, items)
    unknown = [sum(comm.allgather(int((numbers < 0).sum()))) for numbers in found[:2]]
    owners = np.searchsorted(bounds, np.maximum(found[0], 0), side="right") - 1
    with waiting("an exchange of held-out ratings"):
        sent = comm.alltoall([tuple(part[owners == rank] for part in found) for rank in range(comm.size)])
    own = [np.concatenate([one[number] for one in sent]) for number in range(4)]
    # Whoever sent them: sums in another order would have other bits.
    order = np.lexsort((own[3], own[2], own[1], own[0]))
    return unknown, [part[order] for part in own]


def _stripe(bounds: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(bounds, np.maximum(numbers, 0), side="right") - 1


def _numbered(comm: Intracomm, held: Ratings, users: Ids, items: Ids) -> list[np.ndarray]:
    """Return this rank's share of the ratings: numbers of users and items, −1: not known, ratings and weights."""
    grid = held.grid
    item_numbers = items.numbers(held.items.values)
    found: list[tuple[np.ndarray, ...]] = []
    first, last = split(grid.shape[0] * grid.shape[1], comm.size, comm.rank)
    for place in range(first, last):
        u, i = divmod(place, grid.shape[1])
        block = held.block(u, i)
        own = slice(int(grid.user_bounds[u]), int(grid.user_bounds[u + 1]))
        if place == first or i == 0:
            user_numbers = users.numbers(held.users.values[own])
        weights = np.ones(len(block.ratings), np.float32) if block.weights is None else np.array(block.weights)
        found.append((user_numbers[block.users], item_numbers[block.items + grid.item_bounds[i]],
                      np.array(block.ratings), weights))
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    return [np.concatenate([empty[number], *(one[number] for one in found)]) for number in range(4)]
