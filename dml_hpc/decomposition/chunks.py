"""A data set's rows as a factorisation reads them: one rank's chunks, pass after pass, and each entry's check."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable, plain
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console

LEAST, MOST = 1e-16, 1e32
"""Sums of squares between which float32 neither over- nor underflows where it matters."""


class Layout(NamedTuple):
    """How a matrix is cut, whatever the number of ranks, and which part of it a rank holds.

    Chunk c has rows c·``chunk_rows`` …; dense rows that are read are read ``piece_rows`` at a time, which end where
    chunks do, and multiplied ``block_rows`` at a time at most. ``chunks``, ``rows`` and ``columns`` are this rank's,
    (first, last).
    """

    all_chunks: int
    chunk_rows: int
    piece_rows: int
    block_rows: int
    chunks: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]


class Chunks:
    """This rank's block of A = (X − 1·shiftᵀ)·diag(1/scale), chunk after chunk, as `Matrix` says.

    Whole rows stay where they are mapped; others, and blocks, are kept in memory if they take ``most_bytes`` at most
    (None: any) and ``keeping``, else read again in each pass. ``passes`` counts how often all of X was gone through;
    in the first one of each ``precision`` every entry is looked at, and `squares` then holds the chunks' shares of
    ‖A‖_F².
    """

    def __init__(self, comm: Intracomm, dataset: Dataset, layout: Layout, clock: Clock, console: Console,
                 shift: np.ndarray | None, scale: np.ndarray | None, most_bytes: int | None, keeping: bool = True):
        self.comm, self.dataset, self.clock, self.console = comm, dataset, clock, console
        self.shape = dataset.rows, dataset.features
        self.sparse = dataset.kind == "csr"
        self.all_chunks, self.chunk_rows, self._piece_rows, self.block_rows, self.chunks, self.rows, self.columns = \
            layout
        own = slice(*self.columns)
        self.shift = None if shift is None else np.ascontiguousarray(shift[own])
        self.scale = None if scale is None else np.ascontiguousarray(scale[own])
        self.inverse = None if scale is None else 1 / scale[own]
        self.precision = np.dtype(np.float32 if np.dtype(dataset.manifest.dtype).itemsize <= 4 else np.float64)
        self.passes = 0
        self.squares = np.zeros(self.all_chunks)
        """(all chunks,): Σ a² of those of this rank that it has looked at."""
        self.looked_at = 1
        """The pass that looks at every entry."""
        self._most_bytes, self._keeping = most_bytes, keeping
        self._fitting = self._fits()
        self._mapped = False
        self._held: list[tuple[int, np.ndarray | Csr]] | None = None
        self._buffer = np.empty(0)

    def dense_chunks(self, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
        """Yield this rank's chunks of A as (number, (count, columns) of ``dtype``), each valid until the next.

        One pass over the data. Raises `UserError` for an entry that is no finite number, naming its place.
        """
        width = self.columns[1] - self.columns[0]
        as_stored = not self.sparse and self.shift is None and self.inverse is None
        for number, parts in self.chunk_parts():
            with self.clock.phase("compute"):
                first, X = parts[0]
                if len(parts) == 1 and as_stored and X.dtype == dtype:
                    assert isinstance(X, np.ndarray)
                    block = X
                else:
                    count = self.rows_of(number)
                    if self._buffer.dtype != dtype or len(self._buffer) < count:
                        self._buffer = np.empty((self.chunk_rows, width), dtype)
                    block = self._buffer[:count]
                    for first, X in parts:
                        place = first - number * self.chunk_rows
                        dense = X.dense() if isinstance(X, Csr) else X
                        self._prepare(dense, block[place:place + len(dense)])
                self.count(number, _squares, block)
            yield number, block

    def _prepare(self, X: np.ndarray, out: np.ndarray) -> None:
        """Write (X − 1·shiftᵀ)·diag(1/scale) to ``out``; what only changes type needs no kernel, nor its start-up."""
        if self.shift is None and self.scale is None:
            out[:] = X
        else:
            from dml_hpc.kernels import blocks

            X = X if X.dtype.kind == "f" else X.astype(np.float64)
            blocks.prepared(plain(X), self.shift, self.scale, out)

    def chunk_parts(self) -> Iterator[tuple[int, list[tuple[int, np.ndarray | Csr]]]]:
        """Yield this rank's chunks as (number, parts), a part being (number of its first row, rows of X).

        A chunk has several parts where shards meet in it. One pass.
        """
        held, parts = [], []
        hold = self._held is None and self._fitting and self._keeping
        for piece in self.pieces():
            parts.append(piece)
            number = piece[0] // self.chunk_rows
            end = piece[0] + len(piece[1])
            if end == min((number + 1) * self.chunk_rows, self.shape[0]):
                if hold and not self._mapped and not self.sparse and len(parts) > 1:
                    parts = [(parts[0][0], np.concatenate([X for _, X in parts]))]
                held += parts if hold else []
                yield number, parts
                parts = []
            elif self._held is None and not hold and not self._mapped:
                parts[-1] = piece[0], _copy(piece[1])  # it lies in a buffer that the next piece may take
        if hold:
            self._held = held

    def pieces(self) -> Iterator[tuple[int, np.ndarray | Csr]]:
        """Yield this rank's rows as (number of the first, rows of X of one chunk), valid until the next. One pass."""
        self.passes += 1
        bar = self.console.bar(self.rows[1] - self.rows[0], f"svd, pass {self.passes}")
        pieces = self._read() if self._held is None else iter(self._held)
        while True:
            with self.clock.phase("read"):
                piece = next(pieces, None)
            if piece is None:
                break
            yield piece
            progressed()
            bar.advance(len(piece[1]))
        bar.close()

    def _read(self) -> Iterator[tuple[int, np.ndarray | Csr]]:
        """Yield rows of this rank as (number of the first, block of X), cut at the ends of shards and chunks."""
        columns = self.columns if self.columns != (0, self.shape[1]) else None
        # Of rows of which others want the rest, the system would map that too, and it would count as ours.
        self._mapped = self._fitting and columns is None and self.dataset.mappable(*self.rows)
        most_rows = self.chunk_rows if self._mapped or self.sparse else self._piece_rows
        for piece in self.dataset.pieces(*self.rows, most_rows, mapped=self._mapped, aligned=True):
            X = piece.X
            if isinstance(X, Csr):
                X = X.astype(computable(X.dtype, np.dtype(np.float32), sparse=True), copy=False)
                X = X if columns is None else _sliced(X, *columns)
            elif columns is not None:
                X = X[:, columns[0]:columns[1]]
            yield piece.first, _copy(X) if self._fitting and self._keeping and not self._mapped else X

    def rows_of(self, number: int) -> int:
        return min(self.chunk_rows, self.shape[0] - number * self.chunk_rows)

    def _fits(self) -> bool:
        share = (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0]) / max(self.shape[1], 1)
        return self._most_bytes is None or share * self.dataset.row_bytes() <= self._most_bytes

    # Looking at every entry once.

    def count(self, number: int, squares_of: Callable[[Any], float], X: np.ndarray | Csr) -> None:
        """In the first pass of a precision add the squares' sum of a chunk, or of a part, to what is known."""
        if self.passes > self.looked_at:
            return
        squares = squares_of(X)
        if not math.isfinite(squares):
            raise UserError(self.not_finite(number))
        self.squares[number] += squares

    def sparse_squares(self, X: Csr) -> float:
        """Return ‖(X − 1·shiftᵀ)·diag(1/scale)‖_F², its columns this rank's."""
        packed = X.packed()
        values = packed.data.astype(np.float64)
        inverse = 1.0 if self.inverse is None else self.inverse[packed.indices]
        if self.shift is None:
            return float(np.sum(np.square(values * inverse)))
        # Nothing is subtracted: the absent entries of each column are counted.
        absent = self.shift if self.inverse is None else self.shift * self.inverse
        missing = len(X) - np.bincount(packed.indices, minlength=len(absent))
        return float(np.sum(np.square((values - self.shift[packed.indices]) * inverse))
                     + np.sum(missing * np.square(absent)))

    def not_finite(self, number: int) -> str:
        """Say where the first entry of a chunk is that is no finite number, or too large to be squared."""
        first = number * self.chunk_rows
        names, found = self.dataset.manifest.feature_names, "not a finite number"
        for row in range(first, first + self.rows_of(number)):
            shard, place = self.dataset.place(row)
            one = self.dataset.row(row)
            values = one.X.dense()[0] if isinstance(one.X, Csr) else one.X
            bad = np.flatnonzero(~np.isfinite(values) | ~np.isfinite(np.square(values)))
            if len(bad):
                column = int(bad[0])
                if np.isfinite(values[column]):
                    found = "too large to be squared"
                name = names[column] if names else column
                return (f"{self.dataset.paths[shard]}: X[{place}, {column}] ('{name}') is {values[column]}, {found}; "
                        "mend or drop that row and import the data again")
        return (f"{self.dataset.path}: the squares of rows {first} … {first + self.rows_of(number) - 1} add up to "
                "more than float64 holds; scale the columns down first")



def _squares(X: np.ndarray) -> float:
    """Return Σ x², row by row in the type of X, then in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.sum(np.einsum("ij,ij->i", X, X), dtype=np.float64))
        return found if X.dtype == np.float64 or LEAST < found < MOST else _squares(X.astype(np.float64))


def _copy(X: np.ndarray | Csr) -> np.ndarray | Csr:
    if isinstance(X, Csr):
        packed = X.packed()
        return Csr(packed.data.copy(), packed.indices.copy(), packed.indptr.copy(), X.features)
    return X.copy()


def _sliced(X: Csr, first: int, last: int) -> Csr:
    """Return columns ``first`` … ``last − 1`` of sparse rows, numbered from 0."""
    from dml_hpc.kernels import csr_products

    indptr = np.empty_like(X.indptr)
    csr_products.count_columns(X.indices, X.indptr, first, last, indptr)
    data, indices = np.empty(indptr[-1], X.dtype), np.empty(indptr[-1], index_dtype(last - first))
    csr_products.slice_columns(X.data, X.indices, X.indptr, first, last, indptr, data, indices)
    return Csr(data, indices, indptr, last - first)
