"""Ratings by user, or by item: from blocks, in which they lie in another order, into one list a row."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.prefetch import prefetch

_AHEAD = 8


@njit(cache=True, nogil=True)
def count_rows(rows, counts):
    """Add to ``counts`` (n,) int64 how often each row is in ``rows`` (e,) int32."""
    for e in range(len(rows)):
        counts[rows[e]] += 1


@njit(cache=True, nogil=True)
def place_entries(rows, others, ratings, weights, first_row, first_other, ends, out_others, out_ratings, out_weights):
    """Put the entries of a block behind those that their rows have already.

    ``rows`` and ``others`` (e,) int32 are relative to the block; to the former ``first_row`` is added, and entries
    whose row is then no place of ``ends`` (n,) int64, where each row's next entry goes, are left out. To ``others``
    ``first_other`` is added. ``ratings`` and ``weights`` (e,) float32, the latter may be None, as may its ``out``.
    """
    for e in range(len(rows)):
        row = np.int64(rows[e]) + first_row
        if row < 0 or row >= len(ends):
            continue
        place = ends[row]
        ends[row] += 1
        out_others[place] = others[e] + first_other
        out_ratings[place] = ratings[e]
        if weights is not None:
            out_weights[place] = weights[e]


@njit(cache=True, nogil=True)
def mark(others, needed):
    """Set ``needed`` (m,) uint8 to 1 at every one of ``others`` (e,) int32."""
    for e in range(len(others)):
        needed[others[e]] = 1


@njit(cache=True, nogil=True)
def renumber(others, places):
    """Replace each of ``others`` (e,) int32 by its ``places`` (m,) int32."""
    for e in range(len(others)):
        others[e] = places[others[e]]


@njit(cache=True, nogil=True)
def pack(table, width, chosen, out):
    """Copy rows ``chosen`` (n,) int64 of ``table``, flat, to ``out`` (n·width,), both float32."""
    for n in range(len(chosen)):
        prefetch(table, chosen[min(n + _AHEAD, len(chosen) - 1)] * width)
        at = chosen[n] * width
        for j in range(width):
            out[n * width + j] = table[at + j]
