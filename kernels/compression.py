"""Gradients made small for the wire; what the wire does not carry is left in ``residual``, for the next call.

Throughout, ``gradient`` and ``residual`` are (n,) float32. What is sent plus what is left is, exactly,
gradient + residual as summed in float32. NaN and infinity are sent, and leave NaN, so that they show from then on.

Top-k messages are a head (blocks + 1,) and entries, both uint32. The vector is cut into blocks of `BLOCK` elements;
``head[1 + b]`` entries belong to block b, and those of block ``head[0]`` come first. An entry is a bfloat16 and, in its
lower half, the place in the block.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.bits import (
    LANES,
    add_and_find,
    float16_bits,
    float_bits,
    float_of,
    float_of_float16,
    lowest_bit,
)
from dml_hpc.kernels.half import bfloat16_bits, float_of_bfloat16

BLOCK = 1 << 16
_ONE, _SIXTEEN, _PLACE, _MAGNITUDE = map(np.uint32, (1, 16, BLOCK - 1, 0x7FFFFFFF))


@njit(cache=True, nogil=True)
def encode_bfloat16(gradient, residual, wire):
    """Write gradient + residual, rounded, to ``wire`` (n,), bfloat16 held as uint16, and the rest to ``residual``."""
    for i in range(len(wire)):
        wanted = gradient[i] + residual[i]
        bits = bfloat16_bits(wanted)
        wire[i] = bits
        residual[i] = wanted - float_of_bfloat16(bits)


@njit(cache=True, nogil=True)
def encode_float16(gradient, residual, wire, scale, limit):
    """Write scale·(gradient + residual), rounded, to ``wire`` (n,), float16 held as uint16; return max |g + r|.

    ``scale`` (float32) is a power of two. Finite sums beyond ±``limit`` (float32) are cut to it. The rest goes to
    ``residual``, unscaled. The maximum is NaN or infinite when a sum is.
    """
    unscale = np.float32(1) / scale
    peak = np.uint32(0)
    for i in range(len(wire)):
        wanted = gradient[i] + residual[i]
        magnitude = float_bits(wanted) & _MAGNITUDE  # in the order of the numbers, NaN above infinity
        peak = max(peak, magnitude)
        finite = min(max(wanted, -limit), limit)
        bits = float16_bits(scale * (finite if abs(wanted) < np.inf else wanted))
        wire[i] = bits
        residual[i] = wanted - unscale * float_of_float16(bits)
    return float_of(peak)


@njit(cache=True, nogil=True)
def select(gradient, residual, threshold, head, entries):
    """Fill a message with the elements of gradient + residual of at least ``threshold`` (float32); return how many.

    The caller has set ``head[0]``. When ``entries`` is full, what would still be large enough stays in ``residual``
    with all that is too small and the roundings of what is sent. (Stich, Cordonnier and Jaggi, *Sparsified SGD with
    memory*, NeurIPS 2018.) Sixteen elements at a time are added, stored and compared; only hits are looked at singly.
    """
    n, blocks, room = len(gradient), len(head) - 1, len(entries)
    found = 0
    for turn in range(blocks):
        block = (head[0] + turn) % blocks
        start, stop = block * BLOCK, min((block + 1) * BLOCK, n)
        before = found
        vectors = start + (stop - start) // LANES * LANES
        for low in range(start, vectors, LANES):
            hits = add_and_find(gradient, residual, low, threshold)
            while hits and found < room:
                i = low + lowest_bit(hits)
                entries[found] = _send(residual, i, start)
                found += 1
                hits &= hits - _ONE
        for i in range(vectors, stop):
            residual[i] += gradient[i]
            if found < room and not abs(residual[i]) < threshold:
                entries[found] = _send(residual, i, start)
                found += 1
        head[1 + block] = found - before
    return found


@njit(cache=True, nogil=True)
def _send(residual, i, start):
    """Return the entry of element i, and leave its rounding error."""
    bits = bfloat16_bits(residual[i])
    residual[i] -= float_of_bfloat16(bits)
    return np.uint32(bits) << _SIXTEEN | np.uint32(i - start)


@njit(cache=True, nogil=True)
def add_entries(head, entries, total):
    """Add a message's entries to ``total`` (n,) float32."""
    blocks = len(head) - 1
    at = 0
    for turn in range(blocks):
        block = (head[0] + turn) % blocks
        for _ in range(head[1 + block]):
            entry = entries[at]
            total[block * BLOCK + (entry & _PLACE)] += float_of_bfloat16(np.uint16(entry >> _SIXTEEN))
            at += 1


@njit(cache=True, nogil=True)
def clear_entries(head, entries, total):
    """Write 0 to the elements of ``total`` (n,) that a message has entries for."""
    blocks = len(head) - 1
    at = 0
    for turn in range(blocks):
        block = (head[0] + turn) % blocks
        for _ in range(head[1 + block]):
            total[block * BLOCK + (entries[at] & _PLACE)] = 0
            at += 1
