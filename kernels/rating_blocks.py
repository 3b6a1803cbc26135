"""Ratings on their way into a grid of blocks: who gets which number, and in which order they lie."""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

from dml_hpc.kernels.random import bits, uniform


@njit(cache=True, nogil=True)
def deal(order, counts, stripes, stripe, place):
    """Deal users (or items) to stripes of about equally many ratings: each to the lightest so far, the largest first.

    ``order`` (n,) int64 are users by falling ``counts`` (n,) int64. Writes each one's ``stripe`` (n,) int32 and its
    ``place`` (n,) int64 within it. Graham, *Bounds on multiprocessing timing anomalies*, 1969 (longest first).
    """
    heap = [(np.int64(0), np.int64(s)) for s in range(stripes)]
    sizes = np.zeros(stripes, np.int64)
    for user in order:
        load, lightest = heap[0]
        heapq.heapreplace(heap, (load + max(counts[user], 1), lightest))
        stripe[user] = lightest
        place[user] = sizes[lightest]
        sizes[lightest] += 1


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
def mark_last(users, items, times, order, kept):
    """Mark in ``kept`` (n,) bool which of ratings sorted by ``order`` (n,) count: of each pair the last.

    That is the one of the greatest of ``times`` (n,) int64, of several the one that comes last in ``order``; without
    ``times`` (0,) the last in ``order``. Equal pairs are neighbours in it.
    """
    last = 0
    for i in range(len(order)):
        here = order[i]
        if i and users[here] == users[order[i - 1]] and items[here] == items[order[i - 1]]:
            if len(times) == 0 or times[here] >= times[order[last]]:
                kept[last] = False
                last = i
            else:
                kept[i] = False
                continue
        else:
            last = i
        kept[i] = True


@njit(cache=True, nogil=True)
def held_pairs(users, items, key, share, out):
    """Say in ``out`` (n,) bool which pairs are held out: by a draw that depends on ``key`` and the pair alone."""
    for i in range(len(users)):
        out[i] = uniform(bits(key, users[i]), items[i]) < share


@njit(cache=True, nogil=True)
def add_counts(numbers, counts):
    """Add to ``counts`` (n,) int64 how often each number comes."""
    for number in numbers:
        counts[number] += 1
