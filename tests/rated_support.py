"""Write small data sets of ratings for tests, and read them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dml_hpc.console import Console
from dml_hpc.data.ratings.importing import Settings, build
from dml_hpc.data.ratings.opened import Ratings
from dml_hpc.data.ratings.source import Known, Rows
from dml_hpc.mpi import Alone, shared_folder


class ArrayRatings:
    """Ratings in memory, in pieces of ``step``; users and items are called by their numbers."""

    def __init__(self, users, items, ratings, weights=None, times=None, step: int = 20):
        self._rows = Rows(users, items, np.asarray(ratings, np.float32), weights, times)
        self._step = step
        self.pieces = -(-len(users) // step)
        self.users, self.items = (Known(np.arange(numbers.max() + 1), np.bincount(numbers))
                                  for numbers in (users, items))
        self.weighted, self.timed = weights is not None, times is not None

    def read(self, piece: int):
        own = slice(piece * self._step, (piece + 1) * self._step)
        yield Rows(*(None if part is None else part[own] for part in self._rows))


def write_rated(folder: Path, users, items, ratings, weights=None, times=None, comm=None, **settings) -> Path:
    """Write ratings (n,) of numbered users and items as a data set; see `Settings`."""
    comm = comm or Alone()
    source = ArrayRatings(users, items, ratings, weights, times)
    with shared_folder(comm, folder) as partial:
        scratch = partial / "scratch"
        if comm.rank == 0:
            scratch.mkdir()
        comm.Barrier()
        build(comm, partial, scratch, source, "rating", {}, Settings(**settings), Console(progress=False))
        comm.Barrier()
        if comm.rank == 0:
            scratch.rmdir()
    return folder


def all_of(opened: Ratings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids of users and items and the ratings (n,) of all blocks, in stored order."""
    grid = opened.grid
    found: tuple[list, list, list] = ([], [], [])
    for u in range(grid.shape[0]):
        for i in range(grid.shape[1]):
            block = opened.block(u, i)
            assert len(block.users) == grid.counts[u, i]
            found[0].append(opened.user_ids(block.users + grid.user_bounds[u]))
            found[1].append(opened.item_ids(block.items + grid.item_bounds[i]))
            found[2].append(block.ratings)
    users, items, ratings = (np.concatenate(parts) for parts in found)
    return users, items, ratings
