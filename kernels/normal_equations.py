"""Least squares for one row of factors at a time: the half-steps of alternating least squares.

Row n has the entries e = ``starts[n]`` … ``starts[n + 1]`` − 1: a rating r_e, of weight v_e, and the row q_e =
``others[columns[e]]`` of the other side. What is solved for is x_n in

    (G + Σ_e a_e q_e q_eᵀ + diag(ρ_n)) x_n = Σ_e t_e q_e,        ρ_n = (penalties a rating)·Σ_e a_e + penalties a row

- explicit (``gram`` None): a = v, t = v·((r − mean)·inverse − c_e), no G, where c_e is the other side's bias. With
  ``biases``, x_n is found together with the row's own bias, as if every q_e had a 1 behind it. Zhou, Wilkinson,
  Schreiber and Pan, *Large-scale parallel collaborative filtering for the Netflix prize*, AAIM 2008 (a penalty by
  number of ratings).
- implicit: G = ``gram`` = QᵀQ over all rows of the other side, a = alpha·v·r, t = 1 + a where r > 0 else 0. Hu, Koren
  and Volinsky, *Collaborative filtering for implicit feedback datasets*, ICDM 2008 (a penalty a row).

Rows of ``others`` and ``x`` have ``width`` elements (`padded` k; those behind k are 0 in and out). Arrays of all
functions here, on either device:

    starts (n + 1,) int64     columns (e,) int32        ratings (e,) float32      weights (e,) float32, None: 1 each
    others (m·width,) float32 other_biases (m,) float32, None: there are none     gram (width·width,) float32, None
    x (n·width,) float32, out biases (n,) float32 out, None: there are none       losses (n, 2) float64, out
    penalties (2·(width + 1),) float32: those a rating of a row's factors and of its bias, then those a row

``losses[n]`` are, for the new x_n, what its entries (implicit: and its pairs without a rating) add to the sum of
squares, Σ v·(…)² or Σ c·(1 or 0 − x·q)², and its penalty Σ_j ρ_nj·x_j², the bias being the last x_j. A row without
entries becomes 0. Where the matrix is singular to float32 (no penalty, fewer ratings than factors), the factors that
depend on those before them are 0: what is found is finite, and solves what can be solved. All is the same bits whatever
else is solved, by whom.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dml_hpc.kernels.cholesky import add_products, add_rows, factor, multiply, sixteens, substitute
from dml_hpc.kernels.lanes import filled, load, multiply_add, store
from dml_hpc.kernels.rating_entries import clear, dot, gather, misfit, step, targets, weigh
from dml_hpc.kernels.rating_sgd import padded
from dml_hpc.kernels.tiles import LANES

__all__ = ["padded", "room", "solve", "solve_cg"]

GATHERED_BYTES = 1 << 21
"""Rows of the other side that are copied at a time, to lie one after the other while they are gone over."""
_PART = 64
"""Of these, so many are multiplied at a time, from the first-level cache."""
_TINY = np.float32(1.2e-7)
_ZERO = np.float32(0)


def room(width: int, gathered_bytes: int = GATHERED_BYTES) -> tuple[np.ndarray, ...]:
    """Return scratch memory for `solve` and `solve_cg`, for one thread; longer rows are gone over piece by piece.

    These are a matrix with a right-hand side, rows gathered, rows weighed, three numbers an entry, and four vectors.
    """
    rows = max(gathered_bytes // (4 * width) // _PART, 1) * _PART
    return tuple(map(sixteens, (width * (width + LANES), rows * width, _PART * width, *(rows,) * 3, *(width,) * 4)))


@njit(cache=True, nogil=True, error_model="numpy")
def _clear(n, x, biases, losses, width):
    """Set a row without entries to 0."""
    for j in range(n * width, (n + 1) * width):
        x[j] = _ZERO
    if len(biases):
        biases[n] = _ZERO
    losses[n, 0] = losses[n, 1] = 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def _ridge(penalties, width, total, j):
    """Return ρ of a row's factor j, of its bias where that is ``width``; the row's Σ a is ``total``."""
    return np.float64(penalties[j]) * total + np.float64(penalties[width + 1 + j])


@njit(cache=True, nogil=True, error_model="numpy")
def _penalty(penalties, width, total, x, bias):
    """Return Σ ρ_j x_j², of a row and its bias."""
    found = 0.0
    for j in range(width):
        found += _ridge(penalties, width, total, j) * np.float64(x[j]) * np.float64(x[j])
    return found + _ridge(penalties, width, total, width) * np.float64(bias) * np.float64(bias)


@njit(cache=True, nogil=True, error_model="numpy")
def _solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse,
           penalties, alpha, first, last, work):
    A, q, weighed, a, t, predicted, b, s, least, inverses = work
    most, stride, tiny = len(q) // width, width + LANES, np.float32(width) * _TINY
    for n in range(first, last):
        start, stop = starts[n], starts[n + 1]
        if start == stop:
            _clear(n, x, biases, losses, width)
            continue
        clear(A)
        clear(b)
        clear(s)
        if len(gram):
            for i in range(width):
                for j in range(0, width, LANES):
                    store(A, i * stride + j, load(gram, i * width + j, _ZERO))
        total, b_last = 0.0, 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            gather(low, high, columns, others, width, q)
            total += targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
            if len(biases):
                for e in range(high - low):
                    b_last += np.float64(t[e])
            for part in range(0, high - low, _PART):
                count = min(_PART, high - low - part)
                add_rows(q, part * width, width, count, t, part, b)
                if len(biases):
                    add_rows(q, part * width, width, count, a, part, s)
                if not len(gram) and not len(weights):
                    add_products(q, part * width, q, part * width, count, width, A, stride)
                else:
                    weigh(q, part * width, width, count, a, part, weighed)
                    add_products(weighed, 0, q, part * width, count, width, A, stride)
        for j in range(width):
            A[j * stride + j] += np.float32(_ridge(penalties, width, total, j))
            least[j] = A[j * stride + j] * tiny
            A[j * stride + width], A[j * stride + width + 1] = b[j], s[j]
        factor(A, width, stride, least, inverses)
        for j in range(width):
            b[j], s[j] = A[j * stride + width], A[j * stride + width + 1]
        bias = _ZERO
        if len(biases):
            # The row's bias is one more unknown, the last: its pivot is what is left of Σ a + ρ.
            whole = np.float32(total + _ridge(penalties, width, total, width))
            pivot = whole - dot(s, s)
            if pivot > whole * tiny:
                bias = (np.float32(b_last) - dot(s, b)) / pivot
                step(-bias, s, b)
            biases[n] = bias
        substitute(A, width, stride, inverses, b, predicted)
        for j in range(0, width, LANES):
            store(x, n * width + j, load(b, j, _ZERO))
        fit = 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            if stop - start > most:
                gather(low, high, columns, others, width, q)
                targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
            multiply(q, high - low, width, b, predicted)
            fit += misfit(high - low, a, t, predicted, bias, gram)
        if len(gram):
            clear(s)
            add_rows(gram, 0, width, width, b, 0, s)
            fit += np.float64(dot(s, b))
        losses[n, 0] = fit
        losses[n, 1] = _penalty(penalties, width, total, b, bias)


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_cg(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse,
              penalties, alpha, steps, first, last, work):
    ridge, q, _, a, t, predicted, r, p, Ap, own = work
    most = len(q) // width
    for n in range(first, last):
        start, stop = starts[n], starts[n + 1]
        if start == stop:
            _clear(n, x, biases, losses, width)
            continue
        for j in range(0, width, LANES):
            store(own, j, load(x, n * width + j, _ZERO))
        # First r = b − Ax; a bias is one more unknown, of which these are the last elements.
        bias = _ZERO if not len(biases) else biases[n]
        clear(r)
        total, fit, r_last = 0.0, 0.0, 0.0
        for low in range(start, stop, most):
            high = min(low + most, stop)
            gather(low, high, columns, others, width, q)
            total += targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
            multiply(q, high - low, width, own, predicted)
            fit += misfit(high - low, a, t, predicted, bias, gram)
            for e in range(high - low):
                predicted[e] = t[e] - a[e] * (predicted[e] + bias)
                if len(biases):
                    r_last += np.float64(predicted[e])
            add_rows(q, 0, width, high - low, predicted, 0, r)
        if total == 0.0 and not len(gram):  # all weigh 0: any row would do
            _clear(n, x, biases, losses, width)
            continue
        for j in range(width + 1):
            ridge[j] = np.float32(_ridge(penalties, width, total, j))
        if len(gram):
            clear(Ap)
            add_rows(gram, 0, width, width, own, 0, Ap)
            fit += np.float64(dot(Ap, own))
            step(np.float32(-1), Ap, r)
        for j in range(width):
            r[j] -= ridge[j] * own[j]
        last_r = np.float32(r_last) - ridge[width] * bias if len(biases) else _ZERO
        objective = fit + _penalty(penalties, width, total, own, bias)
        for j in range(0, width, LANES):
            store(p, j, load(r, j, _ZERO))
        last_p = last_r
        squares = dot(r, r) + last_r * last_r
        for _ in range(steps):
            clear(Ap)
            sum_p = 0.0
            for low in range(start, stop, most):
                high = min(low + most, stop)
                if stop - start > most:
                    gather(low, high, columns, others, width, q)
                    targets(low, high, columns, ratings, weights, other_biases, gram, mean, inverse, alpha, a, t)
                multiply(q, high - low, width, p, predicted)
                for e in range(high - low):
                    predicted[e] = a[e] * (predicted[e] + last_p)
                    if len(biases):
                        sum_p += np.float64(predicted[e])
                add_rows(q, 0, width, high - low, predicted, 0, Ap)
            if len(gram):
                add_rows(gram, 0, width, width, p, 0, Ap)
            for j in range(width):
                Ap[j] += ridge[j] * p[j]
            last_Ap = np.float32(sum_p) + ridge[width] * last_p if len(biases) else _ZERO
            curvature = dot(p, Ap) + last_p * last_Ap
            if not curvature > squares * np.float32(1e-30) or squares == _ZERO:
                break
            length = squares / curvature
            step(length, p, own)
            step(-length, Ap, r)
            bias += length * last_p
            last_r -= length * last_Ap
            # What x·(Ax − 2b) falls by, Hestenes and Stiefel's theorem 6:1.
            objective -= np.float64(length) * np.float64(squares)
            before, squares = squares, dot(r, r) + last_r * last_r
            keep = squares / before
            by = filled(keep)
            for j in range(0, width, LANES):
                store(p, j, multiply_add(by, load(p, j, _ZERO), load(r, j, _ZERO)))
            last_p = last_r + keep * last_p
        for j in range(0, width, LANES):
            store(x, n * width + j, load(own, j, _ZERO))
        if len(biases):
            biases[n] = bias
        penalty = _penalty(penalties, width, total, own, bias)
        fit = objective - penalty
        losses[n, 0] = 0.0 if fit < 0.0 and not len(gram) else fit  # but for rounding it is a sum of squares
        losses[n, 1] = penalty


def solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse,
          penalties, alpha, first, last, work):
    """Set rows ``first`` … ``last`` − 1 to the solution by a Cholesky factorisation.

    ``mean``, ``inverse``, ``alpha``, ``width``, ``first``, ``last`` are numbers; ``work`` is of `room`.
    """
    _solve(starts, columns, ratings, _given(weights), others, _given(other_biases), _given(gram), x,
           _given(biases), losses, width, np.float32(mean), np.float32(inverse), penalties, np.float32(alpha),
           first, last, work)


def solve_cg(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse,
             penalties, alpha, steps, first, last, work):
    """As `solve`, but take ``steps`` steps of conjugate gradients from the x (n·width,) and biases given.

    Takács, Pilászy and Tikk, *Applications of the conjugate gradient method for implicit feedback collaborative
    filtering*, RecSys 2011. A row without entries becomes 0 at once.
    """
    _solve_cg(starts, columns, ratings, _given(weights), others, _given(other_biases), _given(gram), x,
              _given(biases), losses, width, np.float32(mean), np.float32(inverse), penalties,
              np.float32(alpha), steps, first, last, work)


def _given(array: np.ndarray | None) -> np.ndarray:
    """Return an array without elements for None: jitted functions are then compiled once, for all that they do."""
    return np.empty(0, np.float32) if array is None else array
