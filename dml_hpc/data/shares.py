"""The machines' shares of the rows, for algorithms that learn alone and average: random, whatever the storage order.

Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent*, NIPS 2010. A share is none of the
contiguous ranges of `dml_hpc.data.batches`: each machine is to see a sample of the whole data set.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.data.reading import Arrays, Loaded, Prepare, Reader, Rows
from dml_hpc.kernels.random import bits, stream
from dml_hpc.kernels.shares import BLOCK_ROWS, MIXED_BLOCKS, STRIP_ROWS, dealt, dealt_rows, drawn_rows, group_rows

CHUNK_ROWS = 8 * MIXED_BLOCKS * BLOCK_ROWS
"""The most rows that a step takes."""
_DEAL, _ORDER, _DRAWS = range(3)


class Share(Protocol):
    """The rows of one machine: ``count`` an epoch, in ``steps`` steps, the same number for every machine."""

    count: int
    steps: int

    def take(self, epoch: int, step: int) -> np.ndarray:
        """Return the global numbers of a step's rows (≤ `CHUNK_ROWS`,) int64, in the order in which to visit them.

        Valid until the next call. The last step of a machine may have none.
        """
        ...


class DealtShare:
    """The share of algorithm 3: all rows are dealt to the ``machines`` once, then each shuffles its own every epoch.

    Of every ``machines`` consecutive strips of `STRIP_ROWS` rows each machine gets one, at random, and of the rest one
    of every ``machines`` rows, so that shares differ by one row at most and lie in storage order. An epoch visits
    blocks of `BLOCK_ROWS` rows of the share in random order, the rows of `MIXED_BLOCKS` of them mixed: storage is read
    by the block, and no two neighbours in it need follow each other.
    Nothing is stored for a row. Without ``shuffle`` rows are dealt in turn, and visited in storage order.
    """

    def __init__(self, rows: int, machine: int, machines: int, seed: int = 0, shuffle: bool = True):
        self._place = machine, machines
        self._shuffle = shuffle
        self._deal, self._order = np.uint64(stream(seed, _DEAL)), np.uint64(bits(stream(seed, _ORDER), machine))
        self._strips = rows // (machines * STRIP_ROWS) if shuffle else 0
        runs, rest = divmod(rows - self._strips * machines * STRIP_ROWS, machines)
        here = dealt(self._strips + runs, machine, machines, self._deal) if shuffle else machine
        least = self._strips * STRIP_ROWS + runs
        self.count = least + (here < rest)
        self.steps = max(1, -(-(least + (rest > 0)) // CHUNK_ROWS))
        self._rows = np.empty(min(self.count, CHUNK_ROWS), np.int64)

    def take(self, epoch: int, step: int) -> np.ndarray:
        """See `Share.take`."""
        machine, machines = self._place
        first, last = (min(edge * CHUNK_ROWS, self.count) for edge in (step, step + 1))
        if not self._shuffle:
            self._rows[:last - first] = machine + machines * np.arange(first, last)
            return self._rows[:last - first]
        blocks = -(-self.count // BLOCK_ROWS)
        first, last = (min(edge * CHUNK_ROWS // BLOCK_ROWS, blocks) for edge in (step, step + 1))
        found = dealt_rows(first, last, blocks, self._strips, self.count, machine, machines, self._deal,
                           np.uint64(bits(self._order, epoch)), self._rows)
        return self._rows[:found]


class DrawnShare:
    """The share of algorithm 2: ``draws`` rows an epoch, drawn from all ``rows`` with replacement by each machine."""

    def __init__(self, rows: int, draws: int, machine: int, seed: int = 0):
        self.count = draws if rows else 0
        self.steps = max(1, -(-draws // CHUNK_ROWS))
        self._all = rows
        self._key = np.uint64(bits(stream(seed, _DRAWS), machine))
        self._rows = np.empty(min(self.count, CHUNK_ROWS), np.int64)

    def take(self, epoch: int, step: int) -> np.ndarray:
        """See `Share.take`."""
        first, last = (min(edge * CHUNK_ROWS, self.count) for edge in (step, step + 1))
        found = self._rows[:last - first]
        drawn_rows(epoch * self.count + first, self._all, self._key, found)
        return found


def warm_up() -> None:
    """Have the kernels of shares compiled, or read from Numba's cache."""
    for share in (DealtShare(1, 0, 1), DrawnShare(1, 1, 0)):
        group_rows(share.take(0, 0), np.arange(2), 1, np.empty(1, np.int32), np.empty((1, 1), np.int64),
                   np.empty(1, np.int64))


def load_all(dataset: Dataset, prepare: Prepare, dtype: np.dtype) -> Loaded:
    """Return all rows of a data set at hand, for any number of `SharesReader`."""
    rows = [shard.rows for shard in dataset.manifest.shards]
    return Loaded(dataset, {number: (0, count) for number, count in enumerate(rows)}, prepare, dtype)


class SharesReader(Reader):
    """The rows of one machine's ``share``, wherever they are stored; `load_all` has them all at hand.

    Each of a step's pieces of some thousand rows is grouped by shard, and begins with another shard than the one before
    it. `everything` is the part of all rows that is rank ``rank``'s of ``size``, whatever the share.
    """

    def __init__(self, loaded: Loaded, share: Share, rank: int, size: int):
        start, stop = loaded.dataset.partition(size)[rank:rank + 2]
        super().__init__(loaded.dataset, share.steps, (start, stop))
        self.how = loaded.how
        self.share, self.count = share, share.count
        self._loaded = loaded
        most = min(share.count, CHUNK_ROWS)
        shards = len(self.dataset.paths)
        # Rows of a shard come by the dozens at least, or calling the kernels would take longer than they do.
        self._piece = min(CHUNK_ROWS, BLOCK_ROWS * max(MIXED_BLOCKS, shards))
        self._rows, self._shards = np.empty(most, np.int64), np.empty(most, np.int32)
        self._stops = np.zeros((-(-CHUNK_ROWS // self._piece), shards), np.int64)
        if self.dataset.lost:
            self.count = sum(len(self.rows_of(0, step)) for step in range(self.steps))

    @property
    def used(self) -> int:
        """See `Reader.used`: ``count`` is without those that are left out."""
        return self.count

    def take(self, epoch: int, step: int) -> tuple[Iterable[Rows], int]:
        """See `Reader.take`: the count is that of this machine's rows."""
        rows = self.share.take(epoch, step)
        group_rows(rows, self.dataset.offsets, self._piece, self._shards, self._stops, self._rows)
        parts, start = [], 0
        for piece in range(-(-len(rows) // self._piece)):
            grouped = []
            for shard, stop in enumerate(self._stops[piece].tolist()):
                if stop > start:
                    grouped.append(self._loaded.rows(shard, self._rows[start:stop]))
                    start = stop
            turn = (len(self._stops) * step + piece + epoch) % len(grouped)
            parts += grouped[turn:] + grouped[:turn]
        if not self.dataset.lost:
            return parts, len(rows)
        parts = [part for part in parts if len(part.rows)]
        return parts, sum(len(part.rows) for part in parts)

    def everything(self) -> Iterable[Rows]:
        """See `Reader.everything`."""
        for first, last in self.dataset.ranges(*self.part):
            if last > first:
                shard, start = self.dataset.place(first)
                yield self._loaded.rows(shard, np.arange(start, start + last - first))

    def at_hand(self) -> list[Arrays] | None:
        """See `Reader.at_hand`."""
        return self._loaded.arrays()

    def rows_of(self, epoch: int, step: int) -> np.ndarray:
        """See `Reader.rows_of`."""
        rows = self.share.take(epoch, step)
        lost = np.zeros(len(self.dataset.paths), bool)
        lost[list(self.dataset.lost)] = True
        return rows[~lost[np.searchsorted(self.dataset.offsets, rows, side="right") - 1]]
