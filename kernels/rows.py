"""Rows of sparse matrices: their columns put in order, and moved to where they belong."""

from __future__ import annotations

import numpy as np
from numba import njit

FEW = 32


@njit(cache=True, nogil=True)
def order_row(indices, data, start, stop):
    """Sort the entries ``start`` … ``stop`` − 1 by column, in place; entries of one column keep their order."""
    if stop - start <= FEW:
        for i in range(start + 1, stop):
            column, value = indices[i], data[i]
            j = i
            while j > start and indices[j - 1] > column:
                indices[j], data[j] = indices[j - 1], data[j - 1]
                j -= 1
            indices[j], data[j] = column, value
    else:
        order = np.argsort(indices[start:stop], kind="mergesort")
        indices[start:stop] = indices[start:stop][order]
        data[start:stop] = data[start:stop][order]


@njit(cache=True, nogil=True)
def sum_equal(indices, data, start, stop):
    """Add up neighbours of one column among the entries ``start`` … ``stop`` − 1, in place; return where they end."""
    end = start
    for i in range(start, stop):
        if end > start and indices[end - 1] == indices[i]:
            data[end - 1] += data[i]
        else:
            indices[end], data[end] = indices[i], data[i]
            end += 1
    return end


@njit(cache=True, nogil=True)
def clean_rows(indices, data, indptr, features):
    """Sort every row's entries by column and add up those of the same column, in place; return the row that is bad.

    ``indices`` and ``data`` are (entries,), ``indptr`` (rows + 1,) int64 from 0, rewritten. Returns −1, or the first
    row with a column outside 0 … ``features`` − 1; then the rows are in no useful state.
    """
    end = 0
    start = indptr[0]
    for row in range(len(indptr) - 1):
        stop = indptr[row + 1]
        ascending = True
        for i in range(start, stop):
            if not 0 <= indices[i] < features:
                return row
            ascending &= i == start or indices[i - 1] < indices[i]
        last = stop
        if not ascending:
            order_row(indices, data, start, stop)
            last = sum_equal(indices, data, start, stop)
        for i in range(start, last):
            indices[end], data[end] = indices[i], data[i]
            end += 1
        start = stop
        indptr[row + 1] = end
    return -1


@njit(cache=True, nogil=True)
def place_rows(places, source_indptr, source_indices, source_data, indptr, indices, data):
    """Copy row i of the source (its ``source_indptr`` (rows + 1,) need not begin at 0) to row ``places[i]`` of another.

    ``places`` is (rows,) int64; ``indptr`` (int64) says where the rows of the target ``indices`` and ``data`` begin.
    """
    for i in range(len(places)):
        to = indptr[places[i]]
        for j in range(source_indptr[i], source_indptr[i + 1]):
            indices[to], data[to] = source_indices[j], source_data[j]
            to += 1


@njit(cache=True, nogil=True, error_model="numpy")
def survey_values(data, columns, missing, sums):
    """Count NaNs by column in ``missing`` (int64), add the other values to ``sums`` (float64); both (features,).

    ``data`` is (entries,), ``columns`` their columns. Returns the first entry that is infinite, −1: none is.
    """
    for i in range(len(data)):
        value = data[i]
        if np.isnan(value):
            missing[columns[i]] += 1
        elif np.isinf(value):
            return i
        else:
            sums[columns[i]] += value
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def survey_rows(X, missing, sums):
    """Do the same for all entries of ``X`` (rows, features), row by row."""
    for row in range(X.shape[0]):
        for column in range(X.shape[1]):
            value = X[row, column]
            if np.isnan(value):
                missing[column] += 1
            elif np.isinf(value):
                return row * X.shape[1] + column
            else:
                sums[column] += value
    return -1
