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
def _turn(length, block, key, shuffle):
    """Return when a stripe's short block at the end has its turn among the full ones, which is random too."""
    full = length // block
    if not shuffle or full * block == length:
        return full
    return np.int64(_mix(key ^ _M1) % np.uint64(full + 1))


@njit(cache=True, nogil=True)
def _place(position, length, block, turn):
    """Return (v, i): the ``position``-th row of a stripe is the i-th of the v-th block visited."""
    short = length - length // block * block
    if position < turn * block:
        return position // block, position % block
    if position < turn * block + short:
        return turn, position - turn * block
    position -= short
    return position // block + (short > 0), position % block


@njit(cache=True, nogil=True)
def _block(v, length, block, turn, key, shuffle):
    """Return (start, count): the rows of the v-th block visited."""
    full = length // block
    if v == turn and full * block < length:
        return full * block, length - full * block
    number = v - (v > turn)
    return (permute(number, full, key) if shuffle else number) * block, block


@njit(cache=True, nogil=True)
def _share(length, stripe, stripes, step, steps):
    """Return the positions, from and to, that a stripe gives a step; over an epoch every position comes once."""
    # The phase spreads the steps that get a row more than others evenly over the epoch.
    phase = stripe * steps // stripes
    return (length * step + phase) // steps, (length * (step + 1) + phase) // steps


@njit(cache=True, nogil=True)
def _shuffle(order, size, key):
    """Write 0 … size − 1 to ``order`` (≥ size,) in the order that ``key`` selects (Fisher and Yates; size < 2³²)."""
    for i in range(size):
        order[i] = i
    for i in range(size - 1, 0, -1):
        key += _GOLDEN
        j = np.int64(((_mix(key) >> np.uint64(32)) * np.uint64(i + 1)) >> np.uint64(32))
        order[i], order[j] = order[j], order[i]


@njit(cache=True, nogil=True)
def step_rows(first, length, shard, mine, step, steps, block, key, shuffle, order, known, start, rows, stops):
    """Write this rank's rows of one step, and return how many rows all ranks together take.

    Stripe l holds ``length[l]`` rows from row ``first[l]`` of shard ``shard[l]`` on (int64 each); the stripes
    ``mine[0] … mine[1] − 1`` are this rank's. Every stripe gives each of the ``steps`` steps an equal share of its
    rows: its blocks of ``block`` rows come in the order that ``key`` selects, and the rows of each block likewise (in
    storage order when ``shuffle`` is false). ``rows`` receives the row numbers within their shards, shard after shard;
    ``stops[s − shard[mine[0]]]`` where shard s's end.

    What is known of each own stripe's block is kept for the next step: ``known`` (own stripes,) int64 is its number + 1
    (set it to 0 for a new key), ``start`` (own stripes,) int64 its first row, ``order`` (own stripes, block) int32 the
    order of its rows.
    """
    stripes = len(first)
    filled = 0
    for s in range(len(stops)):
        stops[s] = 0
    for stripe in range(mine[0], mine[1]):
        n, own = length[stripe], stripe - mine[0]
        low, high = _share(n, stripe, stripes, step, steps)
        if not shuffle:
            for position in range(low, high):
                rows[filled] = first[stripe] + position
                filled += 1
        elif high > low:
            stripe_key = _mix(key + np.uint64(stripe) * _GOLDEN)
            turn = _turn(n, block, stripe_key, shuffle)
            for position in range(low, high):
                v, i = _place(position, n, block, turn)
                if known[own] != v + 1:
                    start[own], size = _block(v, n, block, turn, stripe_key, shuffle)
                    _shuffle(order[own], size, _inside(stripe_key, v))
                    known[own] = v + 1
                rows[filled] = first[stripe] + start[own] + order[own, i]
                filled += 1
        stops[shard[stripe] - shard[mine[0]]] = filled
    for s in range(1, len(stops)):
        stops[s] = max(stops[s], stops[s - 1])
    return rows_of_step(length, step, steps)


@njit(cache=True, nogil=True)
def rows_of_step(length, step, steps):
    """Return how many rows all ranks together take in a step; see `step_rows`."""
    count = 0
    for stripe in range(len(length)):
        low, high = _share(length[stripe], stripe, len(length), step, steps)
        count += high - low
    return count


@njit(cache=True, nogil=True)
def _inside(key, v):
    return _mix(key + np.uint64(v + 1))


SLOTS = 3
"""Blocks of a stripe in memory at once: one in use, one that a step may go on to, one that is read meanwhile."""


@njit(cache=True, nogil=True)
def blocks_to_read(length, mine, step, steps, part, parts, block, key, shuffle, begun, base, wanted):
    """List the blocks that a part of a step is the first to need, and return how many.

    A step's share of every stripe (see `step_rows`) is cut into ``parts`` parts. ``wanted`` (·, 4) receives (stripe −
    mine[0], slot, first row within the stripe, rows). ``begun`` (stripes,) counts the blocks of each own stripe that
    were listed in this epoch, ``base`` those of earlier epochs.
    """
    found = 0
    stripes = len(length)
    for stripe in range(mine[0], mine[1]):
        n, own = length[stripe], stripe - mine[0]
        low, high = _share(n, stripe, stripes, step, steps)
        low, high = low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts
        if high <= low:
            continue
        stripe_key = _mix(key + np.uint64(stripe) * _GOLDEN)
        turn = _turn(n, block, stripe_key, shuffle)
        v = _place(low, n, block, turn)[0]
        final = _place(high - 1, n, block, turn)[0]
        while v <= final:
            slot = (base[own] + v) % SLOTS
            if v >= begun[own]:
                start, size = _block(v, n, block, turn, stripe_key, shuffle)
                wanted[found, 0], wanted[found, 1], wanted[found, 2], wanted[found, 3] = own, slot, start, size
                found += 1
                begun[own] = v + 1
            v += 1
    return found


@njit(cache=True, nogil=True)
def mark_use(length, mine, step, steps, part, parts, block, key, shuffle, base, last_use, now):
    """Set ``last_use`` to ``now`` for the slots of all blocks that a part of a step uses; see `blocks_to_read`."""
    stripes = len(length)
    for stripe in range(mine[0], mine[1]):
        n, own = length[stripe], stripe - mine[0]
        low, high = _share(n, stripe, stripes, step, steps)
        low, high = low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts
        if high <= low:
            continue
        turn = _turn(n, block, _mix(key + np.uint64(stripe) * _GOLDEN), shuffle)
        for v in range(_place(low, n, block, turn)[0], _place(high - 1, n, block, turn)[0] + 1):
            last_use[own, (base[own] + v) % SLOTS] = now


@njit(cache=True, nogil=True)
def slot_rows(length, mine, step, steps, part, parts, block, key, shuffle, order, known, base, stride, rows):
    """Write where the rows of a part of a step lie in the slots, and return how many there are.

    Slot s of the i-th own stripe holds rows (`SLOTS`·i + s)·``stride`` … of the memory; see `blocks_to_read`, and for
    ``order`` and ``known`` `step_rows`.
    """
    filled = 0
    stripes = len(length)
    for stripe in range(mine[0], mine[1]):
        n, own = length[stripe], stripe - mine[0]
        low, high = _share(n, stripe, stripes, step, steps)
        low, high = low + (high - low) * part // parts, low + (high - low) * (part + 1) // parts
        if high <= low:
            continue
        stripe_key = _mix(key + np.uint64(stripe) * _GOLDEN)
        turn = _turn(n, block, stripe_key, shuffle)
        for position in range(low, high):
            v, i = _place(position, n, block, turn)
            if shuffle and known[own] != v + 1:
                _shuffle(order[own], _block(v, n, block, turn, stripe_key, shuffle)[1], _inside(stripe_key, v))
                known[own] = v + 1
            at = (SLOTS * own + (base[own] + v) % SLOTS) * stride
            rows[filled] = at + (order[own, i] if shuffle else i)
            filled += 1
    return filled
