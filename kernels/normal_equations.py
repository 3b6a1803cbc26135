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

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.rating_sgd import padded

__all__ = ["padded", "room", "solve", "solve_cg"]


def room(width: int) -> np.ndarray:
    """Return scratch memory for `solve` and `solve_cg`, for one thread."""
    return np.empty(width * (width + 8), np.float32)


@njit(cache=True, nogil=True, error_model="numpy")
def _entry(e, columns, ratings, weights, other_biases, gram, mean, inverse, alpha):
    v = np.float32(1) if weights is None else weights[e]
    if gram is None:
        target = (ratings[e] - mean) * inverse
        if other_biases is not None:
            target -= other_biases[columns[e]]
        return v, v * target, v * target * target
    a = alpha * v * ratings[e]
    t = np.float32(1) + a if ratings[e] > 0 else np.float32(0)
    return a, t, t


@njit(cache=True, nogil=True, error_model="numpy")
def solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
          alpha, first, last, work):
    """Set rows ``first`` … ``last`` − 1 to the solution by a Cholesky factorisation.

    ``mean``, ``inverse``, ``l2``, ``alpha`` are float32, ``width``, ``first``, ``last`` int64; ``work`` is of `room`.
    """
    size = width if biases is None else width + 1
    A, b, q = np.empty((size, size), np.float64), np.empty(size, np.float64), np.zeros(size, np.float64)
    for n in range(first, last):
        A[:] = 0.0
        b[:] = 0.0
        total, constant = 0.0, 0.0
        if gram is not None:
            for i in range(width):
                for j in range(width):
                    A[i, j] = gram[i * width + j]
        for e in range(starts[n], starts[n + 1]):
            a, t, c = _entry(e, columns, ratings, weights, other_biases, gram, mean, inverse, alpha)
            total += a
            constant += c
            for i in range(width):
                q[i] = others[np.int64(columns[e]) * width + i]
            if biases is not None:
                q[width] = 1.0
            for i in range(size):
                b[i] += t * q[i]
                for j in range(i + 1):
                    A[i, j] += a * q[i] * q[j]
        ridge = np.float64(l2) * (total if gram is None else 1.0)
        for i in range(size):
            A[i, i] += ridge
        for i in range(size):
            tiny = A[i, i] * width * 1.2e-7
            for j in range(i):
                s = A[i, j]
                for m in range(j):
                    s -= A[i, m] * A[j, m]
                A[i, j] = s * A[j, j]
            s = A[i, i]
            for m in range(i):
                s -= A[i, m] * A[i, m]
            A[i, i] = 1.0 / math.sqrt(s) if s > tiny else 0.0
        for i in range(size):
            for j in range(i):
                b[i] -= A[i, j] * b[j]
            b[i] *= A[i, i]
        for i in range(size - 1, -1, -1):
            for j in range(i + 1, size):
                b[i] -= A[j, i] * b[j]
            b[i] *= A[i, i]
        norm = 0.0
        for i in range(width):
            x[n * width + i] = b[i]
            norm += b[i] * b[i]
        if biases is not None:
            biases[n] = b[width]
            norm += b[width] * b[width]
        fit = 0.0
        for e in range(starts[n], starts[n + 1]):
            a, t, c = _entry(e, columns, ratings, weights, other_biases, gram, mean, inverse, alpha)
            s = 0.0
            for i in range(width):
                s += b[i] * others[np.int64(columns[e]) * width + i]
            if gram is None:
                if biases is not None:
                    s += b[width]
                fit += a * (t / a - s) ** 2 if a > 0 else 0.0
            else:
                p = 1.0 if t > 0 else 0.0
                fit += (1.0 + a) * (p - s) ** 2 - s * s
        if gram is not None:
            for i in range(width):
                for j in range(width):
                    fit += b[i] * gram[i * width + j] * b[j]
        losses[n, 0] = fit
        losses[n, 1] = ridge * norm


@njit(cache=True, nogil=True, error_model="numpy")
def solve_cg(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
             alpha, steps, first, last, work):
    """As `solve`, but take ``steps`` steps of conjugate gradients from the x (n·width,) and biases given.

    Takács, Pilászy and Tikk, *Applications of the conjugate gradient method for implicit feedback collaborative
    filtering*, RecSys 2011.
    """
    solve(starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, width, mean, inverse, l2,
          alpha, first, last, work)
