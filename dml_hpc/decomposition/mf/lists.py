"""This rank's users with their ratings, and its items with theirs: read once, kept in memory, whoever reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.ratings.blocks import Grid
from dml_hpc.decomposition.mf.blocks import Blocks
from dml_hpc.errors import UserError
from dml_hpc.kernels.rating_lists import count_rows, place_entries
from dml_hpc.mpi import agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_CHUNK, LEAST_CHUNKS = 64, 4096
"""Rows that always stay together on a rank, at most, and so many chunks at least while a chunk has several rows."""


class Lists(NamedTuple):
    """Entries of rows, one row after the other; in a row by stripe of the other side, and there as they are stored.

    ``starts`` (n + 1,) int64, ``others`` (e,) int32 numbers of the other side, ``ratings`` (e,) and ``weights`` (e,)
    float32, the latter None where ratings have none.
    """

    starts: np.ndarray
    others: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray | None


class Side:
    """The users of ``blocks`` of a ``grid``, or (``by_item``) its items: rows, each with what it costs to solve for.

    Costs are counted in ratings; ``row_cost`` is that of a row without any.
    """

    def __init__(self, grid: Grid, blocks: Blocks, weighted: bool, by_item: bool, row_cost: int):
        self._blocks, self._weighted, self._by_item, self._row_cost = blocks, weighted, by_item, row_cost
        self.bounds, self.other_bounds = (grid.item_bounds, grid.user_bounds) if by_item else (
            grid.user_bounds, grid.item_bounds)
        self._counts = grid.counts.T if by_item else grid.counts
        self.rows = int(self.bounds[-1])
        self.chunk = max(1, min(MOST_CHUNK, self.rows // LEAST_CHUNKS))
        """Rows 0 … chunk − 1 are always on one rank, and so on."""
        if max(self.rows, int(self.other_bounds[-1])) > np.iinfo(np.int32).max:
            raise UserError("--algorithm als takes at most 2,147,483,647 users and items; take --algorithm sgd")

    def share(self, comm: Intracomm) -> np.ndarray:
        """Collective: return where each rank's rows begin, and their number: (ranks + 1,) int64.

        All ranks' rows cost about as much. Raises `AgreedError` where ratings cannot be read.
        """
        costs = self._counts.sum(axis=1) + self._row_cost * np.diff(self.bounds)
        ends = np.cumsum(costs)
        target = int(ends[-1]) * comm.rank // comm.size
        own = 0
        with agreed(comm):
            if comm.rank:
                stripe = int(np.searchsorted(ends, target, side="right"))
                within = np.cumsum(self._row_counts(stripe) + self._row_cost)
                row = int(self.bounds[stripe]) + int(np.searchsorted(
                    within, target - int(ends[stripe] - costs[stripe]), side="left"))
                own = min((row + self.chunk // 2) // self.chunk * self.chunk, self.rows)
        return np.array([*comm.allgather(own), self.rows], np.int64)

    def lists(self, first: int, last: int) -> Lists:
        """Return the ratings of rows ``first`` … ``last`` − 1; raises `UserError` where they cannot be read."""
        stripes = range(int(np.searchsorted(self.bounds, first, side="right")) - 1,
                        int(np.searchsorted(self.bounds, last, side="left"))) if last > first else range(0)
        counts = np.zeros(last - first, np.int64)
        for stripe in stripes:
            low, high = int(self.bounds[stripe]), int(self.bounds[stripe + 1])
            found = self._row_counts(stripe)
            counts[max(low - first, 0):high - first] = found[max(first - low, 0):last - low]
        starts = np.concatenate([[0], np.cumsum(counts)])
        ends = starts[:-1].copy()
        others, ratings = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        weights = np.empty(starts[-1], np.float32) if self._weighted else None
        for stripe in stripes:
            for other in range(len(self.other_bounds) - 1):
                rows, columns, given, weighed = self._block(stripe, other)
                place_entries(rows, columns, given, weighed, int(self.bounds[stripe]) - first,
                              np.int32(self.other_bounds[other]), ends, others, ratings,
                              weights)
                progressed()
        return Lists(starts, others, ratings, weights)

    def _row_counts(self, stripe: int) -> np.ndarray:
        counts = np.zeros(int(self.bounds[stripe + 1] - self.bounds[stripe]), np.int64)
        for other in range(len(self.other_bounds) - 1):
            count_rows(self._block(stripe, other)[0], counts)
        return counts

    def _block(self, stripe: int, other: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        block = self._blocks.get(*((other, stripe) if self._by_item else (stripe, other)))
        pair = block.items, block.users
        return *(pair if self._by_item else pair[::-1]), block.ratings, block.weights
