"""Columns of numbers on their way from a table to rows."""

from __future__ import annotations

import numpy as np
from numba import njit

_LANES = 16


@njit(cache=True, nogil=True)
def store(values, out):
    """Copy a column (rows,) to ``out``, of another float type maybe; return its least and its greatest value.

    NaN is no value; without any the two are infinity and minus infinity.
    """
    lows = np.full(_LANES, np.inf)
    highs = np.full(_LANES, -np.inf)
    rows = len(values)
    whole = rows - rows % _LANES
    for i in range(0, whole, _LANES):
        for k in range(_LANES):
            x = values[i + k]
            out[i + k] = x
            lows[k] = x if x < lows[k] else lows[k]
            highs[k] = x if x > highs[k] else highs[k]
    for i in range(whole, rows):
        x = values[i]
        out[i] = x
        lows[0] = x if x < lows[0] else lows[0]
        highs[0] = x if x > highs[0] else highs[0]
    return lows.min(), highs.max()


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def count_and_mean(values):
    """Return how many of a column's (rows,) values are no NaN, and their mean in float64, 0 when there are none."""
    count, mean = 0, 0.0
    for start in range(0, len(values), 4096):
        total, present = 0.0, 0
        for x in values[start:start + 4096]:
            there = x == x
            total += np.float64(x) if there else 0.0
            present += there
        if present:
            count += present
            mean += (total / present - mean) * (present / count)
    return count, mean


@njit(cache=True, nogil=True)
def count_entries(features, values, starts, counts):
    """Add to ``counts`` (rows,) int64 how many entries each row has: see `place_entries`."""
    for row in range(len(counts)):
        for i in range(starts[row], starts[row + 1]):
            counts[row] += features[i] >= 0 and values[i] != 0


@njit(cache=True, nogil=True)
def place_entries(features, values, starts, places, indices, data):
    """Append each row's entries to that row of a sparse matrix, whose free room begins at ``places`` (rows,) int64.

    Row i has ``values[k]`` at column ``features[k]`` for ``starts[i]`` ≤ k < ``starts[i + 1]``; a column -1 and a value
    0 are none. ``places`` move on.
    """
    for row in range(len(places)):
        for i in range(starts[row], starts[row + 1]):
            if features[i] >= 0 and values[i] != 0:
                indices[places[row]], data[places[row]] = features[i], values[i]
                places[row] += 1
