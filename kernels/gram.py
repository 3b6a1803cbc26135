"""Products of all rows of factors with one another, QᵀQ, whose bits do not depend on who has which rows."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.cholesky import add_products


@njit(cache=True, nogil=True, error_model="numpy")
def add_gram(rows, width, chunk, per_unit, work, out):
    """out += QᵀQ·per_unit, rounded to whole numbers a chunk of rows at a time.

    ``rows`` (n·width,) float32 begin with a chunk, a chunk has ``chunk`` rows. ``out`` (width·width,) int64, of which
    only what is right of the diagonal, and the diagonal, is meant. ``work`` (width·width,) float32. Whoever has which
    chunks, the sums of whole numbers are the same. The sum of |q_i·q_j|·per_unit must be less than 2⁶².
    """
    n = len(rows) // width
    for start in range(0, n, chunk):
        work[:] = 0
        add_products(rows, start * width, rows, start * width, min(chunk, n - start), width, work, width)
        for i in range(width):
            for j in range(i, width):
                out[i * width + j] += np.int64(np.rint(np.float64(work[i * width + j]) * per_unit))
