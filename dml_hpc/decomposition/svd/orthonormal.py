"""Orthonormal bases of thin matrices, dealt to ranks as `Matrix` says."""

from __future__ import annotations

import numpy as np

from dml_hpc.decomposition.matrix import Matrix

_KEPT = 1e-14
"""A direction is kept whose square, columns scaled to length one, is this share of the largest: below is rounding."""


def orthonormal(matrix: Matrix, F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collective: return Q (thin, r) with orthonormal columns and B (r, l) with F = Q·B.

    ``F`` is (thin, l); r ≤ l is its numerical rank, and columns are of no particular order. By the eigenvectors of the
    scaled FᵀF, twice (Stathopoulos and Wu, *A block orthogonalization procedure with constant synchronization
    requirements*, SIAM J. Sci. Comput. 23, 2002, algorithm SVQB).
    """
    Q, B = F, np.eye(F.shape[1])
    for _ in range(2):
        gram = matrix.inner(Q, Q)
        lengths = np.sqrt(np.diag(gram))
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        values, vectors = matrix.comm.bcast(np.linalg.eigh(gram * np.outer(inverse, inverse)))  # all keep the same
        kept = values > _KEPT * max(values[-1:].max(initial=0), 1e-300)
        values, vectors = values[kept], vectors[:, kept]
        # Q = Q·(D⁻¹VΛ^-½), B = (Λ^½VᵀD)·B
        Q = Q @ (inverse[:, None] * vectors / np.sqrt(values))
        B = (np.sqrt(values)[:, None] * vectors.T * lengths) @ B
    return Q, B


def without(matrix: Matrix, basis: np.ndarray, F: np.ndarray, times: int = 2) -> np.ndarray:
    """Collective: return F (thin, l) less what lies in the orthonormal ``basis`` (thin, s).

    Twice is enough (Giraud, Langou and Rozložník, Computers and Mathematics with Applications 50, 2005).
    """
    for _ in range(times):
        F = F - basis @ matrix.inner(basis, F)
    return F


def random_block(matrix: Matrix, count: int, seed: int) -> np.ndarray:
    """Return this rank's rows of a Gaussian matrix (n, count), which is the same on any grid."""
    first, last = matrix.thin
    found = np.empty((last - first, count))
    for block in range(first // _ROWS, -(-last // _ROWS)):
        start, stop = max(first, block * _ROWS), min(last, (block + 1) * _ROWS)
        drawn = np.random.default_rng([seed, count, block]).standard_normal((_ROWS, count))
        found[start - first:stop - first] = drawn[start - block * _ROWS:stop - block * _ROWS]
    return found


_ROWS = 4096
"""Drawn at a time, from a stream of their own."""
