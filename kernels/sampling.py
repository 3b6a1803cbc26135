"""Which rows a step takes: a permutation of any length computed row by row, so that no order is ever stored."""

from __future__ import annotations

import numpy as np
from numba import njit

_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE = np.uint64(1)


@njit(cache=True, nogil=True)
def _mix(x):
    """SplitMix64's finaliser (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def permute(i, length, key):
    """Return where item ``i`` of ``length`` goes under the permutation that ``key`` (uint64) selects.

    On the next power of two, adding a constant, multiplying by an odd one and folding the high half onto the low
    are each one-to-one, hence so are rounds of them; results beyond ``length`` walk on along their cycle (Black
    and Rogaway, *Ciphers with arbitrary finite domains*, 2002).
    """
    bits = np.uint64(1)
    while (np.uint64(length) - _ONE) >> bits:
        bits += _ONE
    mask = (_ONE << bits) - _ONE
    half = (bits + _ONE) >> _ONE
    x = np.uint64(i)
    while True:
        k = key
        for _ in range(6):
            k = _mix(k + _GOLDEN)
            x = (x + k) & mask
            x = (x * ((k >> np.uint64(20)) | _ONE)) & mask
            x ^= x >> half
        if x < np.uint64(length):
            return np.int64(x)


@njit(cache=True, nogil=True)
def step_rows(first, length, shard, mine, step, steps, key, shuffle, rows, stops):
    """Write this rank's rows of one step, and return how many rows all ranks together take.

    Stripe l holds ``length[l]`` rows from row ``first[l]`` of shard ``shard[l]`` on (int64 each); the stripes
    ``mine[0] … mine[1] − 1`` are this rank's. Every stripe gives each of the ``steps`` steps an equal share of its
    rows, in the order that ``key`` selects (in storage order when ``shuffle`` is false). ``rows`` receives the row
    numbers within their shards, shard after shard; ``stops[s − shard[mine[0]]]`` where shard s's end.
    """
    stripes = len(first)
    count = 0
    filled = 0
    for s in range(len(stops)):
        stops[s] = 0
    for stripe in range(stripes):
        n = length[stripe]
        # The phase spreads the steps that get a row more than others evenly over the epoch.
        phase = stripe * steps // stripes
        low = (n * step + phase) // steps
        high = (n * (step + 1) + phase) // steps
        count += high - low
        if mine[0] <= stripe < mine[1]:
            stripe_key = _mix(key + np.uint64(stripe) * _GOLDEN)
            for i in range(low, high):
                rows[filled] = first[stripe] + (permute(i, n, stripe_key) if shuffle else i)
                filled += 1
            stops[shard[stripe] - shard[mine[0]]] = filled
    for s in range(1, len(stops)):
        stops[s] = max(stops[s], stops[s - 1])
    return count


@njit(cache=True, nogil=True)
def random_share(rows, rank, size, partition, order, start, out):
    """Write places ``start`` … of a rank's share of ``rows`` rows, in its own random order, to ``out`` (int64).

    The key ``partition`` deals the rows to ``size`` ranks at random, once and for all; ``order`` shuffles this
    rank's share. Fills all of ``out``.
    """
    count = (rows - rank + size - 1) // size
    for i in range(len(out)):
        out[i] = permute(rank + size * permute(start + i, count, order), rows, partition)
