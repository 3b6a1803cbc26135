"""Rows from several shards as one matrix, for whoever does better with many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Rows
from dml_hpc.kernels import network, plain


class Joining:
    """Copies of at most ``most_rows(X)`` rows, X being like theirs; entries, targets and weights are of ``dtype``."""

    def __init__(self, most_rows: Callable[[np.ndarray | Csr], int], dtype: np.dtype):
        self._most_rows, self._dtype = most_rows, dtype
        self._X = np.empty((0, 0), dtype)
        self._y, self._weight = np.empty((2, 0), dtype)
        self._rows = np.empty(0, np.int64)

    def join(self, parts: Iterable[Rows]) -> Iterator[tuple[Rows, bool]]:
        """Yield all rows of ``parts``, each valid until the next, and whether they are known to be the last.

        What has so many rows or more, or is alone, stays as it is. ``parts`` may be valid one at a time: then
        nothing is known of the last unless it is a copy.
        """
        known = list(parts) if isinstance(parts, list) else []
        if len(known) == 1:
            yield known[0], True
            return
        held: list[Csr] = []
        count, weighted = 0, False
        for number, part in enumerate(parts):
            most = self._most_rows(part.X)
            if len(part.rows) >= most:
                yield part, number + 1 == len(known) and not count
                continue
            start = 0
            while start < len(part.rows):
                if count == most:
                    yield self._held(held, count, weighted), False
                    count = 0
                    held.clear()
                rows = part.rows[start:start + most - count]
                if not len(self._rows):
                    self._allocate(part.X, most)
                self._copy(part, rows, count, held)
                weighted = part.weight is not None
                start += len(rows)
                count += len(rows)
        if count:
            yield self._held(held, count, weighted), True

    def _allocate(self, X: np.ndarray | Csr, most: int) -> None:
        if not isinstance(X, Csr):
            self._X = np.empty((most, X.shape[1]), self._dtype)
        self._y, self._weight = np.empty((2, most), self._dtype)
        self._rows = np.arange(most)

    def _copy(self, part: Rows, rows: np.ndarray, first: int, held: list[Csr]) -> None:
        """Copy ``rows`` of a part to places ``first`` and on, sparse ones to the end of ``held``."""
        places = slice(first, first + len(rows))
        if isinstance(part.X, Csr):
            held.append(part.X.take(rows))
        else:
            network.gather(plain(part.X), rows, self._X[places])
        self._y[places] = part.y[rows]
        if part.weight is not None:
            self._weight[places] = part.weight[rows]

    def _held(self, held: list[Csr], count: int, weighted: bool) -> Rows:
        X = _stacked(held) if held else self._X
        return Rows(X, self._y, self._rows[:count], self._weight if weighted else None)


def _stacked(parts: list[Csr]) -> Csr:
    """Return packed matrices one above the other."""
    starts = np.cumsum([0, *(part.nonzeros for part in parts)])
    indptr = [part.indptr[:-1] + start for part, start in zip(parts, starts, strict=False)]
    return Csr(np.concatenate([part.data for part in parts]), np.concatenate([part.indices for part in parts]),
               np.concatenate([*indptr, starts[-1:]]), parts[0].features)
