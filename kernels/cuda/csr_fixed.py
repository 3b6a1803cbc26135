"""Launches ``kernels/csr_fixed.cu``: XᵀY of sparse rows (CSR) in fixed point, the same bits in any order.

``data``, ``indices`` and ``indptr`` are as in ``kernels/csr_products.py``, but on the device.
"""

from __future__ import annotations

from dml_hpc.device import Array, Device, cpp_name

_WARP = 32
_BLOCKS_A_PROCESSOR = 8
_MOST_THREADS = 256
_ENTRIES_AT_ONCE = 256
"""That a warp takes. Also in ``csr_fixed.cu``."""


def scatter(device: Device, data: Array, indices: Array, indptr: Array, Y: Array, worth: Array | None,
            per_unit: float, sums: Array) -> None:
    """sums[i, j] += Σ rint(x·y·``worth[i]``·``per_unit``) over the entries x of column i and what y their rows have.

    Y (rows, l) is float32 or float64, ``worth`` (features,) float64 or None: ones, ``sums`` features·l int64. Each
    addend, and each total, must be finite and less than 2⁶³; products are float64.
    """
    columns, threads = Y.shape[1], min(device.block_threads, _MOST_THREADS)
    lanes = min(_WARP, 1 << (columns - 1).bit_length())
    warps = -(-len(data) // _ENTRIES_AT_ONCE)
    kinds = ", ".join(map(cpp_name, (data.dtype, indices.dtype, Y.dtype)))
    device.launch("csr_fixed.cu", f"scatter_fixed<{kinds}>",
                  min(-(-warps // (threads // _WARP)), _BLOCKS_A_PROCESSOR * device.processors), threads,
                  data, indices, indptr, Y, worth, per_unit, sums, len(indptr) - 1, columns, lanes)


def settle(device: Device, sums: Array, unit: Array, shift: Array, taken: Array, per_unit: float, out: Array) -> None:
    """out[i, j] += (sums[i, j]·unit[i] − shift[i]·taken[j])·``per_unit``, rounded to whole numbers; then sums = 0.

    ``sums`` and ``out`` have features·l elements of int64; ``unit`` and ``shift`` (features,) and ``taken`` (l,) are
    float64, in which all is computed but the last sum. That of ``out`` must stay below 2⁶³.
    """
    threads = min(device.block_threads, _MOST_THREADS)
    device.launch("csr_fixed.cu", "settle_shifted",
                  min(-(-len(out) // threads), _BLOCKS_A_PROCESSOR * device.processors), threads,
                  sums, unit, shift, taken, per_unit, out, len(unit), len(taken))
