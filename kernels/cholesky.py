"""Products of rows of float32 with one another, and solutions of what they make, by tiles that stay in registers."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.apart import apart
from dml_hpc.kernels.cholesky_blocks import factor_block, solve_block, substitute_block
from dml_hpc.kernels.tiles import (
    COMBINED,
    LANES,
    TILE_ROWS,
    TILE_VECTORS,
    add_narrow_tile,
    add_tile,
    combine,
    narrow_combine,
    products,
    subtract_narrow_tile,
    subtract_tile,
)


@njit(cache=True, nogil=True, error_model="numpy")
def add_products(left, left_at, right, right_at, count, width, A, stride):
    """Add Σ_e left_e right_eᵀ over ``count`` rows to the blocks of A on and above the diagonal.

    A has ``width`` rows and columns, one row ``stride`` elements after the other.
    """
    apart()
    for first in range(0, width, TILE_ROWS):
        column = first // LANES * LANES
        while column + TILE_VECTORS * LANES <= width:
            add_tile(left, left_at + first, right, right_at + column, width, count, A, first * stride + column, stride)
            column += TILE_VECTORS * LANES
        while column < width:
            add_narrow_tile(left, left_at + first, right, right_at + column, width, count, A, first * stride + column,
                            stride)
            column += LANES


@njit(cache=True, nogil=True, error_model="numpy")
def add_rows(rows, at, width, count, factors, factors_at, out):
    """out += Σ_e factors[e]·(row e of ``rows``), over ``count`` rows of ``width``."""
    apart()
    j = 0
    while j + COMBINED * LANES <= width:
        combine(rows, at + j, width, count, factors, factors_at, out, j)
        j += COMBINED * LANES
    while j < width:
        narrow_combine(rows, at + j, width, count, factors, factors_at, out, j)
        j += LANES


@njit(cache=True, nogil=True, error_model="numpy")
def factor(A, width, stride, least, inverses):
    """Replace the blocks of A on and above the diagonal by U, UᵀU = A, and a matrix B right of A, if any, by U⁻ᵀB.

    A has ``width`` rows, A and B together ``stride`` columns. ``inverses`` (width,) get 1/U_jj; a pivot U_jj² that is
    not above ``least[j]`` makes row j of U, its inverse and that row of U⁻ᵀB 0.
    """
    apart()
    for row in range(0, width, LANES):
        for first in range(row, row + LANES if row else row, TILE_ROWS):
            column = row
            while column + TILE_VECTORS * LANES <= stride:
                subtract_tile(A, first, A, column, stride, row, A, first * stride + column, stride)
                column += TILE_VECTORS * LANES
            while column < stride:
                subtract_narrow_tile(A, first, A, column, stride, row, A, first * stride + column, stride)
                column += LANES
        factor_block(A, row * stride + row, stride, least, row, inverses, row)
        for column in range(row + LANES, stride, LANES):
            solve_block(A, row * stride + row, row * stride + column, stride, inverses, row)


@njit(cache=True, nogil=True, error_model="numpy")
def substitute(A, width, stride, inverses, b, room):
    """Replace b (width,) by U⁻¹b, U being what `factor` has made of A; ``room`` has `LANES` elements."""
    apart()
    for row in range(width - LANES, -1, -LANES):
        if row + LANES < width:
            products(A, row * stride + row + LANES, stride, b, row + LANES, (width - row) // LANES - 1, room, 0)
            for j in range(LANES):
                b[row + j] -= room[j]
        substitute_block(A, row * stride + row, stride, inverses, row, b, row)


@njit(cache=True, nogil=True, error_model="numpy")
def multiply(rows, count, width, x, out):
    """Set ``out`` to the products of ``count`` rows with x (width,), and more up to the next sixteen."""
    apart()
    for e in range(0, count, LANES):
        products(rows, e * width, width, x, 0, width // LANES, out, e)


def sixteens(count: int) -> np.ndarray:
    """Return ``count`` zeros, float32, that begin with a cache line."""
    whole = np.zeros(count + LANES, np.float32)
    first = -whole.ctypes.data % 64 // 4
    return whole[first:first + count]
