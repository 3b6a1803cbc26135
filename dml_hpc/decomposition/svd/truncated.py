"""The truncated SVD: a method finds a subspace, one more pass certifies it, until residuals are as small as asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd import gram
from dml_hpc.decomposition.svd.incremental import incremental
from dml_hpc.decomposition.svd.krylov import block_krylov, width_of
from dml_hpc.decomposition.svd.orthonormal import random_block
from dml_hpc.decomposition.svd.triplets import Triplets, certified, completed, with_signs
from dml_hpc.decomposition.svd.tsqr import singular, tsqr

MOST_PASSES = 300
FIRST_K = 16
"""So many triplets are computed first where a tolerance, not a number, says how many there are to be."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for: at most ``k`` triplets, each with a residual of ``accuracy``·σ₁ at most.

    With ``energy``, only as many as it takes to hold that share of ‖A‖_F²; with ``ratio``, those with σ ≥ ratio·σ₁.
    """

    k: int
    accuracy: float
    energy: float | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None:  # to tell σ from ratio·σ₁ it has to be known better than that
            object.__setattr__(self, "accuracy", min(self.accuracy, self.ratio / 10))

    @property
    def open(self) -> bool:
        """Whether the number of triplets is to be found."""
        return self.energy is not None or self.ratio is not None

    def enough(self, sigma: np.ndarray, squared_norm: float) -> int | None:
        """Return how many of the leading values ``sigma`` (r,) do, None: not even all of them."""
        if self.ratio is not None:
            below = np.flatnonzero(sigma < self.ratio * sigma[:1].sum())
            return max(1, int(below[0])) if len(below) else None
        assert self.energy is not None
        reached = np.flatnonzero(np.cumsum(np.square(sigma)) >= self.energy * squared_norm * (1 - 1e-12))
        return int(reached[0]) + 1 if len(reached) else None


@dataclass(frozen=True)
class Found:
    """``triplets`` with what is known of the rest of A.

    ``error_bound`` bounds ‖A − UΣVᵀ‖₂, ``remainder`` is ‖A − UΣVᵀ‖_F; both absolute. ``met``: every residual is as
    small as asked, and there are as many triplets as the tolerance wants.
    """

    triplets: Triplets
    norm: float
    error_bound: float
    remainder: float
    met: bool


def truncated_svd(matrix: Matrix, method: str, wide: bool, wanted: Wanted, seed: int) -> Found:
    """Collective: return the leading singular triplets of A by ``method``, the same on every rank.

    ``method`` and ``wide`` are as `dml_hpc.decomposition.svd.choice` has chosen. V is dealt to ranks as `Matrix` says.
    Raises `AgreedError` for entries that are no finite numbers.
    """
    if method == "incremental":
        return _in_one_pass(matrix, wanted)
    k = min(FIRST_K, wanted.k) if wanted.open and method == "randomized" else wanted.k
    start = random_block(matrix, width_of(k, matrix.shape[1]), seed)
    while True:
        for subspace in _subspaces(matrix, method, wide, k, wanted, start, seed):
            triplets = certified(matrix, subspace.V).first(subspace.k)
            if triplets.worst <= wanted.accuracy:
                break
        sigma = triplets.singular_values
        enough = wanted.enough(sigma, matrix.squared_norm()) if wanted.open else len(sigma)
        if enough is None and len(sigma) == min(matrix.shape):
            enough = len(sigma)  # there are no more
        if enough is not None or k >= wanted.k:
            break
        k, start = min(2 * k, wanted.k), triplets.V
    kept = min(len(sigma), enough or len(sigma))
    next_value = subspace.values[kept] if kept < len(subspace.values) else subspace.rest
    return _judged(matrix, triplets.first(kept), next_value, wanted, enough is not None)


class _Subspace(NamedTuple):
    """A subspace ``V`` (thin, ≥ k) that holds the ``k`` leading vectors.

    ``values`` estimate the leading σ, as many as are known; ``rest`` bounds those behind, None: nothing is known.
    """

    V: np.ndarray
    k: int
    values: np.ndarray
    rest: float | None


def _subspaces(matrix: Matrix, method: str, wide: bool, k: int, wanted: Wanted, start: np.ndarray,
               seed: int) -> Iterator[_Subspace]:
    """Yield ever better subspaces.

    First with products in the precision of the data, then in float64, then by what is slower and loses nothing.
    """
    if method == "randomized":
        for closer in (1.0, 0.1, 0.01):  # the estimates of an iteration are not yet the residuals
            while True:
                precision = matrix.precision
                ritz = block_krylov(matrix, k, closer * wanted.accuracy, start, MOST_PASSES, seed)
                start = completed(matrix, ritz.V, k, seed)
                yield _Subspace(start, k, np.empty(0), None)
                if precision == np.float64:
                    break
                matrix.go_double()
    elif method == "tsqr":
        matrix.go_double()
        sigma, V = singular(matrix, tsqr(matrix), k)
        yield _chosen(matrix, matrix.dealt(V), sigma, k, wanted)
    elif wide:
        while True:
            found = gram.leading_of_wide(matrix, k, lambda sigma: _enough(matrix, sigma, k, wanted))
            some = _enough(matrix, found.singular_values, k, wanted)
            yield _Subspace(completed(matrix, found.V, some, seed), some, found.singular_values, 0.0)
            if matrix.precision == np.float64:
                return
            matrix.go_double()
    else:
        if matrix.precision != np.float64:
            found = gram.leading(matrix, k)
            yield _chosen(matrix, matrix.dealt(found.V), found.singular_values, k, wanted)
            matrix.go_double()
        found = gram.leading(matrix, None)
        yield _chosen(matrix, matrix.dealt(found.V), found.singular_values, k, wanted)
        if matrix.reproducible:  # fixed point has no room for what squares lose
            if matrix.on_device:
                matrix.console.say("svd      what squares have lost is found by tsqr, on the CPU")
            sigma, V = singular(matrix, tsqr(matrix), k)
            yield _chosen(matrix, matrix.dealt(V), sigma, k, wanted)
        else:
            found = gram.refined(matrix, found)
            yield _chosen(matrix, matrix.dealt(found.V), found.singular_values, k, wanted)


def _chosen(matrix: Matrix, V: np.ndarray, sigma: np.ndarray, k: int, wanted: Wanted) -> _Subspace:
    k = _enough(matrix, sigma, k, wanted)
    return _Subspace(V[:, :k], k, sigma, 0.0)


def _enough(matrix: Matrix, sigma: np.ndarray, k: int, wanted: Wanted) -> int:
    """Return how many vectors are wanted, and one more, which shows that they are enough; ``k`` at most."""
    if not wanted.open:
        return k
    return min(k, (wanted.enough(sigma, matrix.squared_norm()) or k) + 1)


def _judged(matrix: Matrix, triplets: Triplets, next_value: float | None, wanted: Wanted, enough: bool) -> Found:
    triplets = with_signs(matrix, triplets)
    squared, sigma = matrix.squared_norm(), triplets.singular_values
    # What rounding the products may have cost, as random roundings add up (Higham and Mary, SIAM J. Sci. Comput. 41,
    # 2019): inner products are as long as a block of rows.
    slack = 4 * math.sqrt(matrix.products.longest) * _rounding(matrix) * squared
    left_out = max(squared - math.fsum(np.square(sigma).tolist()), 0.0)
    bound = math.sqrt(left_out + slack)
    if next_value is not None and triplets.worst <= wanted.accuracy:
        bound = min(bound, math.sqrt(next_value**2 + slack))
    met = enough and triplets.worst <= wanted.accuracy
    return Found(triplets, math.sqrt(squared), bound, math.sqrt(left_out), met)


def _rounding(matrix: Matrix) -> float:
    return float(np.finfo(np.float32 if matrix.precision == np.float32 else np.float64).eps)


def _in_one_pass(matrix: Matrix, wanted: Wanted) -> Found:
    """Collective: return what one pass tells, residuals being bounds."""
    matrix.go_double()
    found = incremental(matrix, wanted.k)
    sigma = found.singular_values
    enough = wanted.enough(sigma, found.squared_norm) if wanted.open else wanted.k
    if enough is None and wanted.k == min(matrix.shape):
        enough = wanted.k
    k = enough or wanted.k
    rounding = max(matrix.shape) * np.finfo(float).eps * sigma[0]
    told = (sigma[:k] > 0) & ((sigma[:k] > rounding) | (found.error_bound > 1e8 * rounding))
    right, left = np.full(k, np.nan), np.full(k, np.nan)
    right[told], left[told] = (found.residual_bounds[:k] / sigma[0])[told], 0.0
    triplets = with_signs(matrix, Triplets(sigma[:k], matrix.dealt(found.V)[:, :k], right, left))
    left_out = math.sqrt(max(found.squared_norm - math.fsum(np.square(sigma[:k]).tolist()), 0.0))
    bound = math.hypot(found.error_bound, float(sigma[k]) if len(sigma) > k else 0.0)
    return Found(triplets, math.sqrt(found.squared_norm), bound, left_out,
                 enough is not None and triplets.worst <= wanted.accuracy)
