"""Loss and gradient of a linear score over dense rows, one pass over X.

A row x has the score s = Σ_j x_j·w_j + b and the loss ℓ(s, y). ``loss`` selects ℓ:

- `SQUARED`   ½(s − y)²
- `LOGISTIC`  log(1 + exp(s)) − y·s, with y in {0, 1}

Throughout, X is (rows, features) float32 or float64; y is (rows,); ``rows`` is int64 row numbers into X;
``weights`` and ``gradient`` are (features + 1,) and end with the intercept b. One kernel serves every loss, as
only three scalars a row depend on it.
"""

from __future__ import annotations

import math

from numba import njit

from dml_hpc.kernels.prefetch import LINE_BYTES, prefetch

SQUARED = 0
LOGISTIC = 1
_TOO_MUCH = 1 << 30

# Sums may be reordered (that is what makes them vectorise), but NaN and infinity keep their meaning: a diverging
# run must show.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _slope_and_loss(loss, score, y):
    """Return dℓ/ds, and ℓ as a pair (a, f) with ℓ = a + log f.

    A logarithm costs as much as a hundred features; as products, those of many rows are taken at once.
    """
    if loss == LOGISTIC:
        e = math.exp(-abs(score))  # never overflows; log(1 + exp(s)) = max(s, 0) + log(1 + exp(−|s|))
        inverse = 1 / (1 + e)
        probability = inverse if score >= 0 else e * inverse
        return probability - y, max(score, 0) - y * score, 1.0 + e
    residual = score - y
    return residual, residual * residual / 2, 1.0


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def loss_and_gradient(loss, X, y, rows, weights, gradient):
    """Add the rows' gradient Σ ∂ℓ/∂w to ``gradient`` and return their summed loss Σ ℓ (float64).

    Eight rows at a time: their scores share one pass over the weights and their gradient one pass over
    ``gradient`` while the eight are still in cache, so X is read from memory once; meanwhile the next eight are
    on their way, which keeps the memory busy between the passes and hides the jumps of a shuffled order.
    """
    features = X.shape[1]
    line = LINE_BYTES // X.itemsize
    zero = weights.dtype.type(0)
    bias = weights[features]
    bias_slope = zero
    total = 0.0
    eights = len(rows) // 8 * 8
    for i in range(0, eights, 8):
        x0, x1, x2, x3 = X[rows[i]], X[rows[i + 1]], X[rows[i + 2]], X[rows[i + 3]]
        x4, x5, x6, x7 = X[rows[i + 4]], X[rows[i + 5]], X[rows[i + 6]], X[rows[i + 7]]
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zero
        for j in range(features):
            w = weights[j]
            s0 += x0[j] * w
            s1 += x1[j] * w
            s2 += x2[j] * w
            s3 += x3[j] * w
            s4 += x4[j] * w
            s5 += x5[j] * w
            s6 += x6[j] * w
            s7 += x7[j] * w
        for k in range(i + 8, min(i + 16, eights)):
            ahead = X[rows[k]]
            for j in range(0, features, line):
                prefetch(ahead, j)
        c0, a0, f0 = _slope_and_loss(loss, s0 + bias, y[rows[i]])
        c1, a1, f1 = _slope_and_loss(loss, s1 + bias, y[rows[i + 1]])
        c2, a2, f2 = _slope_and_loss(loss, s2 + bias, y[rows[i + 2]])
        c3, a3, f3 = _slope_and_loss(loss, s3 + bias, y[rows[i + 3]])
        c4, a4, f4 = _slope_and_loss(loss, s4 + bias, y[rows[i + 4]])
        c5, a5, f5 = _slope_and_loss(loss, s5 + bias, y[rows[i + 5]])
        c6, a6, f6 = _slope_and_loss(loss, s6 + bias, y[rows[i + 6]])
        c7, a7, f7 = _slope_and_loss(loss, s7 + bias, y[rows[i + 7]])
        for j in range(features):
            gradient[j] += (c0 * x0[j] + c1 * x1[j] + c2 * x2[j] + c3 * x3[j]
                            + c4 * x4[j] + c5 * x5[j] + c6 * x6[j] + c7 * x7[j])
        bias_slope += c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7
        total += a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7
        total += math.log(f0 * f1 * f2 * f3 * f4 * f5 * f6 * f7)
    for i in range(eights, len(rows)):
        x = X[rows[i]]
        s = zero
        for j in range(features):
            s += x[j] * weights[j]
        c, a, f = _slope_and_loss(loss, s + bias, y[rows[i]])
        for j in range(features):
            gradient[j] += c * x[j]
        bias_slope += c
        total += a + math.log(f)
    gradient[features] += bias_slope
    return total


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def fixed_point_gradient(loss, X, y, rows, weights, shift, scale, per_unit, per_loss_unit, out):
    """Add the rows' gradient, loss and masses in fixed point to ``out`` (features + 4,) int64.

    Each row's term is computed by itself, always by the same instructions, and rounded towards zero to a multiple of
    the unit, 1/``per_unit``, a power of two; the loss has its own. Integer sums do not depend on their order, so
    neither does the result, however rows are dealt to ranks. The gradient is by the weights of standardised rows
    z_j = (x_j − shift_j)·scale_j (see `sequential_sgd`), ``weights`` are those for raw rows. The last two elements,
    the masses Σ max(‖ℓ'z‖, |ℓ'|) and Σ ℓ, in units 2³² times as large and rounded up row by row, bound the others:
    below 2³⁰ nothing has overflowed; NaN and infinity count as 2³⁰. (They themselves overflow from 2³³ rows on.)
    """
    features = X.shape[1]
    for i in range(len(rows)):
        x = X[rows[i]]
        s = squares = weights.dtype.type(0)
        for j in range(features):
            z = (x[j] - shift[j]) * scale[j]
            s += x[j] * weights[j]
            squares += z * z
        c, a, f = _slope_and_loss(loss, s + weights[features], y[rows[i]])
        value = a + math.log(f)
        mass = max(abs(c) * math.sqrt(squares), abs(c)) * (per_unit / 4294967296.0)
        loss_mass = value * (per_loss_unit / 4294967296.0)
        if not (mass < _TOO_MUCH and loss_mass < _TOO_MUCH):
            out[features + 2] += _TOO_MUCH if not mass < _TOO_MUCH else 1
            out[features + 3] += _TOO_MUCH if not loss_mass < _TOO_MUCH else 1
            continue
        out[features + 2] += 1 + int(mass)
        out[features + 3] += 1 + int(loss_mass)
        step = weights.dtype.type(c * per_unit)
        for j in range(features):
            out[j] += int((x[j] - shift[j]) * scale[j] * step)
        out[features] += int(scale[features] * step)
        out[features + 1] += int(value * per_loss_unit)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def sequential_sgd(loss, X, y, rows, shift, scale, weights, step_size, l2):
    """Take one SGD step for each of ``rows`` in turn, changing ``weights`` in place; return the loss met on the way.

    Each row is seen standardised, z_j = (x_j − shift_j)·scale_j, without being rewritten; a step is
    w ← (1 − η·λ)w − η·ℓ'(w·z + b, y)·z with η = ``step_size`` and λ = ``l2``, and b ← b − η·ℓ' (the inner loop
    of SimuParallelSGD: Zinkevich, Weimer, Li and Smola, *Parallelized Stochastic Gradient Descent*, NIPS 2010,
    algorithms 1 and 3). ``shift`` and ``scale`` are (features,); a bias that is not to be learnt has scale 0 in
    ``scale[features]``, so ``scale`` is (features + 1,). The loss is the sum of ℓ before each step.
    """
    features = X.shape[1]
    total = 0.0
    shrink = 1 - step_size * l2
    for i in range(len(rows)):
        x = X[rows[i]]
        s = weights.dtype.type(0)
        for j in range(features):
            s += (x[j] - shift[j]) * scale[j] * weights[j]
        c, a, f = _slope_and_loss(loss, s + weights[features], y[rows[i]])
        total += a + math.log(f)
        step = step_size * c
        for j in range(features):
            weights[j] = shrink * weights[j] - step * (x[j] - shift[j]) * scale[j]
        weights[features] -= step * scale[features]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def scores(X, weights, out):
    """Write the score of every row of X to ``out`` (rows,)."""
    features = X.shape[1]
    for i in range(X.shape[0]):
        x = X[i]
        s = weights.dtype.type(0)
        for j in range(features):
            s += x[j] * weights[j]
        out[i] = s + weights[features]
