"""Ratings on their way into a grid of blocks: who gets which number, and in which order they lie."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.random import bits, uniform


@njit(cache=True, nogil=True)
def deal(order, counts, stripes, stripe, place):
    """Deal users (or items) to stripes of about equally many ratings: each to the lightest so far, the largest first.

    ``order`` (n,) int64 are users by falling ``counts`` (n,) int64. Writes each one's ``stripe`` (n,) int32 and its
    ``place`` (n,) int64 within it. Graham, *Bounds on multiprocessing timing anomalies*, 1969 (longest first).
    """
    loads, sizes = np.zeros(stripes, np.int64), np.zeros(stripes, np.int64)
    heap = np.arange(stripes)  # of stripes, the lightest on top; of equal ones the first
    for user in order:
        lightest = heap[0]
        stripe[user] = lightest
        place[user] = sizes[lightest]
        sizes[lightest] += 1
        loads[lightest] += max(counts[user], 1)
        hole, child = 0, 1
        while child < stripes:
            if child + 1 < stripes and _lighter(loads, heap[child + 1], heap[child]):
                child += 1
            if not _lighter(loads, heap[child], lightest):
                break
            heap[hole] = heap[child]
            hole, child = child, 2 * child + 1
        heap[hole] = lightest


@njit(cache=True, nogil=True)
def _lighter(loads, one, other):
    return loads[one] < loads[other] or (loads[one] == loads[other] and one < other)


@njit(cache=True, nogil=True)
def next_order(keys, buckets, order, out):
    """Sort ``order`` (n,) int64, places of ``keys`` (n,) below ``buckets``, by their keys into ``out``; ties stay."""
    starts = np.zeros(buckets + 1, np.int64)
    for i in range(len(keys)):
        starts[keys[i] + 1] += 1
    for b in range(buckets):
        starts[b + 1] += starts[b]
    for i in range(len(order)):
        place = order[i]
        key = keys[place]
        out[starts[key]] = place
        starts[key] += 1


@njit(cache=True, nogil=True)
def spread(order, stops, users, items, apart, choice):
    """Reorder ``order`` (n,) int64, places of ratings: no two of ``apart`` in a row shall share a user or item.

    Tiles end before each of ``stops`` (tiles,) int64, and ratings stay in theirs. In the place of one that has
    something in common with those before it comes the first of the ``choice`` that follow which has not, if any.
    """
    last_users, last_items = np.empty(apart - 1, users.dtype), np.empty(apart - 1, items.dtype)
    start = 0
    for stop in stops:
        last_users[:] = -1
        last_items[:] = -1
        for n in range(start, stop):
            chosen = n
            for candidate in range(n, min(n + choice, stop)):
                u, i, meets = users[order[candidate]], items[order[candidate]], False
                for before in range(apart - 1):
                    meets |= last_users[before] == u or last_items[before] == i
                if not meets:
                    chosen = candidate
                    break
            order[n], order[chosen] = order[chosen], order[n]
            last_users[n % (apart - 1)], last_items[n % (apart - 1)] = users[order[n]], items[order[n]]
        start = stop


@njit(cache=True, nogil=True)
def mark_last(starts, times, kept):
    """Mark in ``kept`` (n,) bool which ratings count, of each pair that of the greatest time, of several the last.

    ``starts`` (pairs,) int64 are where the pairs begin, those of a pair being neighbours, in order; ``times`` (n,)
    int64 are when they were given, or (0,): then the last of each pair counts.
    """
    for p in range(len(starts)):
        stop = starts[p + 1] if p + 1 < len(starts) else len(kept)
        last = starts[p]
        for i in range(starts[p], stop):
            kept[i] = False
            if len(times) == 0 or times[i] >= times[last]:
                last = i
        kept[last] = True


@njit(cache=True, nogil=True)
def hash_pairs(users, items, key, width, out):
    """Write a hash of ``width`` bits of each pair to ``out`` (n,) int32; ``key`` (uint64) selects the function."""
    for i in range(len(users)):
        pair = (np.uint64(users[i]) << np.uint64(32)) ^ np.uint64(items[i])
        out[i] = np.int32(bits(key, pair) >> np.uint64(64 - width))


@njit(cache=True, nogil=True)
def held_pairs(users, items, key, share, out):
    """Say in ``out`` (n,) bool which pairs are held out: by a draw that depends on ``key`` and the pair alone."""
    for i in range(len(users)):
        out[i] = uniform(bits(key, users[i]), items[i]) < share
