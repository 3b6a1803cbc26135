"""A matrix in shards as a factorisation sees it: products with thin matrices, sums over all ranks."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.dataset import Dataset
from dml_hpc.decomposition.chunks import LEAST, MOST, Chunks, Layout
from dml_hpc.decomposition.grid import Grid
from dml_hpc.decomposition.products import HostProducts, Products
from dml_hpc.decomposition.sums import OpenReducer, Sum
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.store.state import Values

if TYPE_CHECKING:
    from dml_hpc.console import Console
    from dml_hpc.device import Device

BLOCK_BYTES = 8 << 20
"""Of dense rows that are multiplied at once: they are read twice, the second time from the cache."""
MANY_CHUNKS, FEW_CHUNKS = 128, 16
LEAST_ROWS, SQUARE_ROWS, SQUARE_COLUMNS = 64, 4096, 8192
"""A matrix has `MANY_CHUNKS`, so that ranks get equal shares, unless they would have fewer rows than `LEAST_ROWS`, or
so few (up to `SQUARE_ROWS`) that adding n × n numbers for each would cost as much as computing them, for an n of up to
`SQUARE_COLUMNS`."""
MOST_APART = 1 << 25
"""Numbers of all chunks' (AV)ᵀAV that are kept apart."""
_LEAST_DOUBLE, _MOST_DOUBLE = 1e-200, 1e280
"""Sums of squares that float64 bears, whose products are multiplied once more."""


class Matrix(Chunks):
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
    through. With a ``device`` products are computed there, and rows stay there where ``sharers`` ranks on one GPU have
    the memory for it.
    """

    def __init__(self, grid: Grid, dataset: Dataset, open_reducer: OpenReducer, clock: Clock, console: Console,
                 shift: np.ndarray | None = None, scale: np.ndarray | None = None, most_bytes: int | None = None,
                 reproducible: bool = False, device: Device | None = None, sharers: int = 1):
        super().__init__(grid.comm, dataset, _layout(grid, dataset), clock, console, shift, scale, most_bytes,
                         keeping=device is None)
        self.grid, self.reproducible = grid, reproducible
        self._parts = [split(self.columns[1] - self.columns[0], grid.shape[0], place) for place in range(grid.shape[0])]
        self.thin = self.columns
        if not reproducible:
            first, last = self._parts[grid.place[0]]
            self.thin = self.columns[0] + first, self.columns[0] + last
        self.summed_by = ""
        """The reducer that summed last."""
        self._open_reducer = open_reducer
        self._squared_norm: float | None = None
        self.apart: np.ndarray | None = None
        """(all chunks, l, l): the chunks' (AV)ᵀAV, where these are not summed in fixed point."""
        self._sums: dict[tuple[int, bool], Sum] = {}
        self.products: Products = HostProducts(self)
        """Who multiplies."""
        self.on_device = device is not None
        if device is not None:
            from dml_hpc.decomposition.on_device import DeviceProducts

            self.products = DeviceProducts(self, device, sharers)

    def gram_products(self, V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Collective: return Z = AᵀAV (thin, l) and S = VᵀAᵀAV (l, l), float64, from one pass over the data.

        ``V`` (thin, l) are this rank's rows of a matrix with orthonormal columns, and Z is dealt as V is. X is read
        once: Y = BV of a chunk B is at hand when BᵀY is computed.
        """
        return self._gram_products(V, True)

    def gram_image(self, V: np.ndarray) -> np.ndarray:
        """Collective: return `gram_products`' Z alone."""
        return self._gram_products(V, False)[0]

    def _gram_products(self, dealt: np.ndarray, square: bool) -> tuple[np.ndarray, np.ndarray]:
        V = self._of_columns(dealt)
        width, count = V.shape
        squares = count * count if square else 0
        if self.reproducible or self.grid.row is not None:  # what is wrong with the data shows before ranks meet
            norm = self.squared_norm()
        total = self.sum_of(width * count + squares)
        total.clear(norm if self.reproducible else 1.0)
        # In fixed point S would lose what is small beside ‖A‖²: its chunks are added up one after the other instead.
        self.apart = None
        if self.reproducible and square and self.all_chunks * squares <= MOST_APART:
            self.apart = np.zeros((self.all_chunks, count, count))
        with self.clock.agreed(self.comm) if self.grid.row is None else nullcontext():
            self.products.thin(V, total, square)
        found = total.total()
        if self.unsafe():
            return self._gram_products(dealt, square)
        S = found[width * count:].copy().reshape((count, count) if square else (0, 0))
        if self.apart is not None:
            apart = np.empty_like(self.apart)
            with self.clock.phase("communicate"):
                self.comm.Allreduce(self.apart, apart)
            S = apart.sum(axis=0)
        Z = found[:width * count].reshape(width, count)[self.thin[0] - self.columns[0]:self.thin[1] - self.columns[0]]
        return Z.copy(), S

    def unsafe(self) -> bool:
        """Collective: say whether products have to be done again in float64, which is then the precision.

        Raises `AgreedError` where squares are beyond float64, too.
        """
        squared = self.squared_norm()
        if self.precision == np.float32:
            if squared == 0 or LEAST < squared < MOST:
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
            if self.passes < self.looked_at:
                with self.clock.agreed(self.comm):
                    self.products.look_through()
            with self.clock.phase("communicate"):
                squares = np.empty_like(self.squares)
                self.comm.Allreduce(self.squares, squares)
            self._squared_norm = math.fsum(squares.tolist())
        return self._squared_norm

    def state(self) -> Values:
        """Collective, between passes: return what passes have told, beside the products that were asked for."""
        known = self._squared_norm is not None or self.passes >= self.looked_at
        return {"passes": self.passes, "precision": self.precision.name,
                "squared_norm": self.squared_norm() if known else None}

    def restore(self, values: Values) -> None:
        """Go on from `state`, before the first pass, on any grid; entries are looked at once more in the next one."""
        self.passes, self.precision = values["passes"], np.dtype(values["precision"])
        self._squared_norm = values["squared_norm"]
        self.looked_at = self.passes + 1

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
            self.squares[:] = 0
            self.looked_at = self.passes + 1


def _layout(grid: Grid, dataset: Dataset) -> Layout:
    rows, columns = dataset.rows, dataset.features
    block_rows = max(LEAST_ROWS, BLOCK_BYTES // (4 * columns))
    chunk_rows = -(-rows // MANY_CHUNKS)
    if dataset.kind != "csr":
        chunk_rows = min(chunk_rows, block_rows)
        if columns <= SQUARE_COLUMNS:
            chunk_rows = max(chunk_rows, min(2 * columns, SQUARE_ROWS, -(-rows // FEW_CHUNKS)))
    chunk_rows = max(LEAST_ROWS, chunk_rows)
    piece_rows = -(-chunk_rows // -(-chunk_rows // block_rows))
    chunk_rows = -(-chunk_rows // piece_rows) * piece_rows
    all_chunks = -(-rows // chunk_rows)
    cuts = [min(all_chunks, round(row / chunk_rows)) for row in dataset.partition(grid.shape[0])]
    cuts[-1] = all_chunks
    first, last = cuts[grid.place[0]], cuts[grid.place[0] + 1]
    own = min(first * chunk_rows, rows), min(last * chunk_rows, rows)
    return Layout(all_chunks, chunk_rows, piece_rows, block_rows, (first, last), own,
                  split(columns, grid.shape[1], grid.place[1]))
