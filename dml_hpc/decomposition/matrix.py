"""A matrix in shards as a factorisation sees it: chunks of rows, products with thin matrices, sums over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.csr import Csr, index_dtype
from dml_hpc.data.dataset import Dataset
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.sums import OpenReducer, Sum
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable, plain
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from dml_hpc.console import Console

BLOCK_BYTES = 8 << 20
"""Of dense rows that are multiplied at once: they are read twice, the second time from the cache."""
MANY_CHUNKS, FEW_CHUNKS = 128, 16
LEAST_ROWS, SQUARE_ROWS, SQUARE_COLUMNS = 64, 4096, 8192
"""A matrix has `MANY_CHUNKS`, so that ranks get equal shares, unless they would have fewer rows than `LEAST_ROWS`, or
so few (up to `SQUARE_ROWS`) that adding n × n numbers for each would cost as much as computing them, for an n of up to
`SQUARE_COLUMNS`."""
MOST_APART = 1 << 25
"""Numbers of all chunks' (AV)ᵀAV that are kept apart."""
ENTRIES_AN_ELEMENT = 32
"""So many sparse entries are summed in the products' own type before n × l float64 elements are worth adding to."""


class Matrix:
    """This rank's block of A = (X − 1·shiftᵀ)·diag(1/scale), X being the m × n matrix of a data set's rows.

    Rows are cut into chunks: chunk c has rows c·``chunk_rows`` … min((c + 1)·``chunk_rows``, m) − 1 of the whole,
    whatever the number of ranks, and what is summed is summed chunk by chunk. A rank holds the chunks ``chunks``
    (first, last), the rows ``rows`` and the columns ``columns`` (first, last): all of them unless ``grid`` has several
    columns of ranks. Thin matrices of n rows, such as V, are dealt to all ranks: each has the rows ``thin`` (first,
    last), a part of its ``columns``; with ``reproducible`` every rank has all. ``shift`` and ``scale`` (n,) float64,
    None: 0 and 1.

    Whole rows stay where they are mapped; others, and blocks, are kept in memory if they take ``most_bytes`` at most
    (None: any), else read again in each pass. ``precision`` is the dtype in which products are computed; sums over
    chunks are float64, or, with ``reproducible``, fixed point (`Sum`). ``passes`` counts how often all of X was gone
    through.
    """

    def __init__(self, grid: Grid, dataset: Dataset, open_reducer: OpenReducer, clock: Clock, console: Console,
                 shift: np.ndarray | None = None, scale: np.ndarray | None = None, most_bytes: int | None = None,
                 reproducible: bool = False):
        self.grid, self.comm, self.dataset, self.clock = grid, grid.comm, dataset, clock
        self.shape = rows, columns = dataset.rows, dataset.features
        self.sparse = dataset.kind == "csr"
        self._block_rows = max(LEAST_ROWS, BLOCK_BYTES // (4 * columns))
        chunk_rows = -(-rows // MANY_CHUNKS)
        if not self.sparse:
            chunk_rows = min(chunk_rows, self._block_rows)
            if columns <= SQUARE_COLUMNS:
                chunk_rows = max(chunk_rows, min(2 * columns, SQUARE_ROWS, -(-rows // FEW_CHUNKS)))
        self.chunk_rows = max(LEAST_ROWS, chunk_rows)
        # Dense rows that are read are read so many at a time, which end where chunks do.
        self._piece_rows = -(-self.chunk_rows // -(-self.chunk_rows // self._block_rows))
        self.chunk_rows = -(-self.chunk_rows // self._piece_rows) * self._piece_rows
        self.all_chunks = -(-rows // self.chunk_rows)
        cuts = [min(self.all_chunks, round(row / self.chunk_rows)) for row in dataset.partition(grid.shape[0])]
        cuts[-1] = self.all_chunks
        self.chunks = cuts[grid.place[0]], cuts[grid.place[0] + 1]
        self.rows = min(self.chunks[0] * self.chunk_rows, rows), min(self.chunks[1] * self.chunk_rows, rows)
        self.columns = split(columns, grid.shape[1], grid.place[1])
        self._parts = [split(self.columns[1] - self.columns[0], grid.shape[0], place) for place in range(grid.shape[0])]
        self.thin = self.columns
        if not reproducible:
            first, last = self._parts[grid.place[0]]
            self.thin = self.columns[0] + first, self.columns[0] + last
        own = slice(*self.columns)
        self.shift = None if shift is None else np.ascontiguousarray(shift[own])
        self._scale = None if scale is None else np.ascontiguousarray(scale[own])
        self._inverse = None if scale is None else 1 / scale[own]
        self.precision = np.dtype(np.float32 if np.dtype(dataset.manifest.dtype).itemsize <= 4 else np.float64)
        self.reproducible = reproducible
        self.passes = 0
        self._counted = 1
        self.summed_by = ""
        """The reducer that summed last."""
        self._open_reducer, self._console, self._most_bytes = open_reducer, console, most_bytes
        self._squares = np.zeros(self.all_chunks)
        self._squared_norm: float | None = None
        self._fitting = self._fits()
        self._mapped = False
        self._held: list[tuple[int, np.ndarray | Csr]] | None = None
        self._buffer = np.empty(0)
        self._apart: np.ndarray | None = None
        self._sums: dict[tuple[int, bool], Sum] = {}

    # What the rest of the room builds on.

    def dense_chunks(self, dtype: np.dtype) -> Iterator[tuple[int, np.ndarray]]:
        """Yield this rank's chunks of A as (number, (count, columns) of ``dtype``), each valid until the next.

        One pass over the data. Raises `UserError` for an entry that is no finite number, naming its place.
        """
        width = self.columns[1] - self.columns[0]
        as_stored = not self.sparse and self.shift is None and self._inverse is None
        for number, parts in self._chunk_parts():
            with self.clock.phase("compute"):
                first, X = parts[0]
                if len(parts) == 1 and as_stored and X.dtype == dtype:
                    assert isinstance(X, np.ndarray)
                    block = X
                else:
                    count = self._rows_of(number)
                    if self._buffer.dtype != dtype or len(self._buffer) < count:
                        self._buffer = np.empty((self.chunk_rows, width), dtype)
                    block = self._buffer[:count]
                    for first, X in parts:
                        place = first - number * self.chunk_rows
                        dense = X.dense() if isinstance(X, Csr) else X
                        self._prepare(dense, block[place:place + len(dense)])
                self._count(number, _squares, block)
            yield number, block

    def _prepare(self, X: np.ndarray, out: np.ndarray) -> None:
        """Write (X − 1·shiftᵀ)·diag(1/scale) to ``out``; what only changes type needs no kernel, nor its start-up."""
        if self.shift is None and self._scale is None:
            out[:] = X
        else:
            from dml_hpc.kernels import blocks

            X = X if X.dtype.kind == "f" else X.astype(np.float64)
            blocks.prepared(plain(X), self.shift, self._scale, out)

    def gram_products(self, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Collective: return Z = AᵀAV (thin, l) and S = VᵀAᵀAV (l, l), float64, from one pass over the data.

        ``V`` (thin, l) are this rank's rows of a matrix with orthonormal columns, and Z is dealt as V is. X is read
        once: Y = BV of a chunk B is at hand when BᵀY is computed.
        """
        dealt, V = V, self._of_columns(V)
        width, count = V.shape
        if self.reproducible or self.grid.row is not None:  # what is wrong with the data shows before ranks meet
            norm = self.squared_norm()
        total = self.sum_of(width * count + count * count)
        total.clear(norm if self.reproducible else 1.0)
        # In fixed point S would lose what is small beside ‖A‖²: its chunks are added up one after the other instead.
        self._apart = None
        if self.reproducible and self.all_chunks * count * count <= MOST_APART:
            self._apart = np.zeros((self.all_chunks, count, count))
        with self.clock.agreed(self.comm) if self.grid.row is None else nullcontext():
            (self._sparse_products if self.sparse else self._dense_products)(V, total)
        found = total.total()
        if self.unsafe():
            return self.gram_products(dealt)
        S = found[width * count:].reshape(count, count).copy()
        if self._apart is not None:
            apart = np.empty_like(self._apart)
            with self.clock.phase("communicate"):
                self.comm.Allreduce(self._apart, apart)
            S = apart.sum(axis=0)
        Z = found[:width * count].reshape(width, count)[self.thin[0] - self.columns[0]:self.thin[1] - self.columns[0]]
        return Z.copy(), S

    def unsafe(self) -> bool:
        """Collective: say whether products have to be done again in float64, which is then the precision.

        Raises `AgreedError` where squares are beyond float64, too.
        """
        squared = self.squared_norm()
        if self.precision == np.float32:
            if squared == 0 or _LEAST < squared < _MOST:
                return False
            self.go_double()
            return True
        with agreed(self.comm):
            if squared != 0 and not _LEAST_DOUBLE < squared < _MOST_DOUBLE:
                raise UserError(f"{self.dataset.path}: entries' squares add up to {squared:.1e}, too "
                                f"{'small' if squared < 1 else 'large'} for products in float64; scale the columns")
        return False

    def inner(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Collective: return aᵀb (i, j) of thin matrices."""
        with self.clock.phase("compute"):
            own = np.ascontiguousarray(a.T @ b)
        if self.reproducible:
            return own
        found = np.empty_like(own)
        with self.clock.phase("communicate"):
            self.comm.Allreduce(own, found)
        return found

    def dealt(self, V: np.ndarray) -> np.ndarray:
        """Return this rank's rows of a thin matrix (n, l) that every rank has."""
        return V[slice(*self.thin)]

    def _of_columns(self, V: np.ndarray) -> np.ndarray:
        """Collective over a grid column: return a thin matrix's rows of all its columns, in the products' precision."""
        own = np.ascontiguousarray(V, self.precision)
        if self.reproducible or self.grid.shape[0] == 1:
            return own
        found = np.empty((self.columns[1] - self.columns[0], own.shape[1]), self.precision)
        counts = [(last - first) * own.shape[1] for first, last in self._parts]
        with self.clock.phase("communicate"):
            self.grid.column.Allgatherv(own, [found, counts])
        return found

    def squared_norm(self) -> float:
        """Collective: return ‖A‖_F²: the chunks' sums, added with one rounding. A pass, if there was none yet."""
        if self._squared_norm is None:
            if self.passes < self._counted:
                with self.clock.agreed(self.comm):
                    self._look_through()
            with self.clock.phase("communicate"):
                squares = np.empty_like(self._squares)
                self.comm.Allreduce(self._squares, squares)
            self._squared_norm = math.fsum(squares.tolist())
        return self._squared_norm

    def sum_of(self, size: int, over_all: bool = False) -> Sum:
        """Collective: return a sum (size,) over the grid column, or over all ranks; `close` lets go of it."""
        key = size, over_all
        if key not in self._sums:
            for old in self._sums.values():
                old.close()
            self._sums = {key: Sum(self.comm if over_all else self.grid.column, size, self._open_reducer, self.clock,
                                   self.reproducible)}
        self.summed_by = self._sums[key].summed_by
        return self._sums[key]

    def gathered(self, V: np.ndarray) -> np.ndarray:
        """Collective: return all rows (n, l) of a thin matrix."""
        if self.reproducible:
            return V
        found = np.empty((self.shape[1], V.shape[1]))
        for (first, last), rows in self.comm.allgather((self.thin, V)):
            found[first:last] = rows
        return found

    def close(self) -> None:
        """Collective: let go of what sums."""
        for one in self._sums.values():
            one.close()
        self._sums = {}

    def __enter__(self) -> Matrix:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.close()

    def go_double(self) -> None:
        """Compute products in float64 from now on, and ‖A‖_F² anew in the next pass."""
        if self.precision != np.float64:
            self.precision, self._squared_norm = np.dtype(np.float64), None
            self._squares[:] = 0
            self._counted = self.passes + 1

    # Products with chunks.

    def _dense_products(self, V: np.ndarray, total: Sum) -> None:
        width, count = V.shape
        step = min(self._block_rows, self.chunk_rows)
        image = np.empty((step, count), self.precision)
        back, square = np.empty((width, count), self.precision), np.empty((count, count), self.precision)
        for number, chunk in self.dense_chunks(self.precision):
            for start in range(0, len(chunk), step):
                block = chunk[start:start + step]
                Y = image[:len(block)]
                with self.clock.phase("compute"):
                    np.matmul(block, V, out=Y)
                self._add_up(Y)
                with self.clock.phase("compute"):
                    np.matmul(block.T, Y, out=back)
                    total.add(back)
                    np.matmul(Y.T, Y, out=square)
                    self._add_square(number, square, total, width)

    def _sparse_products(self, V: np.ndarray, total: Sum) -> None:
        from dml_hpc.kernels import csr_products

        width, count = V.shape
        W = V if self._inverse is None else (V * self._inverse[:, None]).astype(self.precision)
        # What X·W has too much; each rank of a grid row takes its own columns' share away.
        shifted = None if self.shift is None else (self.shift @ W.astype(np.float64)).astype(self.precision)
        image, back = np.empty((self.chunk_rows, count), self.precision), np.zeros((width, count), self.precision)
        square, sums = np.empty((count, count), self.precision), np.zeros(count)
        entries = 0
        for number, parts in self._chunk_parts():
            for _, X in parts:
                assert isinstance(X, Csr)
                Y = image[:len(X)]
                with self.clock.phase("compute"):
                    self._count(number, self._sparse_squares, X)
                    if self.grid.row is None:
                        csr_products.fused(X.data, X.indices, X.indptr, W, shifted, Y, back)
                    else:
                        csr_products.products(X.data, X.indices, X.indptr, W, shifted, Y)
                if self.grid.row is not None:
                    self._add_up(Y)
                    with self.clock.phase("compute"):
                        csr_products.scatter(X.data, X.indices, X.indptr, Y, back)
                with self.clock.phase("compute"):
                    if shifted is not None:
                        csr_products.column_sums(Y, sums)
                    np.matmul(Y.T, Y, out=square)
                    self._add_square(number, square, total, width)
                entries += X.nonzeros
            if self.reproducible or entries >= ENTRIES_AN_ELEMENT * width:
                self._pass_on(back, sums, total)
                entries = 0
        self._pass_on(back, sums, total)

    def _add_square(self, number: int, square: np.ndarray, total: Sum, width: int) -> None:
        if self._apart is None:
            total.add(square, width * len(square))
        else:
            self._apart[number] += square

    def _pass_on(self, back: np.ndarray, sums: np.ndarray, total: Sum) -> None:
        """Add XᵀY ``back``, shifted by the column sums of Y and scaled, to ``total``; set both to zero."""
        with self.clock.phase("compute"):
            if self.shift is None and self._inverse is None:
                total.add(back)
            else:
                exact = back.astype(np.float64)
                if self.shift is not None:
                    exact -= np.outer(self.shift, sums)
                if self._inverse is not None:
                    exact *= self._inverse[:, None]
                total.add(exact)
            back[:] = 0
            sums[:] = 0

    def _add_up(self, Y: np.ndarray) -> None:
        """Collective over a grid row: add up its ranks' images of a chunk, in place."""
        if self.grid.row is not None:
            from mpi4py import MPI

            with self.clock.phase("communicate"):
                self.grid.row.Allreduce(MPI.IN_PLACE, Y)

    # Reading.

    def _chunk_parts(self) -> Iterator[tuple[int, list[tuple[int, np.ndarray | Csr]]]]:
        """Yield this rank's chunks as (number, parts), a part being (number of its first row, rows of X).

        A chunk has several parts where shards meet in it. One pass.
        """
        self.passes += 1
        bar = self._console.bar(self.rows[1] - self.rows[0], f"svd, pass {self.passes}")
        held, parts = [], []
        hold = self._held is None and self._fitting
        pieces = self._pieces() if self._held is None else iter(self._held)
        while True:
            with self.clock.phase("read"):
                piece = next(pieces, None)
            if piece is None:
                break
            parts.append(piece)
            number = piece[0] // self.chunk_rows
            end = piece[0] + len(piece[1])
            if end == min((number + 1) * self.chunk_rows, self.shape[0]):
                if hold and not self._mapped and not self.sparse and len(parts) > 1:
                    parts = [(parts[0][0], np.concatenate([X for _, X in parts]))]
                held += parts if hold else []
                yield number, parts
                progressed()
                bar.advance(self._rows_of(number))
                parts = []
            elif self._held is None and not hold and not self._mapped:
                parts[-1] = piece[0], _copy(piece[1])  # it lies in a buffer that the next piece may take
        bar.close()
        if hold:
            self._held = held

    def _pieces(self) -> Iterator[tuple[int, np.ndarray | Csr]]:
        """Yield rows of this rank as (number of the first, block of X), cut at the ends of shards and chunks."""
        columns = self.columns if self.columns != (0, self.shape[1]) else None
        # Of rows of which others want the rest, the system would map that too, and it would count as ours.
        self._mapped = self._fitting and columns is None and self.dataset.mappable(*self.rows)
        most_rows = self.chunk_rows if self._mapped or self.sparse else self._piece_rows
        for piece in self.dataset.pieces(*self.rows, most_rows, mapped=self._mapped, aligned=True):
            X = piece.X
            if isinstance(X, Csr):
                X = X if columns is None else _sliced(X, *columns)
                X = X.astype(computable(X.dtype, np.dtype(np.float32), sparse=True), copy=False)
            elif columns is not None:
                X = X[:, columns[0]:columns[1]]
            yield piece.first, _copy(X) if self._fitting and not self._mapped else X

    def _rows_of(self, number: int) -> int:
        return min(self.chunk_rows, self.shape[0] - number * self.chunk_rows)

    def _fits(self) -> bool:
        share = (self.rows[1] - self.rows[0]) * (self.columns[1] - self.columns[0]) / max(self.shape[1], 1)
        return self._most_bytes is None or share * self.dataset.row_bytes() <= self._most_bytes

    # Looking at every entry once.

    def _look_through(self) -> None:
        """Go through the data once, for its norm alone."""
        if not self.sparse:
            for _ in self.dense_chunks(self.precision):
                pass
            return
        for number, parts in self._chunk_parts():
            for _, X in parts:
                assert isinstance(X, Csr)
                self._count(number, self._sparse_squares, X)

    def _count(self, number: int, squares_of: Callable[[Any], float], X: np.ndarray | Csr) -> None:
        """In the first pass of a precision add the squares' sum of a chunk, or of a part, to what is known."""
        if self.passes > self._counted:
            return
        squares = squares_of(X)
        if not math.isfinite(squares):
            raise UserError(self._not_finite(number))
        self._squares[number] += squares

    def _sparse_squares(self, X: Csr) -> float:
        """Return ‖(X − 1·shiftᵀ)·diag(1/scale)‖_F², its columns this rank's."""
        packed = X.packed()
        values = packed.data.astype(np.float64)
        inverse = 1.0 if self._inverse is None else self._inverse[packed.indices]
        if self.shift is None:
            return float(np.sum(np.square(values * inverse)))
        # Nothing is subtracted: the absent entries of each column are counted.
        absent = self.shift if self._inverse is None else self.shift * self._inverse
        missing = len(X) - np.bincount(packed.indices, minlength=len(absent))
        return float(np.sum(np.square((values - self.shift[packed.indices]) * inverse))
                     + np.sum(missing * np.square(absent)))

    def _not_finite(self, number: int) -> str:
        """Say where the first entry of a chunk is that is no finite number, or too large to be squared."""
        first = number * self.chunk_rows
        names, found = self.dataset.manifest.feature_names, "not a finite number"
        for row in range(first, first + self._rows_of(number)):
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
        return (f"{self.dataset.path}: the squares of rows {first} … {first + self._rows_of(number) - 1} add up to "
                "more than float64 holds; scale the columns down first")


_LEAST, _MOST = 1e-16, 1e32
"""Sums of squares between which float32 neither over- nor underflows where it matters."""
_LEAST_DOUBLE, _MOST_DOUBLE = 1e-200, 1e280
"""The same for float64, whose products are multiplied once more."""


def _squares(X: np.ndarray) -> float:
    """Return Σ x², row by row in the type of X, then in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.sum(np.einsum("ij,ij->i", X, X), dtype=np.float64))
        return found if X.dtype == np.float64 or _LEAST < found < _MOST else _squares(X.astype(np.float64))


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
