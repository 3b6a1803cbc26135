"""Launches ``kernels/csr_products.cu``: products of sparse rows (CSR) with matrices of a few columns.

Arrays are as in the twin, ``kernels/csr_products.py``, but on the device. X·V has the same bits from run to run; XᵀY,
summed by atomics, has not.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name

_PACK_BYTES = 16
_WARP = 32
_BLOCKS_A_PROCESSOR = 8
_MOST_THREADS = 256


def fused(device: Device, data: Array, indices: Array, indptr: Array, V: Array, correction: Array | None, Y: Array,
          Z: Array) -> None:
    """Y = X·V − 1·correctionᵀ and Z += Xᵀ·Y; ``correction`` is (l,), or None for zeros."""
    _sweep(device, data, indices, indptr, V, correction, Y, Z)


def products(device: Device, data: Array, indices: Array, indptr: Array, V: Array, correction: Array | None,
             Y: Array) -> None:
    """Y = X·V − 1·correctionᵀ; ``correction`` is (l,), or None for zeros."""
    _sweep(device, data, indices, indptr, V, correction, Y, None)


def scatter(device: Device, data: Array, indices: Array, indptr: Array, Y: Array, Z: Array) -> None:
    """Z += Xᵀ·Y."""
    _sweep(device, data, indices, indptr, None, None, Y, Z)


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


def _sweep(device: Device, data: Array, indices: Array, indptr: Array, V: Array | None, correction: Array | None,
           Y: Array, Z: Array | None) -> None:
    columns, threads = Y.shape[1], min(device.block_threads, _MOST_THREADS)
    pack = _PACK_BYTES // Y.dtype.itemsize
    pack = pack if columns % pack == 0 else 1
    lanes = min(_WARP, 1 << (-(-columns // pack) - 1).bit_length())
    rows, warps = len(indptr) - 1, threads // _WARP
    kinds = ", ".join(map(cpp_name, (data.dtype, indices.dtype, Y.dtype)))
    device.launch("csr_products.cu", f"sweep<{kinds}, {pack}>",
                  min(-(-rows // warps), _BLOCKS_A_PROCESSOR * device.processors), threads,
                  data, indices, indptr, V, correction, Y, Z, rows, columns, lanes)
