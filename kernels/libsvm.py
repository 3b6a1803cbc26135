"""Text of LIBSVM files as sparse rows."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.numerals import HARD, NONE, number
from dml_hpc.kernels.rows import order_row, sum_equal
from dml_hpc.kernels.sampling import _mix

FINE, BAD_LABEL, BAD_ENTRY, LARGE_INDEX, LARGE_VALUE, TWICE = range(6)
"""Why parsing stopped: at the end; at a label or entry that is none, too large a number, a column given twice."""
LARGEST_INDEX = (1 << 31) - 1
"""Column numbers above it need hashing."""
_ABSURD = 1 << 59


@njit(cache=True, nogil=True, inline="always")
def _blank(c):
    return c == 32 or (9 <= c <= 13 and c != 10)


@njit(cache=True, nogil=True, inline="always")
def _ends(c):
    """Whether ``c`` may stand behind a label or a value."""
    return _blank(c) or c == 10 or c == 35


@njit(cache=True, nogil=True)
def hashed(index, mask):
    """Return column and sign of a feature's number under feature hashing (Weinberger et al., 2009)."""
    mixed = _mix(np.uint64(index) + np.uint64(0x9E3779B97F4A7C15))
    return np.int64(mixed & np.uint64(mask)), -1.0 if mixed >> np.uint64(63) else 1.0


@njit(cache=True, nogil=True)
def parse(text, mask, largest, known, indptr, indices, data, labels, hard):
    """Parse lines ``label [qid:n] index:value … [# comment]`` and return (code, place, rows, lowest, highest, hards).

    ``text`` (length,) uint8 ends in a line end. Row i's label goes to ``labels[i]``, its entries, by ascending column,
    to ``indices`` (int32, as numbered in the text) and ``data`` from ``indptr[i]`` to ``indptr[i + 1]`` (int64, from
    0). ``mask`` > 0: columns are hashed to 0 … mask, and those that meet are added up. Values beyond ``largest`` are
    refused. ``lowest`` and ``highest`` are those of the numbers in the text (highest −1: there are none).

    Numbers that `number` calls hard take their values from ``known``, in their order; ``hard`` (count, 2) int64
    receives where they begin and end, and ``hards`` is how many there are: when ``known`` has fewer, the values of
    those beyond it are 0, and the text is to be parsed again. When the code is not `FINE`, ``place`` is where in the
    text the fault is.
    """
    at = row = filled = hards = 0
    lowest = _ABSURD
    highest = -1
    indptr[0] = 0
    while at < len(text):
        while _blank(text[at]):
            at += 1
        if text[at] == 10 or text[at] == 35:
            while text[at] != 10:
                at += 1
            at += 1
            continue
        place = at
        value, at, kind = number(text, at)
        if kind == NONE or not _ends(text[at]):
            return BAD_LABEL, place, row, lowest, highest, hards
        if kind == HARD:
            hard[hards] = place, at
            value = known[hards] if hards < len(known) else 0.0
            hards += 1
        if not abs(value) <= 1.7976931348623157e308:
            return LARGE_VALUE, place, row, lowest, highest, hards
        labels[row] = value
        first = filled
        line = place
        ascending = True
        while True:
            while _blank(text[at]):
                at += 1
            if text[at] == 10 or text[at] == 35:
                break
            place = at
            if text[at] == 113 and text[at + 1] == 105 and text[at + 2] == 100 and text[at + 3] == 58:
                while not _ends(text[at]):
                    at += 1
                continue
            index = 0
            while 48 <= text[at] <= 57:
                index = min(10 * index + int(text[at]) - 48, _ABSURD)
                at += 1
            if at == place or text[at] != 58:
                return BAD_ENTRY, place, row, lowest, highest, hards
            start = at + 1
            value, at, kind = number(text, start)
            if kind == NONE or not _ends(text[at]):
                return BAD_ENTRY, place, row, lowest, highest, hards
            if kind == HARD:
                hard[hards] = start, at
                value = known[hards] if hards < len(known) else 0.0
                hards += 1
            if index >= _ABSURD or (mask == 0 and index > LARGEST_INDEX):
                return LARGE_INDEX, place, row, lowest, highest, hards
            if not abs(value) <= largest:
                return LARGE_VALUE, place, row, lowest, highest, hards
            lowest = min(lowest, index)
            highest = max(highest, index)
            if mask:
                index, sign = hashed(index, mask)
                value *= sign
            ascending &= filled == first or indices[filled - 1] < index
            indices[filled] = index
            data[filled] = value
            filled += 1
        while text[at] != 10:
            at += 1
        at += 1
        if not ascending:
            order_row(indices, data, first, filled)
            unique = sum_equal(indices, data, first, filled)
            if unique < filled and mask == 0:
                return TWICE, line, row, lowest, highest, hards
            filled = unique
        row += 1
        indptr[row] = filled
    return FINE, at, row, lowest, highest, hards
