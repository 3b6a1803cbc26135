"""Entries of a row of ratings as `dml_hpc.kernels.normal_equations` takes them: gathered, weighed, predicted."""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.apart import apart
from dml_hpc.kernels.lanes import filled, load, multiply_add, store
from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.prefetch import prefetch
from dml_hpc.kernels.tiles import LANES

_AHEAD = 4
"""How many entries ahead rows are fetched."""
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(cache=True, nogil=True, error_model="numpy")
def gather(start, stop, columns, others, width, q):
    """Copy the rows of entries ``start`` … ``stop`` − 1 to ``q``; rows up to the next sixteen become 0."""
    apart()
    for e in range(start, stop):
        at, to = np.int64(columns[e]) * width, (e - start) * width
        ahead = np.int64(columns[min(e + _AHEAD, stop - 1)]) * width
        for j in range(0, width, LANES):
            prefetch(others, ahead + j)
            store(q, to + j, load(others, at + j, _ZERO))
    for j in range((stop - start) * width, -(start - stop) // LANES * LANES * width, LANES):
        store(q, j, filled(_ZERO))


@njit(cache=True, nogil=True, error_model="numpy")
def targets(start, stop, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t):
    """Set ``a`` and ``t`` of entries ``start`` … ``stop`` − 1, and 0 up to the next sixteen; return Σ a."""
    apart()
    total = 0.0
    for e in range(start, stop):
        v = _ONE if not len(weights) else weights[e]
        if not len(gram):
            target = (ratings[e] - mean) * inverse
            if len(other_biases):
                target -= other_biases[columns[e]]
            a[e - start], t[e - start] = v, v * target
        else:
            v *= alpha * ratings[e]
            a[e - start] = v
            t[e - start] = _ONE + v if ratings[e] > _ZERO else _ZERO
        total += np.float64(v)
    for e in range(stop - start, -(start - stop) // LANES * LANES):
        a[e] = t[e] = _ZERO
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(rows, at, width, count, factors, factors_at, out):
    """Set row e of ``out`` to factors[e]·(row e of ``rows``)."""
    apart()
    zero = filled(_ZERO)
    for e in range(count):
        factor = filled(factors[factors_at + e])
        for j in range(e * width, (e + 1) * width, LANES):
            store(out, j, multiply_add(factor, load(rows, at + j, _ZERO), zero))


@njit(cache=True, nogil=True, error_model="numpy")
def misfit(count, a, t, predicted, bias, gram):
    """Return Σ a·(t/a − s − bias)² over entries, s what is ``predicted``; implicit: Σ (1 + a)(1 − s)² − s²."""
    apart()
    total = 0.0
    for e in range(count):
        s, v = np.float64(predicted[e]), np.float64(a[e])
        if not len(gram):
            if v > 0:
                off = np.float64(t[e]) / v - s - np.float64(bias)
                total += v * off * off
        elif t[e] > 0:
            total += v * (1 - s) * (1 - s) + 1 - 2 * s
        else:
            total += v * s * s
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def step(factor, a, b):
    """b += factor·a, for a multiple of `LANES` elements."""
    apart()
    by = filled(factor)
    for j in range(0, len(a), LANES):
        store(b, j, multiply_add(by, load(a, j, _ZERO), load(b, j, _ZERO)))


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def dot(a, b):
    """Return the product of two vectors."""
    apart()
    total = _ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def clear(a):
    """Set a multiple of `LANES` elements to 0."""
    apart()
    for j in range(0, len(a), LANES):
        store(a, j, filled(_ZERO))
