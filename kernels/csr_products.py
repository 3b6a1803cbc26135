"""Products of sparse rows (CSR) X with matrices of a few columns: X·V, Xᵀ·Y, and both at one reading of the rows.

Row i of X has ``data[k]`` (float32 or float64) at column ``indices[k]`` (int32 or int64) for ``indptr[i]`` ≤ k <
``indptr[i + 1]``; ``indptr`` (rows + 1,) int64 need not begin at 0. V and Z are (features, l), Y is (rows, l), all
C-contiguous and of one dtype, float32 or float64, in which all is computed. Nothing is checked, so columns must lie in
0 … features − 1. Every sum is taken in the same order, whatever l is; what is not finite shows. An l that is a multiple
of 8 is fastest: what is left over is done a few columns at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import added, converted, multiply_add, store
from dml_hpc.kernels.prefetch import LINE_BYTES, prefetch
from dml_hpc.kernels.vectors import filled, load, width, zeros

_ENTRIES_AHEAD = 48
"""How many entries ahead their rows of V and Z are fetched: entries, as rows have anything from none to thousands."""
_PLACE = np.uintp
"""Of what is no negative number: else each access would ask whether to count from the end."""


def fused(data, indices, indptr, V, correction, Y, Z):
    """Y = X·V − 1·correctionᵀ and Z += Xᵀ·Y, each row of X being read once.

    ``correction`` is (l,), or None for zeros.
    """
    _fused(data, indices, indptr, V, _given(correction, V), Y, Z)


def products(data, indices, indptr, V, correction, Y):
    """Y = X·V − 1·correctionᵀ; ``correction`` is (l,), or None for zeros."""
    _products(data, indices, indptr, V, _given(correction, V), Y)


@njit(cache=True, nogil=True)
def scatter(data, indices, indptr, Y, Z):
    """Z += Xᵀ·Y."""
    _sweep(data, indices, indptr, None, None, Y, Z)


def _given(correction, V):
    """Return ``correction``, or zeros: a variant without any would take seconds more to compile, and save nothing."""
    return np.zeros(V.shape[1], V.dtype) if correction is None else correction


@njit(cache=True, nogil=True)
def _fused(data, indices, indptr, V, correction, Y, Z):
    _sweep(data, indices, indptr, V, correction, Y, Z)


@njit(cache=True, nogil=True)
def _products(data, indices, indptr, V, correction, Y):
    _sweep(data, indices, indptr, V, correction, Y, None)


@njit(forceinline=True)
def _sweep(data, indices, indptr, V, correction, Y, Z):
    """Compute Y unless V is None, then add to Z unless that is None: a row at a time, its columns by powers of two."""
    columns, like = Y.shape[1], Y.dtype.type(0)
    end = indptr[len(indptr) - 1]
    for i in range(len(indptr) - 1):
        span = indptr[i], indptr[i + 1], end
        j = 0
        while j + width(zeros(like, 1)) <= columns:
            j = _piece(zeros(like, 1), data, indices, span, V, correction, Y, Z, i, j)
        if j + width(zeros(like, 2)) <= columns:
            j = _piece(zeros(like, 2), data, indices, span, V, correction, Y, Z, i, j)
        if j + width(zeros(like, 4)) <= columns:
            j = _piece(zeros(like, 4), data, indices, span, V, correction, Y, Z, i, j)
        while j < columns:
            j = _piece(zeros(like, 32), data, indices, span, V, correction, Y, Z, i, j)


@njit(forceinline=True)
def _piece(vector, data, indices, span, V, correction, Y, Z, i, j):
    """Do the columns of row ``i`` from ``j`` on that ``vector``, of zeros, has elements for; return the next one."""
    start, stop, end = span
    columns, like = _PLACE(Y.shape[1]), Y.dtype.type(0)
    y = vector
    if V is None:
        y = load(Y, i * Y.shape[1] + j, vector)
    else:
        y = multiply_add(filled(V.dtype.type(-1), vector), load(correction, j, vector), vector)
        other, even = vector, stop - (stop - start) % 2
        for k in range(start, even, 2):
            # Two sums, because one would wait for each addition.
            _fetch(vector, V, indices, k, end, columns, j)
            _fetch(vector, V, indices, k + 1, end, columns, j)
            y = multiply_add(filled(converted(data[k], like), vector), _row(vector, V, indices, k, columns, j), y)
            other = multiply_add(filled(converted(data[k + 1], like), vector),
                                 _row(vector, V, indices, k + 1, columns, j), other)
        for k in range(even, stop):  # measured: as an "if" it takes half as long again
            y = multiply_add(filled(converted(data[k], like), vector), _row(vector, V, indices, k, columns, j), y)
        y = added(y, other)
        store(Y, i * Y.shape[1] + j, y)
    if Z is not None:
        for k in range(start, stop):
            _fetch(vector, Z, indices, k, end, columns, j)
            z = _row(vector, Z, indices, k, columns, j)
            z = multiply_add(filled(converted(data[k], like), vector), y, z)
            store(Z, _place(indices, k, columns, j), z)
    return j + width(vector)


@njit(forceinline=True)
def _place(indices, k, columns, j):
    return np.int64(_PLACE(indices[k]) * columns + _PLACE(j))


@njit(forceinline=True)
def _row(vector, M, indices, k, columns, j):
    return load(M, _place(indices, k, columns, j), vector)


@njit(forceinline=True)
def _fetch(vector, M, indices, k, end, columns, j):
    """Prefetch what an entry some way behind entry ``k`` needs of M's columns ``j`` …, unless that is one column."""
    if width(vector) > 1:
        place = _place(indices, min(k + _ENTRIES_AHEAD, end - 1), columns, j)
        for o in range(0, width(vector), LINE_BYTES // M.itemsize):
            prefetch(M, place + o)
        prefetch(M, place + width(vector) - 1)


@njit(cache=True, nogil=True)
def column_sums(Y, out):
    """out += Σ_i Y[i], in float64, row after row; Y is (rows, l) float32 or float64, ``out`` (l,) float64."""
    for i in range(len(Y)):
        y = Y[i]
        for j in range(len(out)):
            out[j] += y[j]


@njit(cache=True, nogil=True)
def count_columns(indices, indptr, first, last, counted):
    """First pass of taking columns ``first`` … ``last`` − 1: write their ``indptr``, from 0, to ``counted``.

    ``counted`` is (rows + 1,) int64. The columns of a row are in any order.
    """
    first, last = np.int64(first), np.int64(last)
    counted[0] = 0
    for i in range(len(indptr) - 1):
        found = 0
        for k in range(indptr[i], indptr[i + 1]):
            column = np.int64(indices[k])
            found += (column >= first) & (column < last)
        counted[i + 1] = counted[i] + found


@njit(cache=True, nogil=True)
def slice_columns(data, indices, indptr, first, last, counted, sliced_data, sliced_indices):
    """Second pass: write the entries in columns ``first`` … ``last`` − 1, which become 0 …, in the order they have.

    ``counted`` is what `count_columns` made; ``sliced_data`` and ``sliced_indices`` have ``counted[-1]`` elements, of
    types that hold what they get.
    """
    first, last = np.int64(first), np.int64(last)
    place = 0
    for i in range(len(indptr) - 1):
        if counted[i + 1] == counted[i]:
            continue
        for k in range(indptr[i], indptr[i + 1]):
            column = np.int64(indices[k])
            if first <= column < last:
                sliced_data[place], sliced_indices[place] = data[k], column - first
                place += 1
