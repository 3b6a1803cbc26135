"""Where a shuffle puts every row."""

from __future__ import annotations

from numba import njit

from dml_hpc.kernels.sampling import permute


@njit(cache=True, nogil=True)
def destinations(first, rows, key, out):
    """Write where rows ``first`` … of ``rows`` go under the permutation ``key`` (uint64) to ``out`` (count,) int64."""
    for i in range(len(out)):
        out[i] = permute(first + i, rows, key)
