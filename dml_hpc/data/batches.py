"""The rows of every step: the same global batches on any number of ranks.

The rows are cut into contiguous stripes, a function of the data set and the batch size alone. A step takes an equal
share of every stripe, so that each batch is a sample of the whole data set (stratified by place) however the rows
were sorted; a rank owns contiguous stripes, hence a contiguous range of rows, and gives what its stripes give. The
batch is therefore the same set of rows for one rank or for hundreds, and no rank ever needs another's rows.

A stripe is read block by block: the blocks in random order, and the rows of each block in random order. So a rank that
cannot hold all its rows reads a few blocks ahead (`dml_hpc.data.reading`), and one that can follows the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.kernels.sampling import rows_of_step, step_rows
from dml_hpc.layout import split, weighted_bounds

MOST_STRIPES = 1024
"""A mini-batch can be shared by at most this many ranks."""
LEAST_STRIPES = 64
BLOCKS_A_STRIPE = 128
LEAST_BLOCKS = 8
LEAST_BLOCK_ROWS, LEAST_BLOCK_BYTES = 16, 64 << 10
"""Shuffling costs less the fewer blocks there are; in wide rows it does not matter."""
MOST_BLOCK_BYTES = 1 << 20
"""Larger blocks are read no faster and shuffle less well."""


class Part(NamedTuple):
    """A rank's share of a step in one shard: ``shard`` is its number, ``rows`` (count,) int64 are rows within it."""

    shard: int
    rows: np.ndarray


class Batches:
    """The schedule of one rank out of ``size``.

    ``batch_size`` is the number of rows all ranks take together in a step (None: all rows, one step an epoch);
    steps differ from it by a few rows, and `take` says by how many. ``steps`` is the number of steps an epoch has,
    the same on every rank. ``shards`` are the numbers of the shards this rank reads (empty: it has no rows).
    ``chunk_rows``: the data set is stored in chunks of so many rows, of which none is best read twice. Ranks have equal
    parts of the work, or ``shares`` (size,) of it as far as stripes allow; a step has the same rows either way.
    """

    def __init__(self, dataset: Dataset, batch_size: int | None, rank: int, size: int, seed: int = 0,
                 shuffle: bool = True, chunk_rows: int | None = None,
                 shares: Sequence[float] | None = None):
        rows = dataset.rows
        batch_size = min(batch_size or rows, rows) or 1
        self.steps = max(1, -(-rows // batch_size))
        # One row a stripe and step is the finest cut that gives every stripe a row in every step. A full batch is
        # the same rows however it is cut, so there the ranks' shares can be equal to the row.
        stripes = size if self.steps == 1 else min(batch_size, MOST_STRIPES)
        if chunk_rows is not None and self.steps > 1:
            stripes = min(stripes, max(LEAST_STRIPES, rows // chunk_rows // BLOCKS_A_STRIPE))
        stripes = min(stripes, max(rows, 1))
        if stripes < size:
            shares = None  # there is not enough to share
        edges = np.array(dataset.partition(stripes, shares if self.steps == 1 else None), np.int64)
        if chunk_rows is not None and self.steps > 1 and rows // chunk_rows >= stripes:
            edges = _at_chunks(edges, dataset.offsets, chunk_rows)
        start, stop = split(stripes, size, rank)
        if shares is not None and self.steps > 1:
            start, stop = weighted_bounds(stripes, shares)[rank:rank + 2]
        # A stripe lies in one shard: what crosses a shard's end is cut there.
        first = np.unique(np.concatenate([edges[:-1], dataset.offsets[:-1][np.diff(dataset.offsets) > 0]]))
        first = first[first < rows]
        self.mine = np.searchsorted(first, [edges[start], edges[stop]]).astype(np.int64)
        self.length = (np.append(first[1:], rows) - first).astype(np.int64) if rows else first
        self.shard = (np.searchsorted(dataset.offsets, first, side="right") - 1).astype(np.int64)
        self.first = first - dataset.offsets[self.shard]
        self.shuffle = shuffle and self.steps > 1
        self.block = chunk_rows or _block_rows(dataset, len(first))
        self._seed = seed
        self._offsets = dataset.offsets.tolist()
        own = slice(*self.mine)
        self.range = (int(edges[start]), int(edges[stop]))
        self.count = int(self.length[own].sum())
        self.share = (stop - start) / stripes if self.count else 0.0
        """This rank's part of all work."""
        if shares is not None and self.steps == 1:
            self.share = shares[rank] / sum(shares)
        self.shards = range(int(self.shard[own][0]), int(self.shard[own][-1]) + 1) if self.count else range(0)
        self.most_rows = int(np.sum(-(-self.length[own] // self.steps) + 1))
        """No step has more rows of this rank."""
        stripes = int(self.mine[1] - self.mine[0])
        order = np.empty((stripes, self.block if self.shuffle else 0), np.int32)
        self._state = order, *np.zeros((2, stripes), np.int64)
        self._epoch = -1
        self._rows = np.empty(self.most_rows, np.int64)
        self._stops = np.zeros(len(self.shards), np.int64)

    def take(self, epoch: int, step: int) -> tuple[list[Part], int]:
        """Return this rank's rows of a step, by shard, and the number of rows all ranks take in it.

        Over the ``steps`` of an epoch every row comes exactly once. The arrays are views on one buffer, valid
        until the next call.
        """
        order, known, start = self._state
        if epoch != self._epoch:
            known[:], self._epoch = 0, epoch
        count = step_rows(self.first, self.length, self.shard, self.mine, step, self.steps, self.block,
                          self.key(epoch), self.shuffle, order, known, start, self._rows, self._stops)
        parts, start = [], 0
        for shard, stop in zip(self.shards, self._stops.tolist(), strict=True):
            if stop > start:
                parts.append(Part(shard, self._rows[start:stop]))
                start = stop
        return parts, count

    def rows(self, step: int, without: Collection[int] = ()) -> int:
        """Return how many rows all ranks take in a step, but those in the shards ``without``."""
        length = self.length
        if without:
            length = np.where(np.isin(self.shard, list(without)), 0, length)
        return int(rows_of_step(length, step, self.steps))

    def key(self, epoch: int) -> np.uint64:
        """Return what selects the order of an epoch."""
        return _key(self._seed, epoch)

    def everything(self) -> list[Part]:
        """Return all the rows this rank ever takes, in storage order, by shard."""
        low = [max(self.range[0], start) - start for start in self._offsets[:-1]]
        high = [min(self.range[1], stop) - start
                for start, stop in zip(self._offsets[:-1], self._offsets[1:], strict=True)]
        return [Part(s, np.arange(low[s], high[s])) for s in self.shards if high[s] > low[s]]


def _block_rows(dataset: Dataset, stripes: int) -> int:
    row_bytes = dataset.row_bytes()
    stripe_rows = dataset.rows // max(stripes, 1)
    least = min(LEAST_BLOCK_ROWS, LEAST_BLOCK_BYTES // row_bytes, stripe_rows // LEAST_BLOCKS)
    return max(1, min(MOST_BLOCK_BYTES // row_bytes, max(stripe_rows // BLOCKS_A_STRIPE, least)))


def _at_chunks(edges: np.ndarray, offsets: np.ndarray, chunk_rows: int) -> np.ndarray:
    """Move each edge to the nearest start of a chunk of its shard; none passes another."""
    inner = edges[1:-1]
    start = offsets[np.searchsorted(offsets, inner, side="right") - 1]
    moved = start + np.round((inner - start) / chunk_rows).astype(np.int64) * chunk_rows
    return np.maximum.accumulate(np.concatenate([edges[:1], np.minimum(moved, edges[-1]), edges[-1:]]))


def _key(seed: int, epoch: int) -> np.uint64:
    return np.uint64((seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
