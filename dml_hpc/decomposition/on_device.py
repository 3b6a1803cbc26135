"""Products of a rank's chunks of A by a GPU: rows go there, thin matrices and sums come back once a pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.decomposition.device_rows import DeviceSlabs, Slab
from dml_hpc.decomposition.device_sparse import FixedSparseImage, SparseImage
from dml_hpc.decomposition.device_sums import DeviceSums
from dml_hpc.decomposition.products import Products
from dml_hpc.decomposition.sums import Sum
from dml_hpc.device import Array, Device
from dml_hpc.errors import UserError

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix

BLOCK_BYTES = 128 << 20
"""Of dense rows that are multiplied at once, at most: launching then takes less time than multiplying."""
LAUNCHES_S = 4e-5
"""What launching a block's products is taken to cost Python: blocks that memory delivers sooner would wait for it."""
MOST_ROWS = 1 << 18
"""That go through one kernel, or several, at once."""
BLOCK_ROWS = 8192
"""So many rows are summed in the products' precision, at most, before sums in float64 go on."""
GROUP_ROWS = 1024
"""Rows that one of many products at once sums: enough of these to keep all multiprocessors busy."""


class DeviceProducts(Products):
    """By a device, which keeps the rows where its memory holds them.

    Matrix products are the vendor's, or of one kernel that reads each row once (`kernels/products.cu`) where V is thin
    and rows are short enough for it. Products of blocks of rows are in the precision of the products, their sums in
    float64, or, of a reproducible matrix, in fixed point, block by block of each chunk. These blocks depend on the
    matrix alone, not on the device. Sums over a grid row go through the host.
    """

    def __init__(self, matrix: Matrix, device: Device, sharers: int):
        self.matrix, self.device = matrix, device
        self._rows = DeviceSlabs(matrix, device, sharers)
        self.shift = None if matrix.shift is None else device.put(matrix.shift)
        self.inverse = None if matrix.inverse is None else device.put(matrix.inverse)
        self._buffers: dict[str, Array] = {}

    @property
    def resident(self) -> bool:
        """Whether all rows are on the device."""
        return self._rows.resident

    @property
    def longest(self) -> int:
        """How many rows of dense products are summed in their precision, at most."""
        return BLOCK_ROWS

    def look_through(self) -> None:
        for _ in self._slabs():
            pass

    def thin(self, V: np.ndarray, total: Sum, square: bool) -> None:
        (self._sparse if self.matrix.sparse else self._dense)(V, total, square)

    def gram(self, P: np.ndarray | None, total: Sum) -> None:
        n, device = self.matrix.shape[1], self.device
        sums = DeviceSums(device, n * n, total)
        right = None if P is None else device.put(np.ascontiguousarray(P))
        for _, rows in self._blocks():
            B = self._prepared(rows)
            if right is not None:
                B = self.product("image", B, right)
            self.add_product(sums, "gram", B, B)
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
        sums = DeviceSums(self.device, m * m, total)
        for first in range(0, width, BLOCK_ROWS):
            part = whole[:, first:first + BLOCK_ROWS]
            sums.add(self.product("outer", part, part.T))
        sums.into(total, 0)

    def back(self, whole: Array, U: np.ndarray) -> np.ndarray:
        with self.matrix.clock.phase("compute"):
            return self.device.get(self.device.xp.matmul(whole.T, self.device.put(np.ascontiguousarray(U))))

    # Dense rows.

    def _dense(self, V: np.ndarray, total: Sum, square: bool) -> None:
        from dml_hpc.kernels.cuda import products

        matrix, device, (width, count) = self.matrix, self.device, V.shape
        right = device.put(np.ascontiguousarray(V, matrix.precision))
        image, squares = DeviceSums(device, width * count, total), _Squares(self, total, count if square else 0)
        fused = matrix.grid.row is None and products.fits(device, width, count, matrix.precision)
        for number, rows in self._blocks(fused):
            if fused:
                Y = self._buffer("image", (len(rows), count)) if square else None
                if total.unit is None:
                    products.fused(device, rows, self.shift, self.inverse, right, Y, image.sums)
                else:
                    products.fused_fixed(device, rows, self.shift, self.inverse, right, Y, matrix.chunk_rows,
                                         1 / total.unit, image.sums)
            else:
                B = self._prepared(rows)
                Y = self.product("image", B, right)
                self.add_up(Y)
                self.add_product(image, "back", B, Y)
            squares.add(number, Y)
        image.into(total, 0)
        squares.into(total, width * count)

    def _blocks(self, fused: bool = False) -> Iterator[tuple[int, Array | Csr]]:
        """Yield rows as stored, as (number of their first chunk, block); one pass.

        For the ``fused`` kernel a block has as many whole chunks as go through it. Else a block may not reach over a
        chunk's end where its bits show, or where another rank's would not.
        """
        chunk_rows = self.matrix.chunk_rows
        by_chunk = self.matrix.reproducible or self.matrix.grid.row is not None
        step, most = self._rows_at_once(), 0
        if fused:
            step = max(1, MOST_ROWS // chunk_rows) * chunk_rows
        elif by_chunk:
            step, most = chunk_rows, self._rows_at_once(alike=True)
        for slab in self._slabs():
            for start in range(0, len(slab.X), step):
                stop = min(start + step, len(slab.X))
                for first in range(start, stop, most or step):
                    yield (slab.first + first) // chunk_rows, slab.X[first:min(first + (most or step), stop)]

    def _rows_at_once(self, alike: bool = False) -> int:
        """Return how many rows are multiplied at once; ``alike``: on every device, and without parting them.

        Two products read a block. It has the bytes of half the cache, from which the second reads it, if that is enough
        for launching to take less time than reading. Where memory is too fast for so small a cache, as HBM is, blocks
        are as long as launching needs, and are read twice.
        """
        row_bytes = max(1, self.matrix.shape[1]) * self.matrix.precision.itemsize
        if alike:
            return max(1, min(BLOCK_ROWS, BLOCK_BYTES // row_bytes))
        half, speed = self.device.cache_bytes // 2, self.device.memory_bytes_per_s
        block_bytes = half if speed and half > LAUNCHES_S * speed else BLOCK_BYTES
        return max(1, min(MOST_ROWS, block_bytes // row_bytes))

    def _prepared(self, rows: Array | Csr, out: Array | None = None) -> Array:
        """Return rows of A in the products' precision, in ``out`` or a buffer, valid until the next call."""
        from dml_hpc.kernels.cuda import blocks, csr_products

        if self.shift is None and self.inverse is None and rows.dtype == self.matrix.precision and out is None \
                and not isinstance(rows, Csr):
            return rows
        out = self._buffer("prepared", rows.shape) if out is None else out
        if isinstance(rows, Csr):
            csr_products.dense(self.device, rows.data, rows.indices, rows.indptr, self.shift, self.inverse, out)
        else:
            blocks.prepared(self.device, rows, self.shift, self.inverse, out)
        return out

    # Sparse rows.

    def _sparse(self, V: np.ndarray, total: Sum, square: bool) -> None:
        matrix, (width, count) = self.matrix, V.shape
        image = (FixedSparseImage if matrix.reproducible else SparseImage)(self, V, total)
        squares = _Squares(self, total, count if square else 0)
        for slab in self._slabs():
            Y = self._buffer("image", (len(slab.X), count))
            image.add(slab, Y)
            squares.add(slab.first // matrix.chunk_rows, Y)
        image.into(total)
        squares.into(total, width * count)

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
                blocks.sum_of_squares(self.device, slab.X, self.shift, self.inverse, matrix.chunk_rows, some)
            yield slab
        if squares is not None:
            with matrix.clock.phase("compute"):
                found = self.device.get(squares)
            bad = np.flatnonzero(~np.isfinite(found))
            if len(bad):
                raise UserError(matrix.not_finite(first + int(bad[0])))
            matrix.squares[first:last] = found

    def add_product(self, sums: DeviceSums, name: str, A: Array, B: Array) -> None:
        """Add AᵀB of (rows, i) and (rows, j), in whose precision at most `longest` rows are summed.

        More rows go by groups, all of them in one call: narrow ones would else take longer to launch than to multiply.
        """
        if len(A) > self.longest:
            (_, i), (_, j) = A.shape, B.shape
            group = min(BLOCK_ROWS, max(GROUP_ROWS, 8 * j))  # so that groups' sums are short beside the rows
            groups = len(A) // group
            # As (BᵀA)ᵀ, because CuPy copies what is transposed, and B is the narrower one.
            parts = self.device.xp.matmul(B[:groups * group].reshape(groups, group, j).transpose(0, 2, 1),
                                          A[:groups * group].reshape(groups, group, i),
                                          out=self._buffer(name, (groups, j, i)))
            sums.add(parts.sum(axis=0, dtype="float64").T)
            A, B = A[groups * group:], B[groups * group:]
        if len(A):
            sums.add(self.product(name, A.T, B))

    def product(self, name: str, a: Array, b: Array) -> Array:
        """Return a·b in the buffer ``name``, valid until its next use."""
        return self.device.xp.matmul(a, b, out=self._buffer(name, (a.shape[0], b.shape[1])))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Array:
        size, held = math.prod(shape), self._buffers.get(name)
        if held is None or len(held) < size or held.dtype != self.matrix.precision:
            self._buffers[name] = held = None
            self._buffers[name] = held = self.device.empty(size, self.matrix.precision)
        return held[:size].reshape(shape)

    def add_up(self, Y: Array) -> None:
        """Collective over a grid row: add up its ranks' images of a block, in place."""
        if self.matrix.grid.row is not None:
            from mpi4py import MPI

            with self.matrix.clock.phase("compute"):
                own = self.device.get(Y)
            with self.matrix.clock.phase("communicate"):
                self.matrix.grid.row.Allreduce(MPI.IN_PLACE, own)
            self.device.put(own, Y)


class _Squares:
    """(AV)ᵀAV (l, l) of blocks, in one sum, or chunk by chunk where ``matrix.apart`` wants that; l may be 0."""

    def __init__(self, products: DeviceProducts, total: Sum, count: int):
        self._products, self._count = products, count
        self._sums = DeviceSums(products.device, count * count, total)
        first, last = products.matrix.chunks
        self._apart: Any = None
        if products.matrix.apart is not None:
            self._apart = products.device.zeros((last - first, count, count), "float64")

    def add(self, number: int, Y: Array | None) -> None:
        """Add YᵀY, Y (rows, l) being AV of a block: of rows of chunk ``number``, or of that one and those behind it."""
        products, matrix = self._products, self._products.matrix
        if not self._count or Y is None:
            return
        if not matrix.reproducible:
            products.add_product(self._sums, "square", Y, Y)
            return
        for start in range(0, len(Y), matrix.chunk_rows):
            into = None if self._apart is None else self._apart[number - matrix.chunks[0]]
            chunk = Y[start:start + matrix.chunk_rows]
            for first in range(0, len(chunk), products.longest):
                part = chunk[first:first + products.longest]
                square = products.product("square", part.T, part)
                if into is None:
                    self._sums.add(square)
                else:
                    into += square
            number += 1

    def into(self, total: Sum, start: int) -> None:
        """Wait, and hand over the sums."""
        if self._apart is None:
            self._sums.into(total, start)
        else:
            matrix = self._products.matrix
            assert matrix.apart is not None
            matrix.apart[slice(*matrix.chunks)] = self._products.device.get(self._apart)
