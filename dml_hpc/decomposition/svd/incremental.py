"""The leading singular triplets from one pass and little memory, with bounds on what that costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.decomposition.svd.summaries import combine
from dml_hpc.decomposition.svd.tsqr import singular
from dml_hpc.errors import JobError, UserError

if TYPE_CHECKING:
    from dml_hpc.decomposition.matrix import Matrix

_EXTRA = 20
"""A summary has so many rows more than twice as many as triplets are asked for: few more operations, many digits."""
_LEAF_BYTES = 1 << 20, 256 << 20
"""A leaf of the tree has about a quarter as many rows as columns, and between so many bytes."""
_SCALARS = 2
"""Columns after a summary's n: their sums are δ and ‖·‖_F² of the rows that it stands for."""


@dataclass(frozen=True)
class Incremental:
    """The same on every rank: the leading triplets (σ, u = Av/σ, v) as far as one pass tells, σ descending.

    ``singular_values`` (k,), ``V`` (n, k) with orthonormal columns, float64; no σ is above A's own of the same number,
    up to rounding. ``residual_bounds`` (k,) are at least ‖Aᵀu − σv‖, infinite where σ is zero. ``error_bound`` is at
    least ‖A − AVVᵀ‖₂; ``squared_norm`` is ‖A‖_F², and ‖A − AVVᵀ‖_F² is at most that less the sum of σ².
    """

    singular_values: np.ndarray
    V: np.ndarray
    residual_bounds: np.ndarray
    error_bound: float
    squared_norm: float


def incremental(matrix: Matrix, k: int) -> Incremental:
    """Collective: return ``k`` ≤ min(m, n) approximate leading triplets of A and bounds on their errors, from one pass.

    Blocks of rows are summarised by r = 2k + 20 rows S, summaries stacked in pairs and summarised again (Levy and
    Lindenbaum, IEEE Trans. Image Process. 9, 2000; Brand, Linear Algebra Appl. 415, 2006), along a tree that is the
    same, as are the bits of what comes out, on any number of ranks (`combine`). Memory a rank: r × n for each level of
    the tree, and one leaf, of 256 MB at most unless a chunk or 2r rows are larger.

    The bounds: a block B becomes S = UᵀB, U holding the r leading left singular vectors, so that BᵀB = SᵀS + E with
    E = Bᵀ(I − UUᵀ)B, which is positive semidefinite and of norm τ², B's first discarded singular value squared. Over
    the tree the E of all nodes add up: AᵀA = SᵀS + E for the last S, with 0 ≼ E and ‖E‖₂ ≤ δ = Σ τ² (as for frequent
    directions: Liberty, KDD 2013). For a triplet (σ, v) of S and u = Av/σ this gives Aᵀu − σv = Ev/σ, at most δ/σ long;
    ‖A − AVVᵀ‖₂² = ‖(I − VVᵀ)(SᵀS + E)(I − VVᵀ)‖₂ ≤ σ²ₖ₊₁(S) + δ; and ‖Av‖² ≥ σ². Residuals are often smaller than
    their bounds by orders of magnitude, as E hardly meets v; a second pass would tell. U comes from the eigenvectors of
    BBᵀ or BᵀB, some five times as fast as a block's SVD: as U is orthonormal however far it is from singular vectors,
    this costs roundings of ‖B‖_F² in E, no more than computing S costs anyhow, and they are counted in δ (as random
    ones add up: Higham and Mary, SIAM J. Sci. Comput. 41, 2019).

    Raises `AgreedError` on every rank for entries that are no finite numbers or too large for their squares' sum.
    """
    m, n = matrix.shape
    kept = min(2 * k + _EXTRA, m, n)

    def leaf(rows: np.ndarray) -> np.ndarray:
        return _summary(rows, kept, 0.0, float(np.einsum("ij,ij->", rows, rows)))

    def merge(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        stack = np.concatenate([upper, lower])
        delta, squares = stack[:, n:].sum(axis=0)
        return _summary(stack[:, :n], kept, float(delta), float(squares))

    # Larger leaves are fewer, and each of them loses the noise of n columns, if no more than that.
    least, most = (size // (8 * n) for size in _LEAF_BYTES)
    total = combine(matrix, leaf, merge, max(2 * kept, least, min(n // 4, most)))
    sigma, V = singular(matrix, total[:, :n], k)
    delta, squares = (float(number) for number in total[:, n:].sum(axis=0))
    delta += _rounding(kept, n, squares)
    leading = sigma[:k]
    bounds = np.divide(delta, leading, out=np.full(k, np.inf), where=leading > 0)
    return Incremental(leading, V, bounds, math.hypot(math.sqrt(delta), sigma[k:k + 1].sum()), squares)


def _summary(rows: np.ndarray, kept: int, delta: float, squares: float) -> np.ndarray:
    """Return (at most ``kept``, n + 2) for ``rows`` (count, n), which already miss ``delta`` of the ``squares``."""
    count, n = rows.shape
    if not math.isfinite(squares):
        raise UserError("the squares of the entries add up to more than float64 holds; scale the columns down first")
    if count > kept:
        rows, lost = _truncated(rows, kept)
        delta += lost + _rounding(count, n, squares)
    summary = np.zeros((len(rows), n + _SCALARS))
    summary[:, :n] = rows
    summary[:1, n:] = delta, squares
    return summary


def _rounding(count: int, n: int, squares: float) -> float:
    """Return what rounding may change BᵀB by, in norm, where B (count, n) is replaced and ``squares`` is ‖B‖_F²."""
    return 4 * math.sqrt(count + n) * float(np.finfo(float).eps) * squares


def _truncated(rows: np.ndarray, kept: int) -> tuple[np.ndarray, float]:
    """Return S (``kept``, n) of ``rows`` (count, n), count > kept, and the square of the first discarded value."""
    count, n = rows.shape
    try:
        if count <= n:
            values, vectors = np.linalg.eigh(rows @ rows.T)
            return vectors[:, :-kept - 1:-1].T @ rows, max(float(values[-kept - 1]), 0.0)
        values, vectors = np.linalg.eigh(rows.T @ rows)
    except np.linalg.LinAlgError as error:
        raise JobError(f"the eigenproblem of a block of rows was not solved: {error}") from None
    S = np.sqrt(np.maximum(values[:-kept - 1:-1], 0))[:, None] * vectors[:, :-kept - 1:-1].T
    return S, max(float(values[-kept - 1]), 0.0) if kept < n else 0.0
