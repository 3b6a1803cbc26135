"""The few elements of long vectors that some sparse rows touch: found, copied, added up."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def collect(indices, indptr, rows, marks, mark, found, count):
    """Append the columns of ``rows`` that are not marked yet to ``found`` and mark them; return how many there are now.

    ``indices``, ``indptr`` are those of a CSR matrix. ``marks`` (features,) holds ``mark`` for the columns in
    ``found[:count]``; ``found`` must have room for every entry of the rows.
    """
    for i in range(len(rows)):
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            j = indices[k]
            if marks[j] != mark:
                marks[j] = mark
                found[count] = j
                count += 1
    return count


@njit(cache=True, nogil=True)
def fold_at(weights, scale, at, folded):
    """folded_j = weights_j·scale_j for j in ``at``; all but ``at`` (size,)."""
    for i in range(len(at)):
        folded[at[i]] = weights[at[i]] * scale[at[i]]


@njit(cache=True, nogil=True)
def take_out(gradient, scale, at, values):
    """Move gradient_j·scale_j for j in ``at`` to ``values`` (len(at),), and leave 0."""
    for i in range(len(at)):
        values[i] = gradient[at[i]] * scale[at[i]]
        gradient[at[i]] = 0


@njit(cache=True, nogil=True)
def add_up(at, values, total, marks, mark, found, count):
    """Add ``values`` to ``total`` (size,) at places ``at``; where those are not marked yet, begin at 0 and append them
    to ``found``; return how many there are now. See `collect`."""
    for i in range(len(at)):
        j = at[i]
        if marks[j] != mark:
            marks[j] = mark
            found[count] = j
            count += 1
            total[j] = values[i]
        else:
            total[j] += values[i]
    return count


@njit(cache=True, nogil=True)
def pick(total, at, values):
    """values_i = total[at_i]."""
    for i in range(len(at)):
        values[i] = total[at[i]]


def rows_entries(indptr: np.ndarray, rows: np.ndarray) -> int:
    """Return how many entries ``rows`` of a CSR matrix have."""
    return int((indptr[rows + 1] - indptr[rows]).sum())
