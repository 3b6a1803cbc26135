"""``gram``: AᵀA summed over chunks and its eigenvectors; for a wide matrix AAᵀ, with no transposed copy.

One pass at the speed of BLAS and one sum of n × n numbers, whatever the number of rows (Golub and Van Loan, *Matrix
Computations*, 4th ed., section 8.6). Squaring costs accuracy at the small end: what lies below √ε·σ₁ is lost. A second
pass with the first one's vectors as a preconditioner brings it back, as in CholeskyQR2 and, for matrices that are
singular to rounding, its shifted variant (Fukaya, Kannan, Nakatsukasa, Yamamoto and Yanagisawa, SIAM J. Sci. Comput.
42, 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.course import Course, kept_rows, put_rows
from dml_hpc.decomposition.svd.orthonormal import orthonormal
from dml_hpc.errors import JobError
from dml_hpc.store.state import Kept, State

MOST_COLUMNS = 8192
"""AᵀA takes 0.5 GB on every rank at so many, and its eigenvectors minutes."""
_SMALL = 1024
"""Up to so many columns all eigenvectors are there before SciPy is."""


class Leading(NamedTuple):
    """Vectors ``V`` and estimates of the ``singular_values`` that are known (≥ r,).

    V is (n, r) on every rank, but of a wide matrix (thin, r), this rank's rows.
    """

    V: np.ndarray
    singular_values: np.ndarray

    def state(self, matrix: Matrix, whole: bool) -> State:
        """Return all of this, in a state; ``whole``: every rank has V."""
        found = State()
        put_rows(found, matrix, "V", self.V, whole)
        found.put_shared("sigma", self.singular_values, matrix.comm.rank, matrix.comm.size)
        return found


def kept_leading(kept: Kept, matrix: Matrix, whole: bool) -> Leading:
    """Return what `Leading.state` told."""
    return Leading(kept_rows(kept, matrix, "V", whole), kept.vector("sigma"))


def leading(matrix: Matrix, k: int | None) -> Leading:
    """Collective: return the ``k`` leading right singular vectors (None: all) by the eigenvectors of AᵀA.

    The grid has one column. Memory: three arrays of n² float64 on every rank, some more on rank 0, which alone solves
    the eigenproblem.
    """
    n = matrix.shape[1]
    G = summed(matrix, None)
    values, V = _solved(matrix, G, n if k is None else k)
    return Leading(V, np.sqrt(np.maximum(values, 0)))


def refined(matrix: Matrix, rough: Leading | None, course: Course) -> Leading:
    """Collective: return all right singular vectors from `leading`'s, all of them, with the accuracy of a QR.

    AV·diag(1/σ) has columns of about length one, so its Gram matrix, summed in float64, keeps what AᵀA lost. Values
    that are lost altogether are taken to be √ε·σ₁, and appear in the first pass or the second. Between these ``course``
    is told; where it goes on from there ``rough`` is not needed.
    """
    kept = course.taken("refined")
    if kept is not None:
        found = kept_leading(kept, matrix, whole=True)
    else:
        assert rough is not None
        found, all_right = _refined_once(matrix, rough)
        if all_right:
            return found
        course.after_pass("refined", lambda: found.state(matrix, whole=True))
    return _refined_once(matrix, found)[0]


def _refined_once(matrix: Matrix, rough: Leading) -> tuple[Leading, bool]:
    """Collective: return better vectors, and whether the preconditioner was right all over: nothing was lost."""
    n = matrix.shape[1]
    sigma = np.maximum(rough.singular_values, 4 * np.sqrt(n * np.finfo(float).eps) * rough.singular_values[0])
    G = summed(matrix, rough.V / sigma)
    values, Q = matrix.comm.bcast(np.linalg.eigh(G) if matrix.comm.rank == 0 else None)
    # A = (AV/σ)·diag(σ)Vᵀ and (AV/σ)ᵀ(AV/σ) = QΛQᵀ: A has the singular values of Λ^½Qᵀdiag(σ)·Vᵀ.
    R = np.sqrt(np.maximum(values, 0))[:, None] * Q.T * sigma
    sigma, Wt = matrix.comm.bcast(np.linalg.svd(R)[1:] if matrix.comm.rank == 0 else None)
    return Leading(rough.V @ Wt.T, sigma), values[0] > 0.01


def leading_of_wide(matrix: Matrix, k: int, enough: Callable[[np.ndarray], int]) -> Leading:
    """Collective: return the leading right singular vectors by the eigenvectors of AAᵀ; the grid has one row.

    As many as ``enough(singular_values)`` says, ``k`` at most, in no order. Every rank holds its columns of A in
    memory, in the precision of the products.
    """
    m = matrix.shape[0]
    with matrix.clock.agreed(matrix.comm):
        own = matrix.products.whole()
    if matrix.unsafe():
        return leading_of_wide(matrix, k, enough)
    total = matrix.sum_of(m * m, over_all=True)
    total.clear()
    matrix.products.outer(own, total)
    values, U = _solved(matrix, total.total().reshape(m, m), k)
    sigma = np.sqrt(np.maximum(values, 0))
    back = matrix.products.back(own, U[:, :enough(sigma)].astype(matrix.precision))
    return Leading(orthonormal(matrix, back.astype(np.float64))[0], sigma)


def summed(matrix: Matrix, P: np.ndarray | None) -> np.ndarray:
    """Collective: return BᵀB (·, ·) of B = AP, or A itself, float64, summed over all chunks."""
    n = matrix.shape[1]
    bound = matrix.squared_norm() if matrix.reproducible else 1.0
    if P is not None:
        bound *= float(np.linalg.norm(P, 2)) ** 2 if matrix.reproducible else 1.0
    total = matrix.sum_of(n * n)
    total.clear(bound)
    with matrix.clock.agreed(matrix.comm):
        matrix.products.gram(None if P is None else P.astype(matrix.precision), total)
    found = total.total().reshape(n, n)
    return summed(matrix, P) if matrix.unsafe() else found


def _solved(matrix: Matrix, G: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Collective: return eigenvalues, descending, as many as are known, and the k leading vectors, from rank 0.

    One rank decides: eigenvectors of close eigenvalues may differ from one type of processor to the next.
    """
    with matrix.clock.agreed(matrix.comm):
        found = None
        if matrix.comm.rank == 0:
            with matrix.clock.phase("compute"):
                try:
                    values, vectors = _eigenvectors(G, k)
                except np.linalg.LinAlgError as error:
                    raise JobError(f"the eigenproblem of A's Gram matrix was not solved: {error}") from None
                found = values[::-1].copy(), vectors[:, ::-1][:, :k].copy()
    with matrix.clock.phase("communicate"):
        values, V = matrix.comm.bcast(found)
    return values, V


def _eigenvectors(G: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues, ascending, and vectors of the largest k and one more, which bounds what is left out."""
    n = len(G)
    if n <= _SMALL or 2 * k > n:
        return np.linalg.eigh(G)
    from scipy.linalg import eigh

    return eigh(G, subset_by_index=[n - k - 1, n - 1], overwrite_a=False, check_finite=False)
