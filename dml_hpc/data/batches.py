"""The rows of every step: the same global batches on any number of ranks.

The rows are cut into contiguous stripes, a function of the data set and the batch size alone. A step takes an equal
share of every stripe, so that each batch is a sample of the whole data set (stratified by place) however the rows
were sorted; a rank owns contiguous stripes, hence a contiguous range of rows, and gives what its stripes give. The
batch is therefore the same set of rows for one rank or for hundreds, and no rank ever needs another's rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.kernels.sampling import random_share, step_rows
from dml_hpc.layout import bound, split

MOST_STRIPES = 1024
"""A mini-batch can be shared by at most this many ranks."""


class Part(NamedTuple):
    """A rank's share of a step in one shard: ``shard`` is its number, ``rows`` (count,) int64 are rows within it."""

    shard: int
    rows: np.ndarray


class Batches:
    """The schedule of one rank out of ``size``.

    ``batch_size`` is the number of rows all ranks take together in a step (None: all rows, one step an epoch);
    steps differ from it by a few rows, and `take` says by how many. ``steps`` is the number of steps an epoch has,
    the same on every rank. ``shards`` are the numbers of the shards this rank reads (empty: it has no rows).
    """

    def __init__(self, dataset: Dataset, batch_size: int | None, rank: int, size: int, seed: int = 0,
                 shuffle: bool = True):
        rows = dataset.rows
        batch_size = min(batch_size or rows, rows) or 1
        self.steps = max(1, -(-rows // batch_size))
        # One row a stripe and step is the finest cut that gives every stripe a row in every step. A full batch is
        # the same rows however it is cut, so there the ranks' shares can be equal to the row.
        stripes = min(batch_size, MOST_STRIPES if self.steps > 1 else size)
        cuts = np.array([bound(rows, stripes, i) for i in range(stripes)], np.int64)
        start, stop = split(stripes, size, rank)
        # A stripe lies in one shard: what crosses a shard's end is cut there.
        first = np.unique(np.concatenate([cuts, dataset.offsets[:-1][np.diff(dataset.offsets) > 0]]))
        first = first[first < rows]
        last = np.append(first[1:], rows)
        edges = np.append(cuts, rows)
        self._mine = np.searchsorted(first, [edges[start], edges[stop]]).astype(np.int64)
        self._length = (last - first).astype(np.int64)
        self._shard = (np.searchsorted(dataset.offsets, first, side="right") - 1).astype(np.int64)
        self._first = first - dataset.offsets[self._shard]
        self._shuffle = shuffle and self.steps > 1
        self._seed = seed
        self._offsets = dataset.offsets.tolist()
        own = slice(*self._mine)
        self.range = (int(edges[start]), int(edges[stop]))
        self.count = int(self._length[own].sum())
        self.shards = range(int(self._shard[own][0]), int(self._shard[own][-1]) + 1) if self.count else range(0)
        self._rows = np.empty(int(np.sum(-(-self._length[own] // self.steps) + 1)), np.int64)
        self._stops = np.zeros(len(self.shards), np.int64)

    def take(self, epoch: int, step: int) -> tuple[list[Part], int]:
        """Return this rank's rows of a step, by shard, and the number of rows all ranks take in it.

        Over the ``steps`` of an epoch every row comes exactly once. The arrays are views on one buffer, valid
        until the next call.
        """
        key = _key(self._seed, epoch)
        count = step_rows(self._first, self._length, self._shard, self._mine, step, self.steps, key,
                          self._shuffle, self._rows, self._stops)
        parts, start = [], 0
        for shard, stop in zip(self.shards, self._stops.tolist(), strict=True):
            if stop > start:
                parts.append(Part(shard, self._rows[start:stop]))
                start = stop
        return parts, count

    def everything(self) -> list[Part]:
        """Return all the rows this rank ever takes, in storage order, by shard."""
        low = [max(self.range[0], start) - start for start in self._offsets[:-1]]
        high = [min(self.range[1], stop) - start
                for start, stop in zip(self._offsets[:-1], self._offsets[1:], strict=True)]
        return [Part(s, np.arange(low[s], high[s])) for s in self.shards if high[s] > low[s]]


class RandomShare:
    """A rank's random share of the rows, in a new random order every epoch.

    The partition and the local shuffles of SimuParallelSGD: the shares of the ``size`` ranks differ by one row at most
    and stay the same over the epochs. An epoch is cut into ``steps`` chunks of at most `CHUNK_ROWS` rows, the same
    number on every rank. ``count`` is the number of this rank's rows.
    """

    CHUNK_ROWS = 2048

    def __init__(self, rows: int, rank: int, size: int, seed: int = 0, shuffle: bool = True):
        self.count = len(range(rank, rows, size))
        self.steps = max(1, -(-len(range(0, rows, size)) // self.CHUNK_ROWS))
        self._place = rows, rank, size
        self._seed = seed
        self._shuffle = shuffle
        self._rows = np.empty(min(self.count, self.CHUNK_ROWS), np.int64)

    def take(self, epoch: int, step: int) -> np.ndarray:
        """Return the global numbers (count,) int64 of the rows of a chunk, in the order in which to visit them.

        Without ``shuffle`` these are every ``size``-th row, in storage order. The array is valid until the next call.
        """
        start, stop = split(self.count, self.steps, step)
        chunk = self._rows[:stop - start]
        rows, rank, size = self._place
        if self._shuffle:
            random_share(rows, rank, size, _key(self._seed, 0), _key(self._seed, epoch + 1), start, chunk)
        else:
            chunk[:] = rank + size * np.arange(start, stop)
        return chunk


def _key(seed: int, epoch: int) -> np.uint64:
    return np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
