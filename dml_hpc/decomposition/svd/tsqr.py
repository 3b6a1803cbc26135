"""The singular values and right singular vectors of a tall matrix from the R of its QR factorisation, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.decomposition.svd.summaries import combine
from dml_hpc.errors import JobError

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix

_LEAF_COLUMNS = 2
"""A leaf of the tree has at least so many times as many rows as columns: to send a triangle is then to send less."""
_PIECE_ENTRIES = 1 << 16
"""Of a leaf with few columns, so many entries are factorised at a time: they stay in the cache."""
_PANEL = 16
"""Columns of LAPACK's block reflectors."""


def tsqr(matrix: Matrix) -> np.ndarray:
    """Collective: return R (min(m, n), n) float64 of A = QR on every rank, its diagonal not negative.

    RᵀR = AᵀA, but nothing is squared: R is that of A + E with ‖E‖ of the order of rounding ‖A‖, so that every singular
    value is as exact as LAPACK's of A itself. With fewer rows than columns R is trapezoidal. The same bits on any
    number of ranks, see `combine`. Memory a rank: a triangle (n × n) for each level of the tree, and some six more.

    One pass over the data; R of neighbouring blocks of rows are stacked and factorised again (Demmel, Grigori, Hoemmen
    and Langou, SIAM J. Sci. Comput. 34, 2012), which of two triangles takes a fifth of the operations.

    Raises `AgreedError` on every rank for entries that are no finite numbers.
    """
    n = matrix.shape[1]
    R = combine(matrix, _leaf, _merged, _LEAF_COLUMNS * n)
    if len(R) < n:
        R = _geqrf(R)  # few rows: they were kept as they are
    R *= np.where(np.diag(R) < 0, -1.0, 1.0)[:, None]
    return R


def singular(matrix: Matrix, R: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Collective: return the singular values (len(R),), descending, and first ``k`` right vectors V (n, k) of ``R``.

    They are A's if RᵀR = AᵀA. ``R`` (at most n, n) is on every rank, and so is what comes out. Rank 0 alone takes the
    SVD: vectors of close values may differ from one type of processor to the next. Signs are LAPACK's.
    """
    comm, clock = matrix.comm, matrix.clock
    sigma, V = np.empty(len(R)), np.empty((R.shape[1], k))
    with clock.agreed(comm):
        if comm.rank == 0:
            with clock.phase("compute"):
                sigma[:], V[:] = _svd(R, k)
    with clock.phase("communicate"):
        comm.Bcast(sigma)
        comm.Bcast(V)
    return sigma, V


def _svd(R: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.linalg import LinAlgError, svd

    try:
        _, sigma, Vt = svd(R, full_matrices=False, check_finite=False)
    except LinAlgError:  # divide and conquer failed, plain QR iterations do not
        try:
            _, sigma, Vt = svd(R, full_matrices=False, check_finite=False, lapack_driver="gesvd")
        except LinAlgError as error:
            raise JobError(f"the singular values of R were not found: {error}") from None
    return sigma, Vt[:k].T


def _leaf(rows: np.ndarray) -> np.ndarray:
    """Return R (n, n) of ``rows`` (count, n), or, of fewer rows than columns, a copy of them.

    With few columns, piece by piece: all entries of a piece are read again for every one of its columns.
    """
    count, n = rows.shape
    if count < n:
        return rows.copy()
    piece = max(_LEAF_COLUMNS * n, _PIECE_ENTRIES // n)
    R = _geqrf(rows[:piece])
    for first in range(piece, count, piece):
        R = _updated(R, rows[first:first + piece])
    return R


def _merged(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Return R (n, n) of triangle ``upper`` (n, n) on top of ``lower``: another one, or fewer rows than columns."""
    return _updated(upper, lower, triangle=len(lower) == len(upper))


def _geqrf(rows: np.ndarray) -> np.ndarray:
    """Return R (min(count, n), n) of ``rows`` (count, n)."""
    from scipy.linalg.lapack import dgeqrf, dgeqrf_lwork

    count, n = rows.shape
    if count == 0:
        return np.empty((0, n))
    size, _ = dgeqrf_lwork(count, n)
    factored, _, _, _ = dgeqrf(rows, lwork=int(size))
    return np.triu(factored[:n])


def _updated(R: np.ndarray, rows: np.ndarray, triangle: bool = False) -> np.ndarray:
    """Return the triangle of ``R`` (n, n) on top of ``rows`` (count, n), which may be another ``triangle``.

    By reflectors that know R's zeros, LAPACK's tpqrt; R may be overwritten.
    """
    from scipy.linalg.lapack import dtpqrt

    n = len(R)
    updated, _, _, _ = dtpqrt(n if triangle else 0, min(_PANEL, n), R, rows, overwrite_a=1)
    return updated
