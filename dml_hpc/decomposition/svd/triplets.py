"""Singular triplets with their certificates, from one pass over the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd.orthonormal import orthonormal, random_block, without


@dataclass(frozen=True)
class Triplets:
    """Approximate singular triplets (σ, u = Av/σ, v) of A, σ descending.

    ``singular_values`` (k,) float64; ``V`` (thin, k) float64, this rank's rows of orthonormal columns.
    ``relative_residuals`` (k,) are ‖Aᵀu − σv‖/σ₁ and ``left_residuals`` (k,) ‖Av − σu‖/σ₁, the latter rounding alone;
    NaN where σ is zero to rounding and there is no u. A has a singular value within a residual times σ₁ of each σ
    (Parlett, *The Symmetric Eigenvalue Problem*, SIAM 1998, theorem 4.5.1, for [0 A; Aᵀ 0]).
    """

    singular_values: np.ndarray
    V: np.ndarray
    relative_residuals: np.ndarray
    left_residuals: np.ndarray

    def first(self, k: int) -> Triplets:
        """Return the ``k`` largest."""
        return Triplets(self.singular_values[:k], self.V[:, :k], self.relative_residuals[:k], self.left_residuals[:k])

    @property
    def worst(self) -> float:
        """The largest residual of those that have one."""
        return float(np.nanmax(self.relative_residuals, initial=0.0))


def certified(matrix: Matrix, V: np.ndarray, given: tuple[np.ndarray, np.ndarray] | None = None) -> Triplets:
    """Collective: return the best triplets in the span of ``V`` (thin, l), and how good they are.

    V has orthonormal columns. The Rayleigh-Ritz values are those of AV, from a factor of VᵀAᵀAV: columns that are
    nearly singular vectors make this, scaled, close to the identity, so that small values keep their digits (Demmel
    and Veselić, SIAM J. Matrix Anal. Appl. 13, 1992). Residuals are taken from A itself, and what rounding may hide is
    added to them: Av has an error of half an ε times σ₁, which u = Av/σ multiplies. Rank 0 decides.
    """
    Z, S = matrix.gram_products(V) if given is None else given
    with matrix.clock.phase("compute"):
        sigma, W = matrix.comm.bcast(_small_svd(S) if matrix.comm.rank == 0 else None)
        V, Z, S = V @ W, Z @ W, W.T @ S @ W
    norms = np.sqrt(np.maximum(np.diag(S), 0))
    largest = sigma.max(initial=0.0)
    # The usual numerical rank: below it Av is rounding and u would be noise of length one.
    told = sigma > max(matrix.shape) * np.finfo(float).eps * largest
    difference = Z[:, told] / sigma[told] - V[:, told] * sigma[told]
    right, left = np.full(len(sigma), np.nan), np.full(len(sigma), np.nan)
    unit = float(np.finfo(np.float32 if matrix.precision == np.float32 else np.float64).eps) / 2
    right[told] = np.sqrt(np.diag(matrix.inner(difference, difference))) / largest + unit * largest / sigma[told]
    left[told] = np.abs(norms[told] - sigma[told]) / largest
    right, left = matrix.comm.bcast((right, left))  # what is decided by them, all ranks are to decide alike
    return Triplets(sigma, V, right, left)


def with_signs(matrix: Matrix, found: Triplets) -> Triplets:
    """Collective: return the triplets, v and u with such a sign that v's entry of largest magnitude is positive.

    Of several such entries, up to rounding, the first counts.
    """
    V = found.V
    magnitudes = np.abs(V)
    first, k = matrix.thin[0], V.shape[1]
    tops = np.max(matrix.comm.allgather(magnitudes.max(axis=0, initial=0.0)), axis=0)
    near = magnitudes >= tops * (1 - 1e-6)
    own = [(first + int(rows[0]), float(V[rows[0], i])) if len(rows := np.flatnonzero(near[:, i])) else (1 << 62, 1.0)
           for i in range(k)]
    chosen = [min(entries) for entries in zip(*matrix.comm.allgather(own), strict=True)]
    signs = np.array([-1.0 if entry < 0 else 1.0 for _, entry in chosen])
    return Triplets(found.singular_values, V * signs, found.relative_residuals, found.left_residuals)


def completed(matrix: Matrix, V: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Collective: return at least ``k`` orthonormal columns (thin, ·), V's first; the others are any."""
    while V.shape[1] < k:
        more = without(matrix, V, random_block(matrix, k - V.shape[1], seed))
        V = np.concatenate([V, orthonormal(matrix, more, V)[0]], axis=1)
        seed += 1
    return V


def _small_svd(S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return σ (l,) and W (l, l) of any R with RᵀR = S."""
    lengths = np.sqrt(np.maximum(np.diag(S), 0))
    inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    values, Q = np.linalg.eigh(S * np.outer(inverse, inverse))
    sigma, Wt = np.linalg.svd(np.sqrt(np.maximum(values, 0))[:, None] * Q.T * lengths)[1:]
    return np.abs(sigma), Wt.T
