"""Loss and gradient of a linear score over dense rows, one pass over X.

The losses are those of `dml_hpc.kernels.losses`, chosen by ``loss``, with ``delta`` where one needs it. Throughout, X
is (rows, features), C-contiguous, float32, float64, or float16 held as its bits (uint16), and taken as the kind of
float that the parameters are; y is (rows,); ``weight`` is (rows,), what each row counts, or None: 1 each; ``rows`` is
int64 row numbers into X; ``parameters`` and ``gradient`` are (features + 1,) and end with the intercept b. One kernel
serves every loss, as only three scalars a row depend on it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import added, converted, filled, lane_count, load, multiply_add, store, summed
from dml_hpc.kernels.losses import FAST, counted
from dml_hpc.kernels.prefetch import prefetch

_TOO_MUCH = 1 << 30
_AHEAD_BYTES = 8192


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _with_eight(start, flat, j, x0, x1, x2, x3, x4, x5, x6, x7, c0, c1, c2, c3, c4, c5, c6, c7, like):
    """Return ``start`` and the elements j … of the rows that begin at x0 … x7, weighed by c0 … c7."""
    even = multiply_add(c0, load(flat, x0 + j, like), start)
    odd = multiply_add(c1, load(flat, x1 + j, like), filled(like))
    even, odd = multiply_add(c2, load(flat, x2 + j, like), even), multiply_add(c3, load(flat, x3 + j, like), odd)
    even, odd = multiply_add(c4, load(flat, x4 + j, like), even), multiply_add(c5, load(flat, x5 + j, like), odd)
    even, odd = multiply_add(c6, load(flat, x6 + j, like), even), multiply_add(c7, load(flat, x7 + j, like), odd)
    return added(even, odd)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def loss_and_gradient(loss, delta, X, y, weight, rows, parameters, gradient):
    """Add the rows' gradient Σ ∂ℓ/∂w to ``gradient`` and return their summed loss Σ ℓ (float64), both weighted.

    Rows go by groups of eight, which share one pass over ``gradient``. While the gradient of one group is taken, from
    the cache, the scores of the next one are, two rows at a time, from memory, which is thus kept busy all the time;
    rows further on are prefetched, which hides the jumps of a shuffled order. X is read from memory once.
    """
    features, last = X.shape[1], len(rows) - 1
    zero = parameters.dtype.type(0)
    delta = parameters.dtype.type(delta)
    bias, bias_slope, total = parameters[features], zero, 0.0
    if last < 0:
        return total
    flat = X.reshape(X.size)
    lanes = lane_count(zero)
    whole = features // lanes * lanes
    paired = features // (4 * lanes) * (4 * lanes)
    # What is left of a row, less than a vector, is taken with some features before it, which then count 0.
    rest = features - whole if whole else 0
    end = features - lanes
    end_parameters, end_gradient = np.zeros(lanes, parameters.dtype), np.zeros(lanes, parameters.dtype)
    for j in range(lanes - rest, lanes):
        end_parameters[j] = parameters[end + j]
    ahead = max(2, _AHEAD_BYTES // max(features * X.itemsize, 1) // 2 * 2)
    nothing = filled(zero)
    scores, slopes = np.zeros(8, parameters.dtype), np.zeros(8, parameters.dtype)
    for i in range(0, last + 9, 8):
        # The slopes of rows i − 8 … i − 1 are known: 0 before the first row and behind the last.
        k = max(i - 8, 0)
        x0, x1 = rows[k] * features, rows[min(k + 1, last)] * features
        x2, x3 = rows[min(k + 2, last)] * features, rows[min(k + 3, last)] * features
        x4, x5 = rows[min(k + 4, last)] * features, rows[min(k + 5, last)] * features
        x6, x7 = rows[min(k + 6, last)] * features, rows[min(k + 7, last)] * features
        c0, c1, c2, c3 = filled(slopes[0]), filled(slopes[1]), filled(slopes[2]), filled(slopes[3])
        c4, c5, c6, c7 = filled(slopes[4]), filled(slopes[5]), filled(slopes[6]), filled(slopes[7])
        g = 0
        for k in range(i, min(i + 8, last + 1), 2):
            a, b = rows[k] * features, rows[min(k + 1, last)] * features
            next_a, next_b = rows[min(k + ahead, last)] * features, rows[min(k + ahead + 1, last)] * features
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = nothing
            for j in range(0, paired, 4 * lanes):
                prefetch(flat, next_a + j)
                prefetch(flat, next_b + j)
                w = load(parameters, j, zero)
                a0, b0 = multiply_add(load(flat, a + j, zero), w, a0), multiply_add(load(flat, b + j, zero), w, b0)
                h = j + lanes
                prefetch(flat, next_a + h)
                prefetch(flat, next_b + h)
                w = load(parameters, h, zero)
                a1, b1 = multiply_add(load(flat, a + h, zero), w, a1), multiply_add(load(flat, b + h, zero), w, b1)
                h = j + 2 * lanes
                prefetch(flat, next_a + h)
                prefetch(flat, next_b + h)
                w = load(parameters, h, zero)
                a2, b2 = multiply_add(load(flat, a + h, zero), w, a2), multiply_add(load(flat, b + h, zero), w, b2)
                h = j + 3 * lanes
                prefetch(flat, next_a + h)
                prefetch(flat, next_b + h)
                w = load(parameters, h, zero)
                a3, b3 = multiply_add(load(flat, a + h, zero), w, a3), multiply_add(load(flat, b + h, zero), w, b3)
                store(gradient, g, _with_eight(load(gradient, g, zero), flat, g, x0, x1, x2, x3, x4, x5, x6, x7,
                                               c0, c1, c2, c3, c4, c5, c6, c7, zero))
                g += lanes
            for j in range(paired, whole, lanes):
                w = load(parameters, j, zero)
                a0, b0 = multiply_add(load(flat, a + j, zero), w, a0), multiply_add(load(flat, b + j, zero), w, b0)
            if rest:
                w = load(end_parameters, 0, zero)
                a1 = multiply_add(load(flat, a + end, zero), w, a1)
                b1 = multiply_add(load(flat, b + end, zero), w, b1)
            for j in range(paired, features, lanes):
                prefetch(flat, next_a + j)
                prefetch(flat, next_b + j)
            prefetch(flat, next_a + features - 1)
            prefetch(flat, next_b + features - 1)
            score_a = summed(added(added(a0, a1), added(a2, a3)))
            score_b = summed(added(added(b0, b1), added(b2, b3)))
            for j in range(whole + rest, features):
                score_a += converted(flat[a + j], zero) * parameters[j]
                score_b += converted(flat[b + j], zero) * parameters[j]
            scores[k - i], scores[k - i + 1] = score_a + bias, score_b + bias
        for j in range(g, whole, lanes):
            store(gradient, j, _with_eight(load(gradient, j, zero), flat, j, x0, x1, x2, x3, x4, x5, x6, x7,
                                           c0, c1, c2, c3, c4, c5, c6, c7, zero))
        if rest:
            store(end_gradient, 0, _with_eight(load(end_gradient, 0, zero), flat, end, x0, x1, x2, x3, x4, x5, x6, x7,
                                               c0, c1, c2, c3, c4, c5, c6, c7, zero))
        for j in range(whole + rest, features):
            change = zero
            for k in range(8):
                change += slopes[k] * converted(flat[rows[min(max(i - 8, 0) + k, last)] * features + j], zero)
            gradient[j] += change
        factors = 1.0
        for k in range(8):
            slopes[k] = zero
            if i + k <= last:
                slope, value, factor = counted(loss, delta, scores[k], y, weight, rows[i + k])
                slopes[k] = slope
                bias_slope += slopes[k]
                total += value
                factors *= factor
        total += math.log(factors)
    for j in range(lanes - rest, lanes):
        gradient[end + j] += end_gradient[j]
    gradient[features] += bias_slope
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def fixed_point_gradient(loss, delta, X, y, weight, rows, parameters, shift, scale, per_unit, per_loss_unit, out):
    """Add the rows' gradient, loss and masses in fixed point to ``out`` (features + 4,) int64.

    Each row's term is computed by itself, always by the same instructions, and rounded towards zero to a multiple of
    the unit, 1/``per_unit``, a power of two; the loss has its own. Integer sums do not depend on their order, so
    neither does the result, however rows are dealt to ranks. The gradient is by the weights of standardised rows
    z_j = (x_j − shift_j)·scale_j (see `sequential_sgd`), ``parameters`` are those for raw rows. The last two elements,
    the masses Σ max(‖ℓ'z‖, |ℓ'|) and Σ |ℓ|, in units 2³² times as large and rounded up row by row, bound the others:
    below 2³⁰ nothing has overflowed; NaN and infinity count as 2³⁰. (They themselves overflow from 2³³ rows on.)
    """
    features = X.shape[1]
    delta = parameters.dtype.type(delta)
    for i in range(len(rows)):
        x = X[rows[i]]
        s = squares = parameters.dtype.type(0)
        for j in range(features):
            element = converted(x[j], s)
            z = (element - shift[j]) * scale[j]
            s += element * parameters[j]
            squares += z * z
        c, a, f = counted(loss, delta, s + parameters[features], y, weight, rows[i])
        value = a + math.log(f)
        if not fits(c, squares, value, per_unit, per_loss_unit, out):
            continue
        step = parameters.dtype.type(c * per_unit)
        for j in range(features):
            out[j] += int((converted(x[j], s) - shift[j]) * scale[j] * step)
        out[features] += int(scale[features] * step)
        out[features + 1] += int(value * per_loss_unit)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def fits(slope, squares, value, per_unit, per_loss_unit, out):
    """In a jitted function: add a row's masses to the last two of ``out``; return whether its terms can be added.

    ``squares`` is ‖z‖², ``value`` the row's loss; see `fixed_point_gradient`.
    """
    mass = max(abs(slope) * math.sqrt(squares), abs(slope)) * (per_unit / 4294967296.0)
    loss_mass = abs(value) * (per_loss_unit / 4294967296.0)
    last = len(out) - 1
    if not (mass < _TOO_MUCH and loss_mass < _TOO_MUCH):
        out[last - 1] += _TOO_MUCH if not mass < _TOO_MUCH else 1
        out[last] += _TOO_MUCH if not loss_mass < _TOO_MUCH else 1
        return False
    out[last - 1] += 1 + int(mass)
    out[last] += 1 + int(loss_mass)
    return True


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sequential_sgd(loss, delta, X, y, weight, rows, shift, scale, parameters, step_size, l1, l2):
    """Take one SGD step for each of ``rows`` in turn, changing ``parameters`` in place; return the loss met on the way.

    Each row is seen standardised, z_j = (x_j − shift_j)·scale_j, without being rewritten. With η = ``step_size`` a step
    is w ← S(w − η·ℓ'(w·z + b, y)·z, η·l1) / (1 + η·l2), S(w, t) = sign(w)·max(|w| − t, 0), and b ← b − η·ℓ': a
    gradient step, then the proximal one of η·(l1·‖w‖₁ + ½·l2·‖w‖²), which no step size makes unstable (Duchi and
    Singer, *Efficient Online and Batch Learning Using Forward Backward Splitting*, JMLR 10, 2009, §5.1–5.3). It is the
    inner loop of SimuParallelSGD (Zinkevich, Weimer, Li and Smola, *Parallelized Stochastic Gradient Descent*, NIPS
    2010, algorithms 1 and 3), there with the factor 1 − η·l2. ``shift`` is (features,), ``scale`` (features + 1,); a
    bias that is not to be learnt has scale 0. The loss is the sum of ℓ before each step.
    """
    features = X.shape[1]
    kind = parameters.dtype.type
    delta, rate, total, lanes = kind(delta), kind(step_size), 0.0, lane_count(kind(0))
    keep, threshold = kind(1 / (1 + step_size * l2)), kind(step_size * l1)
    for i in range(len(rows)):
        x = X[rows[i]]
        if i + 1 < len(rows):
            ahead = X[rows[i + 1]]
            for j in range(0, features, lanes):
                prefetch(ahead, j)
        s = kind(0)
        for j in range(features):
            s += (converted(x[j], s) - shift[j]) * scale[j] * parameters[j]
        c, a, f = counted(loss, delta, s + parameters[features], y, weight, rows[i])
        total += a + math.log(f)
        step = rate * kind(c)
        if threshold > 0:
            for j in range(features):
                w = parameters[j] - step * (converted(x[j], s) - shift[j]) * scale[j]
                parameters[j] = keep * (max(w - threshold, kind(0)) + min(w + threshold, kind(0)))
        else:
            for j in range(features):
                parameters[j] = keep * (parameters[j] - step * (converted(x[j], s) - shift[j]) * scale[j])
        parameters[features] -= step * scale[features]
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def scores(X, parameters, out):
    """Write the score of every row of X to ``out`` (rows,)."""
    features = X.shape[1]
    for i in range(X.shape[0]):
        x = X[i]
        s = parameters.dtype.type(0)
        for j in range(features):
            s += converted(x[j], s) * parameters[j]
        out[i] = s + parameters[features]
