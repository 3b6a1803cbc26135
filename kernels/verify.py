"""Faults of sparse rows: column numbers out of range, and columns that a row has twice."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def columns_outside(indices, features):
    """Return how many of ``indices`` (entries,) are not in 0 … features − 1, and the place of the first (−1: none)."""
    count, first = 0, -1
    for k in range(len(indices)):
        if indices[k] < 0 or indices[k] >= features:
            count += 1
            if first < 0:
                first = k
    return count, first


@njit(cache=True, nogil=True)
def repeating_rows(indptr, indices):
    """Return how many rows have a column twice, the first of them, and that column; (0, −1, −1) without any.

    Row i has the columns ``indices[indptr[i]:indptr[i + 1]]``, in any order; ``indptr`` never falls nor leaves them.
    """
    count, first, column = 0, -1, -1
    for i in range(len(indptr) - 1):
        start, stop = indptr[i], indptr[i + 1]
        k = start + 1
        while k < stop and indices[k - 1] < indices[k]:
            k += 1
        if k >= stop:
            continue
        ordered = np.sort(indices[start:stop])
        for j in range(1, len(ordered)):
            if ordered[j - 1] == ordered[j]:
                count += 1
                if first < 0:
                    first, column = i, ordered[j]
                break
    return count, first, column
