"""Sparse rows: a matrix in compressed sparse row form (CSR)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Csr:
    """Rows × ``features``; row i holds ``data[k]`` at column ``indices[k]`` for ``indptr[i]`` ≤ k < ``indptr[i + 1]``.

    ``data`` and ``indices`` are (entries,), ``indptr`` is (rows + 1,) int64 and need not begin at 0, so that a range
    of rows is a view. The other entries are zero. Columns come in any order, none twice in a row.

    Where the arrays lie on a device, ``long_entries`` is how many entries there are at most in very long rows (see
    `dml_hpc.kernels.cuda.long_rows`), which only the host can say without waiting; None: nobody knows.
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    features: int
    long_entries: int | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, features), as of an array."""
        return self.rows, self.features

    @property
    def dtype(self) -> np.dtype:
        """Of the entries."""
        return self.data.dtype

    @property
    def nonzeros(self) -> int:
        """How many entries are stored."""
        return int(self.indptr[-1] - self.indptr[0])

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: slice) -> Csr:
        """Return a contiguous range of rows, as a view."""
        start, stop, _ = rows.indices(self.rows)
        indptr = self.indptr[start:max(start, stop) + 1]
        return Csr(self.data, self.indices, indptr, self.features, self.long_entries)

    def packed(self) -> Csr:
        """Return the same rows with ``indptr`` from 0 and nothing before or behind them; views where possible."""
        start, stop = int(self.indptr[0]), int(self.indptr[-1])
        return Csr(self.data[start:stop], self.indices[start:stop], self.indptr - start, self.features)

    def astype(self, dtype: np.dtype | str, copy: bool = True) -> Csr:
        """Return the rows with entries of another type; the same object where they have it and ``copy`` is false."""
        if not copy and self.dtype == dtype:
            return self
        packed = self.packed()
        return Csr(packed.data.astype(dtype), packed.indices, packed.indptr, self.features)

    def take(self, rows: np.ndarray) -> Csr:
        """Return copies of ``rows`` (count,), in their order."""
        lengths = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        places = np.repeat(self.indptr[:-1][rows] - indptr[:-1], lengths) + np.arange(indptr[-1])
        return Csr(self.data[places], self.indices[places], indptr, self.features)

    def dense(self, dtype: np.dtype | str | None = None) -> np.ndarray:
        """Return the rows as an array (rows, features)."""
        packed = self.packed()
        out = np.zeros(self.shape, dtype or self.dtype)
        out[np.repeat(np.arange(self.rows), np.diff(packed.indptr)), packed.indices] = packed.data
        return out


def concatenated(parts: list[Csr]) -> Csr:
    """Return the rows of ``parts`` (at least one, of the same features) one after the other."""
    packed = [part.packed() for part in parts]
    starts = np.cumsum([0, *(len(part.data) for part in packed)])
    indptr = np.concatenate([np.zeros(1, np.int64), *(part.indptr[1:] + start
                                                      for part, start in zip(packed, starts, strict=False))])
    return Csr(np.concatenate([part.data for part in packed]), np.concatenate([part.indices for part in packed]),
               indptr, packed[0].features)


def sparse(X: np.ndarray) -> Csr:
    """Return the non-zero entries of ``X`` (rows, features)."""
    rows, columns = np.nonzero(X)
    indptr = np.zeros(len(X) + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=len(X)), out=indptr[1:])
    return Csr(X[rows, columns], columns.astype(index_dtype(X.shape[1])), indptr, X.shape[1])


def index_dtype(features: int) -> np.dtype:
    """Return the type of column numbers that a shard of so many features stores."""
    return np.dtype(np.int32 if features <= 1 << 31 else np.int64)
