"""Blocks of a matrix on their way into a product, and products on their way into a sum. Nothing is checked."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from dml_hpc.kernels.lanes import converted
from dml_hpc.kernels.losses import FAST


@intrinsic
def _row(typing_context, X, i):
    """Return ``X[i]`` as contiguous, which it is though the type of X does not tell: else no loop is vectorised."""
    row = types.Array(X.dtype, 1, "C", readonly=not X.mutable)

    def emit(context, builder, signature, arguments):
        matrix = context.make_array(X)(context, builder, arguments[0])
        word = context.get_value_type(types.intp)
        offset = builder.mul(arguments[1], cgutils.unpack_tuple(builder, matrix.strides, 2)[0])
        first = builder.gep(builder.bitcast(matrix.data, ir.IntType(8).as_pointer()), [offset])
        out = context.make_array(row)(context, builder)
        width = ir.Constant(word, X.dtype.bitwidth // 8)
        cols = cgutils.unpack_tuple(builder, matrix.shape, 2)[1]
        populate_array(out, builder.bitcast(first, matrix.data.type), [cols], [width], width, None)
        return out._getvalue()

    return row(X, types.intp), emit


@njit(cache=True, nogil=True, error_model="numpy")
def prepared(X, shift, scale, out):
    """out = (X − shift)·(1/scale), computed in float64, then rounded to what ``out`` holds: float32 or float64.

    X and ``out`` are (rows, cols), X float16 as its bits (uint16), float32 or float64; each row is contiguous, but the
    next need not follow it. ``shift`` and ``scale`` are (cols,) float64; either may be None: zeros, ones. Without both,
    entries are only converted.
    """
    cols, like = X.shape[1], out.dtype.type(0)
    inverse = np.empty(0 if scale is None else cols)
    if scale is not None:
        for j in range(cols):
            inverse[j] = 1 / scale[j]
    for i in range(len(X)):
        x, z = _row(X, i), _row(out, i)
        if shift is None and scale is None:
            for j in range(cols):
                z[j] = converted(x[j], like)
        elif shift is None:
            for j in range(cols):
                z[j] = converted(x[j], 0.0) * inverse[j]
        elif scale is None:
            for j in range(cols):
                z[j] = converted(x[j], 0.0) - shift[j]
        else:
            for j in range(cols):
                z[j] = (converted(x[j], 0.0) - shift[j]) * inverse[j]


@njit(cache=True, nogil=True, fastmath=FAST)
def sum_of_squares(X):
    """Return Σ x² (float64), squared and summed in float64; X is (rows, cols) float32 or float64.

    Each row is contiguous, but the next need not follow it; entries (count,) are ``entries[None]``. What is not finite
    makes the sum NaN or infinite, and so do squares that float64 cannot hold.
    """
    total = 0.0
    for i in range(len(X)):
        x = _row(X, i)
        for j in range(len(x)):
            total += np.float64(x[j]) * np.float64(x[j])
    return total


@njit(cache=True, nogil=True)
def add_to(part, out):
    """out += part, of float32 or float64, to float64; both are flat."""
    for j in range(len(out)):
        out[j] += part[j]


@njit(cache=True, nogil=True)
def add_fixed(part, per_unit, out):
    """out += part·per_unit, rounded to the nearest whole number (halves to even), to int64; both are flat.

    ``part`` is float32 or float64, the product float64. It must be finite and less than 2⁶³.
    """
    for j in range(len(out)):
        out[j] += np.int64(np.rint(np.float64(part[j]) * per_unit))
