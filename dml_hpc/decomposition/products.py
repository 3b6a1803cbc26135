"""Products of a rank's chunks of A with thin matrices and with themselves, added to sums: here by BLAS and Numba."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.decomposition.sums import Sum

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix

ENTRIES_AN_ELEMENT = 32
"""So many sparse entries are summed in the products' own type before n × l float64 elements are worth adding to."""


class Products(ABC):
    """What goes through a rank's block of A once and multiplies; the caller sums over ranks.

    Products are computed in ``matrix.precision``. Arrays that come and go are the host's, float32 or float64. All raise
    `UserError` for an entry that is no finite number, in the pass that looks at every entry.
    """

    @property
    @abstractmethod
    def longest(self) -> int:
        """How many rows of dense products are summed in their precision, at most; sums of these are float64."""

    @abstractmethod
    def thin(self, V: np.ndarray, total: Sum, square: bool) -> None:
        """Add AᵀAV, and behind it with ``square`` (AV)ᵀAV; V is (columns, l).

        Collective over a grid row, whose ranks add up AV. What ``matrix.apart`` has room for goes there instead.
        """

    @abstractmethod
    def gram(self, P: np.ndarray | None, total: Sum) -> None:
        """Add BᵀB (n, n) of B = AP, P (n, n), or of A itself; this rank has all columns."""

    @abstractmethod
    def look_through(self) -> None:
        """Look at every entry, for ‖A‖_F² alone."""

    @abstractmethod
    def whole(self) -> Any:
        """Return this rank's block, which has all rows of A, as one array where products are computed."""

    @abstractmethod
    def outer(self, whole: Any, total: Sum) -> None:
        """Add BBᵀ of what `whole` returned."""

    @abstractmethod
    def back(self, whole: Any, U: np.ndarray) -> np.ndarray:
        """Return BᵀU (columns, l) of what `whole` returned."""


class HostProducts(Products):
    """By this rank's cores."""

    def __init__(self, matrix: Matrix):
        self.matrix = matrix

    @property
    def longest(self) -> int:
        return self.matrix.chunk_rows

    def thin(self, V: np.ndarray, total: Sum, square: bool) -> None:
        (self._sparse if self.matrix.sparse else self._dense)(V, total, square)

    def gram(self, P: np.ndarray | None, total: Sum) -> None:
        matrix, n, dtype = self.matrix, self.matrix.shape[1], self.matrix.precision
        product = np.empty((n, n), dtype)
        image = np.empty((0 if P is None else matrix.chunk_rows, n), dtype)
        for _, block in matrix.dense_chunks(dtype):
            with matrix.clock.phase("compute"), np.errstate(over="ignore", invalid="ignore"):
                if P is not None:
                    block = np.matmul(block, P, out=image[:len(block)])
                np.matmul(block.T, block, out=product)  # NumPy takes syrk for this: half the work
                total.add(product)

    def look_through(self) -> None:
        matrix = self.matrix
        if not matrix.sparse:
            for _ in matrix.dense_chunks(matrix.precision):
                pass
            return
        for number, parts in matrix.chunk_parts():
            for _, X in parts:
                assert isinstance(X, Csr)
                matrix.count(number, matrix.sparse_squares, X)

    def whole(self) -> np.ndarray:
        matrix = self.matrix
        own = np.empty((matrix.shape[0], matrix.columns[1] - matrix.columns[0]), matrix.precision)
        for number, block in matrix.dense_chunks(matrix.precision):
            own[number * matrix.chunk_rows:number * matrix.chunk_rows + len(block)] = block
        return own

    def outer(self, whole: np.ndarray, total: Sum) -> None:
        with self.matrix.clock.phase("compute"):
            step = max(1, (1 << 22) // max(len(whole), 1))
            for start in range(0, whole.shape[1], step):
                part = whole[:, start:start + step]
                total.add(part @ part.T)

    def back(self, whole: np.ndarray, U: np.ndarray) -> np.ndarray:
        with self.matrix.clock.phase("compute"):
            return whole.T @ U

    def _dense(self, V: np.ndarray, total: Sum, square: bool) -> None:
        matrix, (width, count) = self.matrix, V.shape
        step = min(matrix.block_rows, matrix.chunk_rows)
        image = np.empty((step, count), matrix.precision)
        back, squared = np.empty((width, count), matrix.precision), np.empty((count, count), matrix.precision)
        for number, chunk in matrix.dense_chunks(matrix.precision):
            for start in range(0, len(chunk), step):
                block = chunk[start:start + step]
                Y = image[:len(block)]
                with matrix.clock.phase("compute"):
                    np.matmul(block, V, out=Y)
                self._add_up(Y)
                with matrix.clock.phase("compute"):
                    np.matmul(block.T, Y, out=back)
                    total.add(back)
                    if square:
                        np.matmul(Y.T, Y, out=squared)
                        self._add_square(number, squared, total, width)

    def _sparse(self, V: np.ndarray, total: Sum, square: bool) -> None:
        from dml_hpc.kernels import csr_products

        matrix, (width, count) = self.matrix, V.shape
        W = V if matrix.inverse is None else (V * matrix.inverse[:, None]).astype(matrix.precision)
        # What X·W has too much; each rank of a grid row takes its own columns' share away.
        shifted = None if matrix.shift is None else (matrix.shift @ W.astype(np.float64)).astype(matrix.precision)
        image, back = np.empty((matrix.chunk_rows, count), matrix.precision), np.zeros((width, count), matrix.precision)
        squared, sums = np.empty((count, count), matrix.precision), np.zeros(count)
        entries = 0
        for number, parts in matrix.chunk_parts():
            for _, X in parts:
                assert isinstance(X, Csr)
                Y = image[:len(X)]
                with matrix.clock.phase("compute"):
                    matrix.count(number, matrix.sparse_squares, X)
                    if matrix.grid.row is None:
                        csr_products.fused(X.data, X.indices, X.indptr, W, shifted, Y, back)
                    else:
                        csr_products.products(X.data, X.indices, X.indptr, W, shifted, Y)
                if matrix.grid.row is not None:
                    self._add_up(Y)
                    with matrix.clock.phase("compute"):
                        csr_products.scatter(X.data, X.indices, X.indptr, Y, back)
                with matrix.clock.phase("compute"):
                    if shifted is not None:
                        csr_products.column_sums(Y, sums)
                    if square:
                        np.matmul(Y.T, Y, out=squared)
                        self._add_square(number, squared, total, width)
                entries += X.nonzeros
            if matrix.reproducible or entries >= ENTRIES_AN_ELEMENT * width:
                self._pass_on(back, sums, total)
                entries = 0
        self._pass_on(back, sums, total)

    def _add_square(self, number: int, square: np.ndarray, total: Sum, width: int) -> None:
        if self.matrix.apart is None:
            total.add(square, width * len(square))
        else:
            self.matrix.apart[number] += square

    def _pass_on(self, back: np.ndarray, sums: np.ndarray, total: Sum) -> None:
        """Add XᵀY ``back``, shifted by the column sums of Y and scaled, to ``total``; set both to zero."""
        with self.matrix.clock.phase("compute"):
            if self.matrix.shift is None and self.matrix.inverse is None:
                total.add(back)
            else:
                exact = back.astype(np.float64)
                if self.matrix.shift is not None:
                    exact -= np.outer(self.matrix.shift, sums)
                if self.matrix.inverse is not None:
                    exact *= self.matrix.inverse[:, None]
                total.add(exact)
            back[:] = 0
            sums[:] = 0

    def _add_up(self, Y: np.ndarray) -> None:
        """Collective over a grid row: add up its ranks' images of a chunk, in place."""
        if self.matrix.grid.row is not None:
            from mpi4py import MPI

            with self.matrix.clock.phase("communicate"):
                self.matrix.grid.row.Allreduce(MPI.IN_PLACE, Y)
