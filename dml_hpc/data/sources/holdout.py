"""Which rows are held out, and the rows of either part as a source of their own."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Protocol

import numpy as np

from dml_hpc.data.csr import Csr, concatenated
from dml_hpc.data.sources.source import RowSource

BLOCK_ROWS = 65_536
STEP_BYTES = 16 << 20


class Limits(Hashable, Protocol):
    """A share for each row instead of one for all."""

    def of(self, start: int, stop: int) -> np.ndarray:
        """Return the limits (stop − start,) of a range of rows, in 0 … 1."""
        ...


def draws(start: int, stop: int, seed: int) -> np.ndarray:
    """Return (stop − start,) numbers in 0 … 1: for row i the i-th double that PCG64 draws from ``seed``."""
    stream = np.random.PCG64(seed)
    stream.advance(start)
    return np.random.Generator(stream).random(stop - start)


def held_out(start: int, stop: int, share: float | Limits, seed: int) -> np.ndarray:
    """Say which of the rows ``start`` … ``stop`` − 1 are held out: (stop − start,) bool.

    A row is, when its draw is below ``share``, or below its own limit.
    """
    return draws(start, stop, seed) < (share if isinstance(share, float) else share.of(start, stop))


@lru_cache(maxsize=2)
def _held_before(rows: int, share: float | Limits, seed: int) -> np.ndarray:
    """Return how many rows are held out before each block of `BLOCK_ROWS` rows, and in all: (blocks + 1,) int64."""
    counts = [np.count_nonzero(held_out(start, min(start + BLOCK_ROWS, rows), share, seed))
              for start in range(0, rows, BLOCK_ROWS)]
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


class Held:
    """The rows of a source that are held out (with ``held``), or those that are not, in their order: a `RowSource`."""

    def __init__(self, source: RowSource, share: float | Limits, seed: int, held: bool):
        self.kind = source.kind
        self.features = source.features
        self.about = source.about
        self._source = source
        self._draw = share, seed
        self._held = held
        before = _held_before(source.rows, share, seed)
        starts = np.append(np.arange(0, source.rows, BLOCK_ROWS), source.rows)
        self._before = before if held else starts - before
        self.rows = int(self._before[-1])
        # A row of a sparse source takes far less than its width.
        width = 64 if source.kind == "csr" else source.features
        self._step = max(1, min(BLOCK_ROWS, STEP_BYTES // (8 * width)))

    def read(self, start: int, stop: int) -> tuple[np.ndarray | Csr, np.ndarray]:
        """Return rows ``start`` … ``stop`` − 1 of this part; see `RowSource`."""
        first = int(np.searchsorted(self._before, start, side="right")) - 1
        last = int(np.searchsorted(self._before, stop, side="left"))
        parts, labels = [], []
        for block in range(first, max(last, first + 1)):
            begin = block * BLOCK_ROWS
            rows = begin + self._places(block)[max(0, start - int(self._before[block])):
                                               max(0, stop - int(self._before[block]))]
            while len(rows):
                few = rows[:np.searchsorted(rows, rows[0] + self._step)]
                X, y = self._source.read(int(few[0]), int(few[-1]) + 1)
                inside = few - few[0]
                parts.append(X.take(inside) if isinstance(X, Csr) else X[inside])
                labels.append(y[inside])
                rows = rows[len(few):]
        if not parts:
            return self._source.read(0, 0)
        return joined(parts), np.concatenate(labels)

    def _places(self, block: int) -> np.ndarray:
        """Return this part's rows of a block, counted from its beginning."""
        begin = block * BLOCK_ROWS
        held = held_out(begin, max(begin, min(begin + BLOCK_ROWS, self._source.rows)), *self._draw)
        return np.flatnonzero(held == self._held)


def joined(parts: list[np.ndarray | Csr]) -> np.ndarray | Csr:
    """Return the rows of parts (at least one, of one kind) one after the other."""
    if len(parts) == 1:
        return parts[0]
    sparse = [part for part in parts if isinstance(part, Csr)]
    return concatenated(sparse) if sparse else np.concatenate([part for part in parts if not isinstance(part, Csr)])
