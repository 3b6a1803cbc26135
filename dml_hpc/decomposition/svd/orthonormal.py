"""Orthonormal bases of thin matrices, dealt to ranks as `Matrix` says."""

from __future__ import annotations

import numpy as np

from dml_hpc.decomposition.matrix import Matrix

_KEPT = 1e-6
"""Directions are taken together whose squares, columns scaled to length one, differ by no more than this factor: what
is shorter is lost in the rounding of longer ones, and is looked for in what is left without these."""
_OWN = 0.25
"""A direction of which more than the rest of this lies in the basis already was rounding."""
_NOTHING = 1e-14
"""What is left of a column is rounding when it is this much shorter than the longest was."""


def orthonormal(matrix: Matrix, F: np.ndarray, basis: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Collective: return Q (thin, r) with orthonormal columns and B = QᵀF (r, l), with F = Q·B up to rounding.

    ``F`` is (thin, l); r ≤ l is its numerical rank, and columns are of no particular order. With an orthonormal
    ``basis`` (thin, s), of which F has little, Q is orthogonal to that, and F = Q·B but for what the basis has.

    By the eigenvectors of the scaled FᵀF (Stathopoulos and Wu, *A block orthogonalization procedure with constant
    synchronization requirements*, SIAM J. Sci. Comput. 23, 2002, algorithm SVQB), the strongest directions first, as
    many times as it takes.
    """
    left, whole, parts = F, 0.0, np.empty((len(F), 0))
    while parts.shape[1] < F.shape[1]:
        gram = matrix.inner(left, left)
        turned = matrix.comm.bcast(_strongest(gram, whole) if matrix.comm.rank == 0 else None)  # all keep the same
        whole = whole or float(np.sqrt(np.diag(gram).max()))
        if turned is None:
            break
        Q = left @ turned[:, :F.shape[1] - parts.shape[1]]
        for _ in range(2):
            Q = without(matrix, parts, Q if basis is None else without(matrix, basis, Q, times=1), times=1)
            values, vectors = matrix.comm.bcast(np.linalg.eigh(matrix.inner(Q, Q)))
            Q = Q @ (vectors / np.sqrt(np.maximum(values, 1e-300)))[:, values > _OWN]
        if not Q.shape[1]:
            break
        parts = np.concatenate([parts, Q], axis=1)
        if turned.shape[1] == F.shape[1]:
            break
        left = without(matrix, parts, left)
    return parts, matrix.inner(parts, F)


def _strongest(gram: np.ndarray, whole: float) -> np.ndarray | None:
    """Return T (l, r), so that the columns of F·T are orthonormal and span F's strongest directions; None: no more.

    ``gram`` is FᵀF, ``whole`` the length of what F once was (0: this is it).
    """
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    alive = lengths > max(_NOTHING * (whole or lengths.max(initial=0.0)), 1e-150)
    if not alive.any():
        return None
    inverse = np.where(alive, 1 / np.where(alive, lengths, 1), 0)
    values, vectors = np.linalg.eigh(gram * np.outer(inverse, inverse))
    kept = values > _KEPT * values[-1]
    return (inverse[:, None] * vectors[:, kept] / np.sqrt(values[kept]))[:, ::-1]


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
