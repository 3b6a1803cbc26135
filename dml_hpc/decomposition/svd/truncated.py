"""The truncated SVD: a method finds a subspace, one more pass certifies it, until residuals are as small as asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from dml_hpc.decomposition.matrix import Matrix
from dml_hpc.decomposition.svd import gram
from dml_hpc.decomposition.svd.course import Course, kept_rows, put_rows
from dml_hpc.decomposition.svd.gram import Leading, kept_leading
from dml_hpc.decomposition.svd.incremental import incremental
from dml_hpc.decomposition.svd.krylov import block_krylov, width_of
from dml_hpc.decomposition.svd.orthonormal import random_block
from dml_hpc.decomposition.svd.triplets import Triplets, certified, completed, with_signs
from dml_hpc.decomposition.svd.tsqr import singular, tsqr
from dml_hpc.store.state import Kept, State

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


def truncated_svd(matrix: Matrix, method: str, wide: bool, wanted: Wanted, seed: int,
                  course: Course | None = None) -> Found:
    """Collective: return the leading singular triplets of A by ``method``, the same on every rank.

    ``method`` and ``wide`` are as `dml_hpc.decomposition.svd.choice` has chosen. V is dealt to ranks as `Matrix` says.
    ``course``, of ``matrix``, is told after every pass over the data, and knows where to begin; None: nothing is kept.
    Raises `AgreedError` for entries that are no finite numbers.
    """
    course = course or Course(matrix)
    if (kept := course.taken("found")) is not None:
        found = _found_before(matrix, kept)
    elif method == "incremental":
        found = _in_one_pass(matrix, wanted)
    else:
        found = _searched(_Search(matrix, method, wide, wanted, seed, course))
    course.complete("found", lambda: _state_of(matrix, found))
    return found


def _searched(search: _Search) -> Found:
    """Collective: return as many triplets as are wanted; with a tolerance ever more, until there are enough."""
    matrix, wanted, course = search.matrix, search.wanted, search.course
    if "k" in course.at:
        k, stage = course.at["k"], course.at["stage"]
        kept = course.taken("before")
        before = None if kept is None else kept_leading(kept, matrix, search.whole)
    else:
        k, stage = min(FIRST_K, wanted.k) if wanted.open and search.method == "randomized" else wanted.k, search.first
        before = Leading(random_block(matrix, width_of(k, matrix.shape[1]), search.seed), np.empty(0))
    while True:
        triplets, subspace = search.run(k, stage, before)
        sigma = triplets.singular_values
        enough = wanted.enough(sigma, matrix.squared_norm()) if wanted.open else len(sigma)
        if enough is None and len(sigma) == min(matrix.shape):
            enough = len(sigma)  # there are no more
        if enough is not None or k >= wanted.k:
            break
        k, stage, before = min(2 * k, wanted.k), search.first, Leading(np.ascontiguousarray(triplets.V), np.empty(0))
        search.pause(k, stage, before)
    kept_count = min(len(sigma), enough or len(sigma))
    next_value = subspace.values[kept_count] if kept_count < len(subspace.values) else subspace.rest
    return _judged(matrix, triplets.first(kept_count), next_value, wanted, enough is not None)


class _Subspace(NamedTuple):
    """A subspace ``V`` (thin, ≥ k) that holds the ``k`` leading vectors.

    ``values`` estimate the leading σ, as many as are known; ``rest`` bounds those behind, None: nothing is known.
    """

    V: np.ndarray
    k: int
    values: np.ndarray
    rest: float | None


_CLOSER = (1.0, 1.0, 0.1, 0.01)
"""The accuracy that an iteration aims at in each stage, relative to the one asked for: its estimates of residuals are
not yet the residuals."""


class _Search:
    """The search for ``k`` triplets by one method, in stages, each of which finds a better subspace.

    Stage 0 computes products in the precision of the data, stage 1 in float64, further ones do what is slower and loses
    nothing. All that a stage needs of what is behind it is what the last one has found. ``whole``: every rank has all
    rows of that.
    """

    def __init__(self, matrix: Matrix, method: str, wide: bool, wanted: Wanted, seed: int, course: Course):
        self.matrix, self.method, self.wide, self.wanted, self.seed, self.course = \
            matrix, method, wide, wanted, seed, course
        self.whole = method != "randomized" and not wide

    @property
    def first(self) -> int:
        """The stage to begin in."""
        return int(self.method == "tsqr" or self.matrix.precision == np.float64)

    def run(self, k: int, stage: int, before: Leading | None) -> tuple[Triplets, _Subspace]:
        """Collective: return triplets that are as accurate as wanted, or from the last stage, and their subspace.

        ``before`` is what the stage begins with, None where the course goes on from its middle.
        """
        matrix, course = self.matrix, self.course
        while True:
            course.at = {"k": k, "stage": stage}
            if stage > 0:
                matrix.go_double()
            kept = course.taken("after")
            if kept is not None:
                found = kept_leading(kept, matrix, self.whole)
            else:
                found = self._find(k, stage, before)
                course.after_pass("after", partial(found.state, matrix, self.whole))
            subspace = self._subspace(found, k)
            triplets = certified(matrix, subspace.V).first(subspace.k)
            if triplets.worst <= self.wanted.accuracy or self._last(stage):
                return triplets, subspace
            stage, before = stage + 1, found
            self.pause(k, stage, before)

    def pause(self, k: int, stage: int, before: Leading) -> None:
        """Collective: tell the course that this stage is next."""
        self.course.at = {"k": k, "stage": stage}
        self.course.after_pass("before", partial(before.state, self.matrix, self.whole))

    def _last(self, stage: int) -> bool:
        if self.method == "randomized":
            return stage == len(_CLOSER) - 1
        if self.wide:
            return self.matrix.precision == np.float64
        return stage == (1 if self.method == "tsqr" else 2)

    def _find(self, k: int, stage: int, before: Leading | None) -> Leading:
        """Collective: return what a stage finds. Of ``before`` `randomized` takes the vectors, `refined` all."""
        matrix = self.matrix
        if self.method == "randomized":
            ritz = block_krylov(matrix, k, _CLOSER[stage] * self.wanted.accuracy, None if before is None else before.V,
                                MOST_PASSES, self.seed, self.course)
            return Leading(completed(matrix, ritz.V, k, self.seed), np.empty(0))
        if self.wide:
            return gram.leading_of_wide(matrix, k, lambda sigma: _enough(matrix, sigma, k, self.wanted))
        if self.method == "gram" and stage < 2:
            return gram.leading(matrix, None if stage else k)
        if self.method == "gram" and not matrix.reproducible:
            return gram.refined(matrix, before, self.course)
        if matrix.on_device:
            matrix.console.say("svd      what squares have lost is found by tsqr, on the CPU")
        sigma, V = singular(matrix, tsqr(matrix), k)  # fixed point has no room for what squares lose
        return Leading(V, sigma)

    def _subspace(self, found: Leading, k: int) -> _Subspace:
        """Collective: return what is to be certified of what a stage has found."""
        if self.method == "randomized":
            return _Subspace(found.V, k, found.singular_values, None)
        sigma, k = found.singular_values, _enough(self.matrix, found.singular_values, k, self.wanted)
        if self.wide:
            return _Subspace(completed(self.matrix, found.V, k, self.seed), k, sigma, 0.0)
        return _Subspace(self.matrix.dealt(found.V)[:, :k], k, sigma, 0.0)


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


def _state_of(matrix: Matrix, found: Found) -> State:
    """Return all of ``found``, in a state."""
    triplets, comm = found.triplets, matrix.comm
    state = State({name: getattr(found, name) for name in _JUDGED})
    put_rows(state, matrix, "V", triplets.V)
    for name in _FIGURES:
        state.put_shared(name, getattr(triplets, name), comm.rank, comm.size)
    return state


def _found_before(matrix: Matrix, kept: Kept) -> Found:
    """Return what `_state_of` told."""
    figures = {name: kept.vector(name) for name in _FIGURES}
    return Found(Triplets(V=kept_rows(kept, matrix, "V"), **figures), **{name: kept.values[name] for name in _JUDGED})


_JUDGED = ("norm", "error_bound", "remainder", "met")
_FIGURES = ("singular_values", "relative_residuals", "left_residuals")
