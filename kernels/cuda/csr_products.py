"""Launches ``kernels/csr_products.cu``: products of sparse rows (CSR) with matrices of a few columns.

Arrays are as in the twin, ``kernels/csr_products.py``, but on the device. X·V has the same bits from run to run; XᵀY,
summed by atomics, has not. ``long_entries`` is how many entries X has at most in rows that are very long (see
`dml_hpc.kernels.cuda.long_rows`; None: nobody knows): with any, parts of such rows are dealt to all warps.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name
from dml_hpc.kernels.cuda import long_rows

_PACK_BYTES = 16
_WARP = 32
_BLOCKS_A_PROCESSOR = 8
_MOST_THREADS = 256
_PART = 2048
"""Entries of a very long row that a warp takes at a time. Also in ``csr_products.cu``."""


def fused(device: Device, data: Array, indices: Array, indptr: Array, V: Array, correction: Array | None, Y: Array,
          Z: Array, long_entries: int | None = None) -> None:
    """Y = X·V − 1·correctionᵀ and Z += Xᵀ·Y; ``correction`` is (l,), or None for zeros."""
    _sweep(device, (data, indices, indptr), V, correction, Y, Z, long_entries)


def products(device: Device, data: Array, indices: Array, indptr: Array, V: Array, correction: Array | None,
             Y: Array, long_entries: int | None = None) -> None:
    """Y = X·V − 1·correctionᵀ; ``correction`` is (l,), or None for zeros."""
    _sweep(device, (data, indices, indptr), V, correction, Y, None, long_entries)


def scatter(device: Device, data: Array, indices: Array, indptr: Array, Y: Array, Z: Array,
            long_entries: int | None = None) -> None:
    """Z += Xᵀ·Y."""
    _sweep(device, (data, indices, indptr), None, None, Y, Z, long_entries)


def column_sums(device: Device, Y: Array, out: Array) -> None:
    """out += Σ_i Y[i], in float64; Y is (rows, l) float32 or float64, ``out`` (l,) float64."""
    out += device.xp.sum(Y, axis=0, dtype="float64")


def dense(device: Device, data: Array, indices: Array, indptr: Array, shift: Array | None, inverse: Array | None,
          out: Array) -> None:
    """out = (X − shift)·inverse with its zeros, computed in float64; ``out`` (rows, features) is float32 or float64.

    ``shift`` and ``inverse`` are (features,) float64 or None: zeros, ones.
    """
    rows, features = out.shape
    kinds = ", ".join(map(cpp_name, (data.dtype, indices.dtype, out.dtype)))
    device.launch("csr_products.cu", f"dense<{kinds}>", min(rows, _BLOCKS_A_PROCESSOR * device.processors),
                  min(device.block_threads, _MOST_THREADS), data, indices, indptr, shift, inverse, out, rows, features)


def _sweep(device: Device, X: tuple[Array, Array, Array], V: Array | None, correction: Array | None, Y: Array,
           Z: Array | None, long_entries: int | None) -> None:
    """Take all rows; of what is cut, first the parts' products, and last what they add to Z."""
    rows = len(X[2]) - 1
    parts = long_rows.find(device, X[2], None, rows, _PART, len(X[0]) if long_entries is None else long_entries)
    if parts is None:
        _launch(device, X, V, correction, Y, Z, rows)
        return
    listed, products = (parts.parts, parts.used), None
    if V is not None:
        products = device.empty((parts.room, Y.shape[1]), Y.dtype)
        _launch(device, X, V, None, products, None, parts.room, True, *listed)
    _launch(device, X, V, correction, Y, Z, rows, True, None, None, parts.where, products)
    if Z is not None:
        _launch(device, X, None, None, Y, Z, parts.room, True, *listed)


def _launch(device: Device, X: tuple[Array, Array, Array], V: Array | None, correction: Array | None, Y: Array,
            Z: Array | None, rows: int, is_cut: bool = False, parts: Array | None = None, used: Array | None = None,
            where: Array | None = None, products: Array | None = None) -> None:
    """Run the kernel, whose comment says what its arguments are."""
    columns, threads = Y.shape[1], min(device.block_threads, _MOST_THREADS)
    pack = _PACK_BYTES // Y.dtype.itemsize
    pack = pack if columns % pack == 0 else 1
    lanes = min(_WARP, 1 << (-(-columns // pack) - 1).bit_length())
    warps = threads // _WARP
    kinds = ", ".join(map(cpp_name, (*(array.dtype for array in X[:2]), Y.dtype)))
    device.launch("csr_products.cu", f"sweep<{kinds}, {pack}, {str(is_cut).lower()}>",
                  min(-(-rows // warps), _BLOCKS_A_PROCESSOR * device.processors), threads,
                  *X, V, correction, Y, Z, rows, columns, lanes, parts, used, where, products)
