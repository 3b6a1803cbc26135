"""AᵀAV of sparse rows on a device: by float atomics, or in fixed point, with the same bits in any order."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.decomposition.device_rows import Slab
from dml_hpc.decomposition.device_sums import DeviceSums
from dml_hpc.decomposition.products import ENTRIES_AN_ELEMENT
from dml_hpc.decomposition.sums import Sum
from dml_hpc.device import Array

if TYPE_CHECKING:
    from dml_hpc.decomposition.on_device import DeviceProducts

_HEADROOM_BITS = 6
"""By which XᵀY of rows that are not yet shifted may pass its bound, as roundings of Y alone may be more than Y."""


class SparseImage:
    """Computes Y = AV slab by slab, and adds up AᵀY (columns, l); A = (X − 1·shiftᵀ)·diag(inverse), V the host's.

    Products are in the matrix's precision; sums too, until there are enough for float64.
    """

    def __init__(self, products: DeviceProducts, V: np.ndarray, total: Sum):
        self._products, self._matrix, self._device = products, products.matrix, products.device
        matrix, self._shape = self._matrix, V.shape
        W = V if matrix.inverse is None else V * matrix.inverse[:, None]
        W = np.ascontiguousarray(W, matrix.precision)
        self._right = self._device.put(W)
        self._correction: Array | None = None
        """What X·W has too much; each rank of a grid row takes its own columns' share away."""
        if matrix.shift is not None:
            self._correction = self._device.put((matrix.shift @ W.astype(np.float64)).astype(matrix.precision))
        self._sums = DeviceSums(self._device, math.prod(V.shape), total)
        self._taken = self._device.zeros(V.shape[1], "float64")
        """(l,): the columns' sums of Y."""
        self._prepare(total)

    def _prepare(self, total: Sum) -> None:
        self._back, self._entries = self._device.zeros(self._shape, self._matrix.precision), 0

    def add(self, slab: Slab, Y: Array) -> None:
        """Write AV of these rows to ``Y`` (rows, l), and add AᵀY."""
        from dml_hpc.kernels.cuda import csr_products

        X, device = slab.X, self._device
        assert isinstance(X, Csr)
        if self._matrix.grid.row is None:
            csr_products.fused(device, X.data, X.indices, X.indptr, self._right, self._correction, Y, self._back,
                               X.long_entries)
        else:
            csr_products.products(device, X.data, X.indices, X.indptr, self._right, self._correction, Y, X.long_entries)
            self._products.add_up(Y)
            csr_products.scatter(device, X.data, X.indices, X.indptr, Y, self._back, X.long_entries)
        if self._correction is not None:
            csr_products.column_sums(device, Y, self._taken)
        self._entries += len(X.data)
        if self._entries >= ENTRIES_AN_ELEMENT * self._shape[0]:
            self._sums.add(self._back)
            self._back[...] = 0
            self._entries = 0

    def into(self, total: Sum) -> None:
        """Wait, and add AᵀY to the beginning of ``total``."""
        self._sums.add(self._back)
        Z, products = self._sums.sums.reshape(self._shape), self._products
        if products.shift is not None:
            Z -= products.shift[:, None] * self._taken[None]
        if products.inverse is not None:
            Z *= products.inverse[:, None]
        self._sums.into(total, 0)


class FixedSparseImage(SparseImage):
    """The same, each entry's share of AᵀY rounded to the fixed point of ``total``; a rank has all columns.

    With a shift, inverse·XᵀY may be any number of times as large as AᵀY. It is then summed for a chunk alone, each
    column in a unit of its own that leaves room for ‖inverse·x‖·‖Av‖ ≤ (‖a‖ + |shift·inverse|·√m)·‖A‖_F, and what the
    shift takes off is taken off in float64. Chunks are the same on any number of ranks, and so are their roundings.
    """

    def _prepare(self, total: Sum) -> None:
        assert total.unit is not None
        matrix, device, inverse = self._matrix, self._device, self._matrix.inverse
        self._per_unit, self._worth = 1 / total.unit, self._products.inverse
        if matrix.shift is None:
            return
        per = np.ones(self._shape[0]) if inverse is None else inverse
        norm = math.sqrt(matrix.squared_norm())
        bounds = (norm + np.abs(matrix.shift) * per * math.sqrt(matrix.shape[0])) * norm
        unit = np.ldexp(1.0, np.frexp(bounds)[1] - 61 + _HEADROOM_BITS)
        self._unit, self._worth = device.put(unit), device.put(per / unit)
        self._scaled_shift = device.put(matrix.shift * per)
        self._of_chunk = device.zeros(math.prod(self._shape), "int64")

    def add(self, slab: Slab, Y: Array) -> None:
        from dml_hpc.kernels.cuda import csr_fixed, csr_products

        X, device, matrix = slab.X, self._device, self._matrix
        assert isinstance(X, Csr)
        csr_products.products(device, X.data, X.indices, X.indptr, self._right, self._correction, Y, X.long_entries)
        if matrix.shift is None:
            csr_fixed.scatter(device, X.data, X.indices, X.indptr, Y, self._worth, self._per_unit, self._sums.sums)
            return
        csr_fixed.scatter(device, X.data, X.indices, X.indptr, Y, self._worth, 1.0, self._of_chunk)
        csr_products.column_sums(device, Y, self._taken)
        number, end = slab.first // matrix.chunk_rows, slab.first + len(X)
        if end == number * matrix.chunk_rows + matrix.rows_of(number):
            csr_fixed.settle(device, self._of_chunk, self._unit, self._scaled_shift, self._taken, self._per_unit,
                             self._sums.sums)
            self._taken[...] = 0

    def into(self, total: Sum) -> None:
        self._sums.into(total, 0)
