"""The best items of users, and what is most alike: blocks of rows against blocks of columns, never all scores."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dml_hpc.kernels.top_items import ITEMS, USERS, packed_items, packed_users, ranked, top_items
from dml_hpc.store.ranked_table import LINE

BLOCK_ROWS = 256 * USERS
"""Rows that are compared with all columns before the next are taken."""
_CACHE_BYTES = 1 << 19
"""What a block of columns may take, so that it stays close while all rows of a block pass by."""
_NORM_ROWS = 1 << 14


class Best(NamedTuple):
    """The best columns of some rows, the best first: row ``rows[j]`` (count,) of all has ``counts[j]`` of them.

    ``columns`` (count, n) int32 and ``scores`` (count, n) float32 are −1 and −∞ behind these.
    """

    rows: np.ndarray
    columns: np.ndarray
    scores: np.ndarray
    counts: np.ndarray

    def lines(self) -> np.ndarray:
        """Return these as lines (n,) of a table, see `LINE`; places begin with 1."""
        used = np.arange(self.columns.shape[1]) < self.counts[:, None]
        lines = np.empty(np.count_nonzero(used), LINE)
        lines["row"] = np.repeat(self.rows, self.counts)
        lines["column"], lines["score"] = self.columns[used], self.scores[used]
        lines["rank"] = np.nonzero(used)[1] + 1
        return lines


@dataclass(frozen=True, eq=False)
class Side:
    """Users, or items: ``factors`` (count, k), float32 or float16, often mapped, as they are read in blocks.

    Rows are multiplied by ``factor`` (count,) float32; ``biases`` (count,) float32 are added to their scores.
    """

    factors: np.ndarray
    biases: np.ndarray | None = None
    factor: np.ndarray | None = None

    def some(self, numbers: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the rows (count, k) float32 of these numbers, and their biases."""
        rows = self.factors[numbers].astype(np.float32)
        if self.factor is not None:
            rows *= self.factor[numbers, None]
        return rows, None if self.biases is None else self.biases[numbers]


class Top:
    """Finds the ``n`` best ``columns`` of ``rows``: of largest mean + b + c + p·q, of equal ones that of lower number.

    ``allowed`` (any,) are the numbers of columns to choose from, ascending, None: all. Results depend neither on the
    other rows that are asked for, nor on threads.
    """

    def __init__(self, rows: Side, columns: Side, n: int, mean: float = 0.0, allowed: np.ndarray | None = None):
        self._rows, self._columns, self._mean = rows, columns, mean
        self._allowed = allowed
        self._choice = len(columns.factors) if allowed is None else len(allowed)
        self.n = max(1, min(n, self._choice))
        width = columns.factors.shape[1]
        self._step = max(1, _CACHE_BYTES // (4 * ITEMS * max(width, 1))) * ITEMS

    @staticmethod
    def compile() -> None:
        """Have the kernel compiled, or read from its cache, by running it on nothing."""
        Top(Side(np.zeros((1, 1), np.float32)), Side(np.zeros((1, 1), np.float32)), 1).best(np.zeros(1, np.int64))

    def best(self, rows: np.ndarray, starts: np.ndarray | None = None, without: np.ndarray | None = None) -> Best:
        """Return the best columns of ``rows`` (count,), numbers, up to `BLOCK_ROWS` of them or so.

        Never among those of the j-th are ``without[starts[j]:starts[j + 1]]``, int32, ascending; None: all may be.
        """
        count = len(rows)
        starts = np.zeros(count + 1, np.int64) if starts is None else starts
        left = np.empty(0, np.int32) if without is None else without
        if self._allowed is not None and len(left):
            starts, left = _among(self._allowed, starts, left)
        factors, biases = self._rows.some(rows)
        packed = packed_users(factors)
        scores, found = np.zeros((count, self.n), np.float32), np.zeros((count, self.n), np.int32)
        counts, cursors = np.zeros(count, np.int32), starts[:-1].copy()
        for first in range(0, self._choice, self._step):
            own = slice(first, min(first + self._step, self._choice))
            block = packed_items(*self._columns.some(own if self._allowed is None else self._allowed[own]))
            top_items(packed, *block, first, starts, left, cursors, scores, found, counts)
        ranked(scores, found, counts)
        scores += np.asarray(self._mean + (0.0 if biases is None else biases.astype(np.float64)[:, None]), np.float32)
        if self._allowed is not None:
            found = np.where(found < 0, -1, self._allowed[found]).astype(np.int32)
        return Best(rows, found, scores, counts)

    def blocks(self, rows: np.ndarray, starts: np.ndarray | None, without: np.ndarray | None,
               threads: int) -> Iterator[Best]:
        """Yield the best of ``rows`` (count,), block after block in their order; see `best`."""
        def one(first: int) -> Best:
            own = slice(first, first + BLOCK_ROWS)
            if starts is None or without is None:
                return self.best(rows[own])
            bounds = starts[first:first + BLOCK_ROWS + 1]
            return self.best(rows[own], bounds - bounds[0], without[bounds[0]:bounds[-1]])

        firsts = range(0, len(rows), BLOCK_ROWS)
        if threads == 1 or len(firsts) < 2:
            yield from map(one, firsts)
            return
        with ThreadPoolExecutor(min(threads, len(firsts))) as pool:
            yield from pool.map(one, firsts)


def _among(allowed: np.ndarray, starts: np.ndarray, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what is left out as places among ``allowed``, and where that of each row begins."""
    place = np.searchsorted(allowed, left)
    kept = allowed[np.minimum(place, len(allowed) - 1)] == left
    return np.concatenate([[0], np.cumsum(kept)])[starts], place[kept].astype(np.int32)


def one_length(factors: np.ndarray) -> np.ndarray:
    """Return what rows (count, k) are to be multiplied by to have the length 1 (count,) float32; 0 for one of zeros."""
    factor = np.zeros(len(factors), np.float32)
    for first in range(0, len(factors), _NORM_ROWS):
        rows = factors[first:first + _NORM_ROWS].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        np.divide(1, length, out=factor[first:first + _NORM_ROWS], where=length > 0, casting="same_kind")
    return factor
