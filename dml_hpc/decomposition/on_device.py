"""Products of a rank's chunks of A by a GPU: rows go there, thin matrices and sums come back once a pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.decomposition.device_rows import DeviceSlabs, Slab
from dml_hpc.decomposition.products import ENTRIES_AN_ELEMENT, Products
from dml_hpc.decomposition.sums import Sum
from dml_hpc.device import Array, Device
from dml_hpc.errors import UserError

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix

BLOCK_BYTES = 128 << 20
"""Of dense rows that are multiplied at once, at most: launching then takes less time than multiplying."""
BLOCK_ROWS = 8192
"""The same in rows, which are summed in the products' precision before sums in float64 go on."""
FUSED_ROWS = 1 << 18
"""Of dense rows that one fused kernel goes through; it sums in float64 itself."""


class DeviceProducts(Products):
    """By a device, which keeps the rows where its memory holds them.

    Matrix products are the vendor's, or of one kernel that reads each row once (`kernels/products.cu`) where V is thin
    and rows are short enough for it. Products of blocks of rows are in the precision of the products, their sums in
    float64, or, of a reproducible matrix, in fixed point chunk by chunk. Sums over a grid row go through the host.
    """

    def __init__(self, matrix: Matrix, device: Device, sharers: int):
        self.matrix, self.device = matrix, device
        self._rows = DeviceSlabs(matrix, device, sharers)
        self._shift = None if matrix.shift is None else device.put(matrix.shift)
        self._inverse = None if matrix.inverse is None else device.put(matrix.inverse)
        self._buffers: dict[str, Array] = {}

    @property
    def resident(self) -> bool:
        """Whether all rows are on the device."""
        return self._rows.resident

    @property
    def longest(self) -> int:
        """How many rows of dense products are summed in their precision, at most."""
        return self._block_rows()

    def look_through(self) -> None:
        for _ in self._slabs():
            pass

    def thin(self, V: np.ndarray, total: Sum, square: bool) -> None:
        (self._sparse if self.matrix.sparse else self._dense)(V, total, square)

    def gram(self, P: np.ndarray | None, total: Sum) -> None:
        n, device = self.matrix.shape[1], self.device
        sums = _Sums(device, n * n, total)
        right = None if P is None else device.put(np.ascontiguousarray(P))
        for _, rows in self._blocks():
            B = self._prepared(rows)
            if right is not None:
                B = self._product("image", B, right)
            sums.add(self._product("gram", B.T, B))
        sums.into(total, 0)

    def whole(self) -> Array:
        matrix = self.matrix
        width = matrix.columns[1] - matrix.columns[0]
        needed = matrix.shape[0] * width * matrix.precision.itemsize
        if not self._rows.reserve(needed):
            raise UserError(f"--method gram takes {needed >> 20:,} MiB of a GPU's memory for these rows, more than "
                            "this rank's share of what is free; use --method randomized, or more ranks and GPUs")
        found = self.device.empty((matrix.shape[0], width), matrix.precision)
        for slab in self._slabs():
            self._prepared(slab.X, found[slab.first:slab.first + len(slab.X)])
        return found

    def outer(self, whole: Array, total: Sum) -> None:
        m, width = whole.shape
        sums = _Sums(self.device, m * m, total)
        for first in range(0, width, BLOCK_ROWS):
            part = whole[:, first:first + BLOCK_ROWS]
            sums.add(self._product("outer", part, part.T))
        sums.into(total, 0)

    def back(self, whole: Array, U: np.ndarray) -> np.ndarray:
        with self.matrix.clock.phase("compute"):
            return self.device.get(self.device.xp.matmul(whole.T, self.device.put(np.ascontiguousarray(U))))

    # Dense rows.

    def _dense(self, V: np.ndarray, total: Sum, square: bool) -> None:
        from dml_hpc.kernels.cuda import products

        matrix, device, (width, count) = self.matrix, self.device, V.shape
        right = device.put(np.ascontiguousarray(V, matrix.precision))
        image, squares = _Sums(device, width * count, total), _Squares(self, total, count if square else 0)
        fused = (total.unit is None and matrix.grid.row is None
                 and products.fits(device, width, count, matrix.precision))
        for number, rows in self._blocks(FUSED_ROWS if fused else None):
            if fused:
                Y = self._buffer("image", (len(rows), count)) if square else None
                products.fused(device, rows, self._shift, self._inverse, right, Y, image.sums)
            else:
                B = self._prepared(rows)
                Y = self._product("image", B, right)
                self._add_up(Y)
                image.add(self._product("back", B.T, Y))
            squares.add(number, Y)
        image.into(total, 0)
        squares.into(total, width * count)

    def _blocks(self, most_rows: int | None = None) -> Iterator[tuple[int, Array | Csr]]:
        """Yield rows as stored, as (number of their first chunk, block); one pass.

        A block has at most ``most_rows`` (None: `longest`), or of a reproducible matrix rows of one chunk.
        """
        step = most_rows or self._block_rows()
        chunk_rows = self.matrix.chunk_rows
        for slab in self._slabs():
            pieces = [slice(0, len(slab.X))]
            if self._by_chunk:
                pieces = [slice(first, min(first + chunk_rows, len(slab.X)))
                          for first in range(0, len(slab.X), chunk_rows)]
            for piece in pieces:
                for first in range(piece.start, piece.stop, step):
                    yield (slab.first + first) // chunk_rows, slab.X[first:min(first + step, piece.stop)]

    @property
    def _by_chunk(self) -> bool:
        """Whether a block may not reach over a chunk's end: for its bits, or as another rank's would not."""
        return self.matrix.reproducible or self.matrix.grid.row is not None

    def _block_rows(self) -> int:
        row_bytes = max(1, self.matrix.shape[1]) * self.matrix.precision.itemsize
        return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))

    def _prepared(self, rows: Array | Csr, out: Array | None = None) -> Array:
        """Return rows of A in the products' precision, in ``out`` or a buffer, valid until the next call."""
        from dml_hpc.kernels.cuda import blocks, csr_products

        if self._shift is None and self._inverse is None and rows.dtype == self.matrix.precision and out is None \
                and not isinstance(rows, Csr):
            return rows
        out = self._buffer("prepared", rows.shape) if out is None else out
        if isinstance(rows, Csr):
            csr_products.dense(self.device, rows.data, rows.indices, rows.indptr, self._shift, self._inverse, out)
        else:
            blocks.prepared(self.device, rows, self._shift, self._inverse, out)
        return out

    # Sparse rows.

    def _sparse(self, V: np.ndarray, total: Sum, square: bool) -> None:
        from dml_hpc.kernels.cuda import csr_products

        matrix, device, (width, count) = self.matrix, self.device, V.shape
        W = V if matrix.inverse is None else V * matrix.inverse[:, None]
        W = np.ascontiguousarray(W, matrix.precision)
        # What X·W has too much; each rank of a grid row takes its own columns' share away.
        correction = None
        if matrix.shift is not None:
            correction = device.put((matrix.shift @ W.astype(np.float64)).astype(matrix.precision))
        right, back = device.put(W), device.zeros((width, count), matrix.precision)
        image, sums = _Sums(device, width * count, total), device.zeros(count, "float64")
        squares, entries = _Squares(self, total, count if square else 0), 0
        for slab in self._slabs():
            X = slab.X
            assert isinstance(X, Csr)
            Y = self._buffer("image", (len(X), count))
            if matrix.grid.row is None:
                csr_products.fused(device, X.data, X.indices, X.indptr, right, correction, Y, back)
            else:
                csr_products.products(device, X.data, X.indices, X.indptr, right, correction, Y)
                self._add_up(Y)
                csr_products.scatter(device, X.data, X.indices, X.indptr, Y, back)
            if correction is not None:
                csr_products.column_sums(device, Y, sums)
            squares.add(slab.first // matrix.chunk_rows, Y)
            entries += len(X.data)
            if entries >= ENTRIES_AN_ELEMENT * width:
                image.add(back)
                back[...] = 0
                entries = 0
        image.add(back)
        self._standardise(image.sums.reshape(width, count), sums)
        image.into(total, 0)
        squares.into(total, width * count)

    def _standardise(self, Z: Array, sums: Array) -> None:
        """Make AᵀY of XᵀY, ``sums`` being those of the columns of Y."""
        if self._shift is not None:
            Z -= self._shift[:, None] * sums[None]
        if self._inverse is not None:
            Z *= self._inverse[:, None]

    # What both need.

    def _slabs(self) -> Iterator[Slab]:
        """Yield the rows; in the pass that looks at every entry, learn the squares of dense ones."""
        from dml_hpc.kernels.cuda import blocks

        matrix, (first, last) = self.matrix, self.matrix.chunks
        squares = None
        for slab in self._rows.slabs():
            if not matrix.sparse and matrix.passes <= matrix.looked_at:
                if squares is None:
                    squares = self.device.zeros(last - first, "float64")
                start = slab.first // matrix.chunk_rows - first
                some = squares[start:start - -len(slab.X) // matrix.chunk_rows]
                blocks.sum_of_squares(self.device, slab.X, self._shift, self._inverse, matrix.chunk_rows, some)
            yield slab
        if squares is not None:
            with matrix.clock.phase("compute"):
                found = self.device.get(squares)
            bad = np.flatnonzero(~np.isfinite(found))
            if len(bad):
                raise UserError(matrix.not_finite(first + int(bad[0])))
            matrix.squares[first:last] = found

    def _product(self, name: str, a: Array, b: Array) -> Array:
        """Return a·b in the buffer ``name``, valid until its next use."""
        return self.device.xp.matmul(a, b, out=self._buffer(name, (a.shape[0], b.shape[1])))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Array:
        size, held = math.prod(shape), self._buffers.get(name)
        if held is None or len(held) < size or held.dtype != self.matrix.precision:
            self._buffers[name] = held = None
            self._buffers[name] = held = self.device.empty(size, self.matrix.precision)
        return held[:size].reshape(shape)

    def _add_up(self, Y: Array) -> None:
        """Collective over a grid row: add up its ranks' images of a block, in place."""
        if self.matrix.grid.row is not None:
            from mpi4py import MPI

            with self.matrix.clock.phase("compute"):
                own = self.device.get(Y)
            with self.matrix.clock.phase("communicate"):
                self.matrix.grid.row.Allreduce(MPI.IN_PLACE, own)
            self.device.put(own, Y)


class _Sums:
    """Sums (size,) on the device, in float64 or in the fixed point of ``total``."""

    def __init__(self, device: Device, size: int, total: Sum):
        self._device, self._unit = device, total.unit
        self.sums = device.zeros(size, "float64" if total.unit is None else "int64")

    def add(self, part: Array) -> None:
        """Add an array of ``size`` elements."""
        from dml_hpc.kernels.cuda import blocks

        flat = part.reshape(-1)
        if self._unit is None:
            self.sums += flat
        else:
            blocks.add_fixed(self._device, flat, 1 / self._unit, self.sums)

    def into(self, total: Sum, start: int) -> None:
        """Wait, and add these to ``total`` from element ``start`` on."""
        with total.clock.phase("compute"):
            found = self._device.get(self.sums)
            (total.add if self._unit is None else total.add_units)(found, start)


class _Squares:
    """(AV)ᵀAV (l, l) of blocks, in one sum, or chunk by chunk where ``matrix.apart`` wants that; l may be 0."""

    def __init__(self, products: DeviceProducts, total: Sum, count: int):
        self._products, self._count = products, count
        self._sums = _Sums(products.device, count * count, total)
        first, last = products.matrix.chunks
        self._apart: Any = None
        if products.matrix.apart is not None:
            self._apart = products.device.zeros((last - first, count, count), "float64")

    def add(self, number: int, Y: Array | None) -> None:
        """Add YᵀY, Y (rows, l) being AV of a block that begins in chunk ``number``."""
        if not self._count or Y is None:
            return
        for first in range(0, len(Y), self._products.longest):
            part = Y[first:first + self._products.longest]
            square = self._products._product("square", part.T, part)
            if self._apart is None:
                self._sums.add(square)
            else:
                self._apart[number - self._products.matrix.chunks[0]] += square

    def into(self, total: Sum, start: int) -> None:
        """Wait, and hand over the sums."""
        if self._apart is None:
            self._sums.into(total, start)
        else:
            matrix = self._products.matrix
            assert matrix.apart is not None
            matrix.apart[slice(*matrix.chunks)] = self._products.device.get(self._apart)
