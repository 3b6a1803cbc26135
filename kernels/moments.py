"""Sums behind mean and deviation of every feature, in one pass over the rows."""

from __future__ import annotations

from numba import njit

_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FAST)
def dense_moments(X, about, shifted, squares, minimum, maximum):
    """Add Σ (x − about) and Σ (x − about)² of each column of X (rows, features) to ``shifted`` and ``squares``.

    Both and ``about`` are (features,) float64; ``minimum`` and ``maximum`` are lowered and raised to what X holds.
    Returns how many entries are not zero.
    """
    rows, features = X.shape
    nonzeros = 0
    for i in range(rows):
        for j in range(features):
            x = X[i, j]
            d = x - about[j]
            shifted[j] += d
            squares[j] += d * d
            minimum[j] = min(minimum[j], x)
            maximum[j] = max(maximum[j], x)
            nonzeros += x != 0
    return nonzeros


@njit(cache=True, nogil=True)
def sparse_moments(data, indices, count, mean, squares, minimum, maximum):
    """Count the entries ``data`` (entries,) at columns ``indices`` in; the others are (features,) float64.

    Each column's mean and sum of squared deviations move entry by entry (Welford, "Note on a Method for Calculating
    Corrected Sums of Squares and Products", 1962). Returns how many entries are not zero.
    """
    nonzeros = 0
    for k in range(len(data)):
        j, x = indices[k], data[k]
        count[j] += 1
        d = x - mean[j]
        mean[j] += d / count[j]
        squares[j] += d * (x - mean[j])
        minimum[j] = min(minimum[j], x)
        maximum[j] = max(maximum[j], x)
        nonzeros += x != 0
    return nonzeros


@njit(cache=True, nogil=True)
def first_bad_row(indptr, indices, entries, features):
    """Return (row, what) of the first fault of CSR rows, (-1, 0) when there is none.

    ``indptr`` (rows + 1,) counts from where ``indices`` begins, whose length is ``entries``. What: 1 ``indptr`` falls
    or leaves the entries, 2 a column is not in 0 … features − 1.
    """
    for i in range(len(indptr) - 1):
        if indptr[i] < 0 or indptr[i + 1] < indptr[i] or indptr[i + 1] > entries:
            return i, 1
        bad = 0
        for k in range(indptr[i], indptr[i + 1]):
            bad += indices[k] < 0 or indices[k] >= features
        if bad:
            return i, 2
    return -1, 0
