"""Least squares for one row of factors at a time: the half-steps of alternating least squares.

Row n has the entries e = ``starts[n]`` … ``starts[n + 1]`` − 1: a rating r_e, of weight v_e, and the row q_e =
``others[columns[e]]`` of the other side. What is solved for is x_n in

    (G + Σ_e a_e q_e q_eᵀ + ρ_n I) x_n = Σ_e t_e q_e

- explicit (``gram`` None): a = v, t = v·((r − mean)·inverse − c_e), ρ_n = l2·Σ_e v_e, no G, where c_e is the other
  side's bias. With ``biases``, x_n is found together with the row's own bias, as if every q_e had a 1 behind it, with
  the same penalty. Zhou, Wilkinson, Schreiber and Pan, *Large-scale parallel collaborative filtering for the Netflix
  prize*, AAIM 2008 (a penalty by number of ratings).
- implicit: G = ``gram`` = QᵀQ over all rows of the other side, a = alpha·v·r, t = 1 + a where r > 0 else 0, ρ_n = l2.
  Hu, Koren and Volinsky, *Collaborative filtering for implicit feedback datasets*, ICDM 2008.

Rows of ``others`` and ``x`` have ``width`` elements (`padded` k; those behind k are 0 in and out). Arrays of all
functions here, on either device:

    starts (n + 1,) int64     columns (e,) int32        ratings (e,) float32      weights (e,) float32, None: 1 each
    others (m·width,) float32 other_biases (m,) float32, None: there are none     gram (width·width,) float32, None
    x (n·width,) float32, out biases (n,) float32 out, None: there are none       losses (n, 2) float64, out

``losses[n]`` are, for the new x_n, what its entries (implicit: and its pairs without a rating) add to the sum of
squares, Σ v·(…)² or Σ c·(1 or 0 − x·q)², and its penalty ρ_n·(‖x‖² + b²). A row without entries becomes 0. Where the
matrix is singular to float32 (no penalty, fewer ratings than factors), the factors that depend on those before them are
0: what is found is finite, and solves what can be solved. All is the same bits whatever else is solved, by whom.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import filled, load, multiply_add, store
from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.prefetch import prefetch
from dml_hpc.kernels.rating_sgd import padded
from dml_hpc.kernels.tiles import (
    COMBINED,
    LANES,
    TILE_ROWS,
    TILE_VECTORS,
    add_narrow_tile,
    add_tile,
    combine,
    factor_block,
    narrow_combine,
    products,
    solve_block,
    subtract_narrow_tile,
    subtract_tile,
)

__all__ = ["padded", "room", "solve", "solve_cg"]

GATHERED_BYTES = 1 << 17
"""Rows of the other side that are copied at a time: they stay in the second-level cache while they are used."""
_PART = 64
"""Of these, so many are multiplied at a time, from the first-level cache."""
_AHEAD = 4
"""How many entries ahead rows are fetched."""
_VECTORS = 8
"""Rows of `width` that `room` has beside the matrix."""
_TINY = np.float32(1.2e-7)
_ZERO, _ONE = np.float32(0), np.float32(1)


@njit(cache=True, nogil=True)
def _gathered(width):
    """Return how many rows are copied at a time, a multiple of `_PART`."""
    return max(GATHERED_BYTES // (4 * width) // _PART, 1) * _PART


def room(width: int) -> np.ndarray:
    """Return scratch memory for `solve` and `solve_cg`, for one thread."""
    size = width * (width + _VECTORS) + (_gathered(width) + _PART) * width + 3 * (_gathered(width) + LANES)
    whole = np.zeros(size + LANES, np.float32)
    first = -whole.ctypes.data % 64 // 4
    return whole[first:first + size]


@njit(cache=True, nogil=True, error_model="numpy")
def _cut(work, width):
    """Return the matrix, some vectors, rows gathered, rows weighed, and a, t and products of entries: views."""
    rows, first = _gathered(width), width * width
    vectors, first = work[first:first + _VECTORS * width], first + _VECTORS * width
    q, first = work[first:first + rows * width], first + rows * width
    weighed, first = work[first:first + _PART * width], first + _PART * width
    count = rows + LANES
    return (work[:width * width], vectors, q, weighed, work[first:first + count], work[first + count:first + 2 * count],
            work[first + 2 * count:first + 3 * count])


@njit(cache=True, nogil=True, error_model="numpy")
def _gather(start, stop, columns, others, width, q):
    """Copy the rows of entries ``start`` … ``stop`` − 1 to ``q``; rows up to the next sixteen become 0."""
    for e in range(start, stop):
        at, to = np.int64(columns[e]) * width, (e - start) * width
        ahead = np.int64(columns[min(e + _AHEAD, stop - 1)]) * width
        for j in range(0, width, LANES):
            prefetch(others, ahead + j)
            store(q, to + j, load(others, at + j, _ZERO))
    for j in range((stop - start) * width, -(start - stop) // LANES * LANES * width, LANES):
        store(q, j, filled(_ZERO))


@njit(cache=True, nogil=True, error_model="numpy")
def _targets(start, stop, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t):
    """Set ``a`` and ``t`` of entries ``start`` … ``stop`` − 1, and 0 up to the next sixteen; return Σ a and Σ t²/a.

    For implicit ratings the latter is Σ t.
    """
    total, constant = 0.0, 0.0
    for e in range(start, stop):
        v = _ONE if not len(weights) else weights[e]
        if not len(gram):
            target = (ratings[e] - mean) * inverse
            if len(other_biases):
                target -= other_biases[columns[e]]
            a[e - start], t[e - start] = v, v * target
            constant += np.float64(v) * np.float64(target) * np.float64(target)
        else:
            v *= alpha * ratings[e]
            a[e - start] = v
            t[e - start] = _ONE + v if ratings[e] > _ZERO else _ZERO
            constant += np.float64(t[e - start])
        total += np.float64(v)
    for e in range(stop - start, -(start - stop) // LANES * LANES):
        a[e] = t[e] = _ZERO
    return total, constant


@njit(cache=True, nogil=True, error_model="numpy")
def _add(rows, at, width, count, factors, factors_at, out, out_at):
    """out += Σ_e factors[e]·(row e of ``rows``)."""
    j = 0
    while j + COMBINED * LANES <= width:
        combine(rows, at + j, width, count, factors, factors_at, out, out_at + j)
        j += COMBINED * LANES
    while j < width:
        narrow_combine(rows, at + j, width, count, factors, factors_at, out, out_at + j)
        j += LANES


@njit(cache=True, nogil=True, error_model="numpy")
def _weigh(rows, at, width, count, factors, factors_at, out):
    """Set row e of ``out`` to factors[e]·(row e of ``rows``)."""
    zero = filled(_ZERO)
    for e in range(count):
        factor = filled(factors[factors_at + e])
        for j in range(e * width, (e + 1) * width, LANES):
            store(out, j, multiply_add(factor, load(rows, at + j, _ZERO), zero))


@njit(cache=True, nogil=True, error_model="numpy")
def add_products(left, left_at, right, right_at, count, width, A):
    """Add Σ_e left_e right_eᵀ over ``count`` rows to the blocks of A (width·width,) on and above the diagonal."""
    for first in range(0, width, TILE_ROWS):
        column = first // LANES * LANES
        while column + TILE_VECTORS * LANES <= width:
            add_tile(left, left_at + first, right, right_at + column, width, count, A, first * width + column, width)
            column += TILE_VECTORS * LANES
        while column < width:
            add_narrow_tile(left, left_at + first, right, right_at + column, width, count, A, first * width + column,
                            width)
            column += LANES


@njit(cache=True, nogil=True, error_model="numpy")
def _factor(A, width, least, inverses):
    """Replace the upper triangle of A by U, UᵀU = A, a block of `LANES` rows after the other."""
    for row in range(0, width, LANES):
        for first in range(row, row + LANES if row else row, TILE_ROWS):
            column = row
            while column + TILE_VECTORS * LANES <= width:
                subtract_tile(A, first, A, column, width, row, A, first * width + column, width)
                column += TILE_VECTORS * LANES
            while column < width:
                subtract_narrow_tile(A, first, A, column, width, row, A, first * width + column, width)
                column += LANES
        factor_block(A, row * width + row, width, least, row, inverses, row)
        for column in range(row + LANES, width, LANES):
            solve_block(A, row * width + row, row * width + column, width, inverses, row)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _forward(A, width, inverses, b):
    """Replace b by U⁻ᵀb."""
    for j in range(width):
        y = b[j] * inverses[j]
        b[j] = y
        for i in range(j + 1, width):
            b[i] -= y * A[j * width + i]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _backward(A, width, inverses, b):
    """Replace b by U⁻¹b."""
    for j in range(width - 1, -1, -1):
        y = b[j]
        for i in range(j + 1, width):
            y -= A[j * width + i] * b[i]
        b[j] = y * inverses[j]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _dot(a, b):
    total = _ZERO
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _predicted(q, count, width, x, x_at, out):
    for e in range(0, count, LANES):
        products(q, e * width, width, x, x_at, width // LANES, out, e)


@njit(cache=True, nogil=True, error_model="numpy")
def _misfit(count, a, t, predicted, bias, gram):
    """Return Σ a·(t/a − s − bias)² over entries, s what is ``predicted``; implicit: Σ (1 + a)(1 − s)² − s²."""
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
def _solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
          alpha, first, last, work):
    A, vectors, q, weighed, a, t, predicted = _cut(work, width)
    b, s, least, inverses = (vectors[:width], vectors[width:2 * width], vectors[2 * width:3 * width],
                             vectors[3 * width:4 * width])
    most = _gathered(width)
    for n in range(first, last):
        start, stop = starts[n], starts[n + 1]
        own = x[n * width:(n + 1) * width]
        if start == stop:
            own[:] = _ZERO
            if len(biases):
                biases[n] = _ZERO
            losses[n, 0] = losses[n, 1] = 0.0
            continue
        if not len(gram):
            A[:] = _ZERO
        else:
            A[:] = gram
        vectors[:2 * width] = _ZERO
        total, targets, b_last = 0.0, 0.0, 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            _gather(low, high, columns, others, width, q)
            sums = _targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
            total += sums[0]
            if len(biases):
                for e in range(high - low):
                    b_last += np.float64(t[e])
            for part in range(0, high - low, _PART):
                count = min(_PART, high - low - part)
                _add(q, part * width, width, count, t, part, b, 0)
                if len(biases):
                    _add(q, part * width, width, count, a, part, s, 0)
                if not len(gram) and not len(weights):
                    add_products(q, part * width, q, part * width, count, width, A)
                else:
                    _weigh(q, part * width, width, count, a, part, weighed)
                    add_products(weighed, 0, q, part * width, count, width, A)
        ridge = np.float64(l2) * (total if not len(gram) else 1.0)
        for j in range(width):
            A[j * width + j] += np.float32(ridge)
            least[j] = A[j * width + j] * np.float32(width) * _TINY
        _factor(A, width, least, inverses)
        _forward(A, width, inverses, b)
        bias = _ZERO
        if len(biases):
            # The row's bias is one more unknown, the last: its pivot is what is left of Σ a + ρ.
            _forward(A, width, inverses, s)
            pivot = np.float32(total + ridge) - _dot(s, s)
            if pivot > np.float32(total + ridge) * np.float32(width) * _TINY:
                bias = (np.float32(b_last) - _dot(s, b)) / pivot
                for j in range(width):
                    b[j] -= bias * s[j]
            biases[n] = bias
        _backward(A, width, inverses, b)
        own[:] = b
        fit = 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            if stop - start > most:
                _gather(low, high, columns, others, width, q)
                _targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
            _predicted(q, high - low, width, b, 0, predicted)
            fit += _misfit(high - low, a, t, predicted, bias, gram)
        if len(gram):
            s[:] = _ZERO
            _add(gram, 0, width, width, b, 0, s, 0)
            fit += np.float64(_dot(s, b))
        losses[n, 0] = fit
        losses[n, 1] = ridge * (np.float64(_dot(b, b)) + np.float64(bias) * np.float64(bias))


@njit(cache=True, nogil=True, error_model="numpy")
def _step(factor, a, b):
    """b += factor·a, for a multiple of `LANES` elements."""
    by = filled(factor)
    for j in range(0, len(a), LANES):
        store(b, j, multiply_add(by, load(a, j, _ZERO), load(b, j, _ZERO)))


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_cg(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
             alpha, steps, first, last, work):
    _, vectors, q, _, a, t, predicted = _cut(work, width)
    r, p, Ap = vectors[:width], vectors[width:2 * width], vectors[2 * width:3 * width]
    most = _gathered(width)
    for n in range(first, last):
        start, stop = starts[n], starts[n + 1]
        own = x[n * width:(n + 1) * width]
        if start == stop:
            own[:] = _ZERO
            if len(biases):
                biases[n] = _ZERO
            losses[n, 0] = losses[n, 1] = 0.0
            continue
        # First r = b − Ax; a bias is one more unknown, of which these are the last elements.
        bias = _ZERO if not len(biases) else biases[n]
        r[:] = _ZERO
        total, fit, r_last = 0.0, 0.0, 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            _gather(low, high, columns, others, width, q)
            total += _targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)[0]
            _predicted(q, high - low, width, own, 0, predicted)
            fit += _misfit(high - low, a, t, predicted, bias, gram)
            for e in range(high - low):
                predicted[e] = t[e] - a[e] * (predicted[e] + bias)
                if len(biases):
                    r_last += np.float64(predicted[e])
            _add(q, 0, width, high - low, predicted, 0, r, 0)
        ridge = np.float32(np.float64(l2) * (total if not len(gram) else 1.0))
        if len(gram):
            Ap[:] = _ZERO
            _add(gram, 0, width, width, own, 0, Ap, 0)
            fit += np.float64(_dot(Ap, own))
            _step(np.float32(-1), Ap, r)
        _step(-ridge, own, r)
        last_r = np.float32(r_last) - ridge * bias if len(biases) else _ZERO
        objective = fit + np.float64(ridge) * (np.float64(_dot(own, own)) + np.float64(bias * bias))
        p[:] = r
        last_p = last_r
        squares = _dot(r, r) + last_r * last_r
        for _ in range(steps):
            Ap[:] = _ZERO
            sum_p = 0.0
            for low in range(start, stop, most):
                high = min(low + most, stop)
                if stop - start > most:
                    _gather(low, high, columns, others, width, q)
                    _targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
                _predicted(q, high - low, width, p, 0, predicted)
                for e in range(high - low):
                    predicted[e] = a[e] * (predicted[e] + last_p)
                    if len(biases):
                        sum_p += np.float64(predicted[e])
                _add(q, 0, width, high - low, predicted, 0, Ap, 0)
            if len(gram):
                _add(gram, 0, width, width, p, 0, Ap, 0)
            _step(ridge, p, Ap)
            last_Ap = np.float32(sum_p) + ridge * last_p if len(biases) else _ZERO
            curvature = _dot(p, Ap) + last_p * last_Ap
            if not curvature > squares * np.float32(1e-30) or squares == _ZERO:
                break
            step = squares / curvature
            _step(step, p, own)
            _step(-step, Ap, r)
            bias += step * last_p
            last_r -= step * last_Ap
            # What x·(Ax − 2b) falls by, Hestenes and Stiefel's theorem 6:1.
            objective -= np.float64(step) * np.float64(squares)
            before, squares = squares, _dot(r, r) + last_r * last_r
            keep = squares / before
            by = filled(keep)
            for j in range(0, width, LANES):
                store(p, j, multiply_add(by, load(p, j, _ZERO), load(r, j, _ZERO)))
            last_p = last_r + keep * last_p
        if len(biases):
            biases[n] = bias
        penalty = np.float64(ridge) * (np.float64(_dot(own, own)) + np.float64(bias * bias))
        losses[n, 0] = objective - penalty
        losses[n, 1] = penalty


def solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
          alpha, first, last, work):
    """Set rows ``first`` … ``last`` − 1 to the solution by a Cholesky factorisation.

    ``mean``, ``inverse``, ``l2``, ``alpha``, ``width``, ``first``, ``last`` are numbers; ``work`` is of `room`.
    """
    _solve(starts, columns, ratings, _given(weights), others, _given(other_biases), _given(gram), x,
           _given(biases), losses, width, np.float32(mean), np.float32(inverse), np.float32(l2), np.float32(alpha),
           first, last, work)


def solve_cg(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
             alpha, steps, first, last, work):
    """As `solve`, but take ``steps`` steps of conjugate gradients from the x (n·width,) and biases given.

    Takács, Pilászy and Tikk, *Applications of the conjugate gradient method for implicit feedback collaborative
    filtering*, RecSys 2011. A row without entries becomes 0 at once.
    """
    _solve_cg(starts, columns, ratings, _given(weights), others, _given(other_biases), _given(gram), x,
              _given(biases), losses, width, np.float32(mean), np.float32(inverse), np.float32(l2),
              np.float32(alpha), steps, first, last, work)


def _given(array: np.ndarray | None) -> np.ndarray:
    """Return an array without elements for None: jitted functions are then compiled once, for all that they do."""
    return np.empty(0, np.float32) if array is None else array
