"""Random shares of the rows, computed row by row: dealt to machines once and shuffled every epoch, or drawn."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.sampling import _GOLDEN, _ONE, _mix, permute

BLOCK_ROWS = 64
MIXED_BLOCKS = 32
"""So many blocks, from anywhere in the share, are shuffled together row by row."""
STRIP_ROWS = 8
"""So many neighbours are dealt together, or each machine would fetch nearly all that there is from memory."""


@njit(cache=True, nogil=True)
def dealt(run, machine, machines, key):
    """Return which item a machine gets of the ``run``-th run of ``machines`` items, as a number within the run.

    Every run is dealt by a permutation of its own, which ``key`` (uint64) selects: on the next power of two, rounds of
    steps that are one-to-one (see `dml_hpc.kernels.sampling.permute`, which takes more of them and more time), and then
    a turn that makes every item equally likely.
    """
    bits = np.uint64(1)
    while (np.uint64(machines) - _ONE) >> bits:
        bits += _ONE
    mask = (_ONE << bits) - _ONE
    half = (bits + _ONE) >> _ONE
    k = _mix(key + np.uint64(run) * _GOLDEN)
    x = np.uint64(machine)
    while True:
        for shift in (np.uint64(0), np.uint64(24), np.uint64(40)):
            x = (x + (k >> shift)) & mask
            x = (x * ((k >> (shift + np.uint64(12))) | _ONE)) & mask
            x ^= x >> half
        if x < np.uint64(machines):
            break
    turn = ((_mix(k) >> np.uint64(32)) * np.uint64(machines)) >> np.uint64(32)
    return np.int64((x + turn) % np.uint64(machines))


@njit(cache=True, nogil=True)
def dealt_rows(first, last, blocks, strips, count, machine, machines, deal, order, out):
    """Write the rows of the ``first``-th … ``last − 1``-th visited block of a share to ``out``; return how many.

    The share is a strip of `STRIP_ROWS` of every run of ``machines`` strips, ``strips`` of them, and one row of every
    run of ``machines`` rows behind them, ``count`` rows in all, chosen by the key ``deal``; it is cut into ``blocks``
    blocks of `BLOCK_ROWS`, which the key ``order`` puts in order. Each `MIXED_BLOCKS` of them, the first from ``first``
    on, come in one random order of their rows (Fisher and Yates). ``out`` is int64.
    """
    # What lies behind the strips is dealt by the row, in runs numbered on from the strips'.
    shift = strips * STRIP_ROWS * machines - strips * machines
    filled = 0
    for start in range(first, last, MIXED_BLOCKS):
        begin = filled
        for visited in range(start, min(start + MIXED_BLOCKS, last)):
            block = permute(visited, blocks, order)
            stop = min((block + 1) * BLOCK_ROWS, count)
            for strip in range(block * BLOCK_ROWS // STRIP_ROWS, min(stop // STRIP_ROWS, strips)):
                row = (strip * machines + dealt(strip, machine, machines, deal)) * STRIP_ROWS
                for k in range(STRIP_ROWS):
                    out[filled + k] = row + k
                filled += STRIP_ROWS
            for place in range(max(block * BLOCK_ROWS, strips * STRIP_ROWS), stop):
                run = place - strips * STRIP_ROWS + strips
                out[filled] = shift + run * machines + dealt(run, machine, machines, deal)
                filled += 1
        key = _mix(order + np.uint64(start + 1))
        for i in range(filled - 1, begin, -1):
            key += _GOLDEN
            j = begin + np.int64(((_mix(key) >> np.uint64(32)) * np.uint64(i - begin + 1)) >> np.uint64(32))
            out[i], out[j] = out[j], out[i]
    return filled


@njit(cache=True, nogil=True)
def drawn_rows(first, rows, key, out):
    """Fill ``out`` (int64) with draws ``first`` … of a stream of row numbers, each uniform over 0 … ``rows`` − 1."""
    for i in range(len(out)):
        out[i] = np.int64(_mix(key + np.uint64(first + i + 1) * _GOLDEN) % np.uint64(rows))


@njit(cache=True, nogil=True)
def group_rows(rows, offsets, piece, shards, stops, local):
    """Write global row numbers to ``local`` as numbers within their shards: of every ``piece`` rows, shard after shard.

    They keep their order otherwise. ``rows`` and ``local`` are (count,) int64, ``offsets`` (shards + 1,) int64 where
    shards begin. ``stops`` (≥ pieces, shards) int64 receives where each shard's rows of a piece end in ``local``;
    ``shards`` (≥ count,) int32 is room to work.
    """
    for number, start in enumerate(range(0, len(rows), piece)):
        _group_piece(rows, offsets, start, min(start + piece, len(rows)), shards, stops[number], local)


@njit(cache=True, nogil=True)
def _group_piece(rows, offsets, start, stop, shards, stops, local):
    for s in range(len(stops)):
        stops[s] = 0
    for i in range(start, stop):
        low, high = 0, len(offsets) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if offsets[middle] <= rows[i]:
                low = middle
            else:
                high = middle
        shards[i] = low
        stops[low] += 1
    begin = start
    for s in range(len(stops)):
        begin += stops[s]
        stops[s] = begin - stops[s]
    for i in range(start, stop):
        s = shards[i]
        local[stops[s]] = rows[i] - offsets[s]
        stops[s] += 1
