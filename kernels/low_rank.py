"""What PowerSGD needs beyond a matrix product. Strictly in order, so that any two CPUs get the same bits.

A vector is seen as a matrix of ``rows`` × ``cols``, row after row. Its factors are held as (rank, rows) and
(rank, cols) float32, so that vectors of the factors are contiguous.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_MULTIPLIER, _INCREMENT, _SHIFT = map(np.uint64, (6364136223846793005, 1442695040888963407, 40))
_DEPENDENT = 1e-6
"""A vector of which no larger part is left when its projections are taken away is rounding errors only."""


@njit(cache=True, nogil=True)
def orthonormalise(vectors):
    """Make ``vectors`` (rank, n) float32, rank <= n, orthonormal in place, spanning what they spanned.

    Gram-Schmidt in float64, twice ("twice is enough": Giraud, Langou and Rozloznik, *The loss of orthogonality in the
    Gram-Schmidt orthogonalization process*, 2005). A vector that is zero, or depends on those before it, is replaced
    by a pseudo-random one, the same at every call. What is not finite leaves NaN.
    """
    rank, n = vectors.shape
    basis = np.empty((rank, n))
    for k in range(rank):
        own = basis[k]
        own[:] = vectors[k]
        before = _dot(own, own)
        _project(basis, k)
        if before < np.inf and _dot(own, own) <= _DEPENDENT ** 2 * before:
            state = np.uint64(k)
            for j in range(n):
                state = state * _MULTIPLIER + _INCREMENT  # Knuth's, as in MMIX
                own[j] = np.float64(state >> _SHIFT) - 2.0 ** 23
            _project(basis, k)
        _project(basis, k)
        length = math.sqrt(_dot(own, own))
        for j in range(n):
            own[j] /= length
            vectors[k, j] = own[j]


@njit(cache=True, nogil=True)
def _project(basis, k):
    """Take from vector k of ``basis`` its projections on those before it."""
    own = basis[k]
    for other in basis[:k]:
        c = _dot(own, other)
        for j in range(len(own)):
            own[j] -= c * other[j]


@njit(cache=True, nogil=True)
def _dot(a, b):
    # Four sums, because one would wait for each addition.
    s0 = s1 = s2 = s3 = 0.0
    fours = len(a) // 4 * 4
    for j in range(0, fours, 4):
        s0 += a[j] * b[j]
        s1 += a[j + 1] * b[j + 1]
        s2 += a[j + 2] * b[j + 2]
        s3 += a[j + 3] * b[j + 3]
    for j in range(fours, len(a)):
        s0 += a[j] * b[j]
    return (s0 + s1) + (s2 + s3)


@njit(cache=True, nogil=True)
def expand(P, Q, own, residual, total):
    """Write the product PᵀQ to ``total`` (n,) float32, and take Pᵀ·own from ``residual`` (n,), in one pass.

    P is (rank, rows); Q and ``own`` are (rank, cols), with n <= rows·cols.
    """
    cols = Q.shape[1]
    for i in range(P.shape[1]):
        out, left = total[i * cols:(i + 1) * cols], residual[i * cols:(i + 1) * cols]
        out[:] = 0
        for k in range(len(P)):
            p, q, o = P[k, i], Q[k], own[k]
            for j in range(len(out)):
                out[j] += p * q[j]
            for j in range(len(left)):
                left[j] -= p * o[j]
