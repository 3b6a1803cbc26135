"""Losses ℓ(s, y) of a linear score s = Σ_j x_j·w_j + b of one row, chosen by a number so that one kernel serves all.

- `SQUARED`        ½(s − y)²
- `HUBER`          ½r² for |r| ≤ δ, δ|r| − ½δ² beyond, with r = s − y (Huber, *Robust Estimation of a Location
                   Parameter*, Annals of Mathematical Statistics 35, 1964)
- `LOGISTIC`       log(1 + exp(s)) − y·s, with y in {0, 1}
- `HINGE`          max(0, 1 − t·s), with t = 2y − 1 (Cortes and Vapnik, *Support-Vector Networks*, 1995)
- `SQUARED_HINGE`  max(0, 1 − t·s)², without a half, as in scikit-learn and LIBLINEAR
- `POISSON`        exp(s) − y·s: the negative log-likelihood of counts with mean exp(s), less log y!
"""

from __future__ import annotations

import math

from numba import njit

SQUARED, HUBER, LOGISTIC, HINGE, SQUARED_HINGE, POISSON = range(6)

# Sums may be reordered (that is what makes them vectorise), but NaN and infinity keep their meaning: a diverging
# run must show.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def slope_and_loss(loss, delta, score, y):
    """In a jitted function: return dℓ/ds, and ℓ as a pair (a, f) with ℓ = a + log f and 1 ≤ f ≤ 2.

    A logarithm costs as much as a hundred features; as products, those of many rows are taken at once. ``delta`` is
    that of `HUBER`. Where a loss has a kink, the slope is that of its flat side. NaN gives NaN.
    """
    if loss == LOGISTIC:
        e = math.exp(-abs(score))  # never overflows; log(1 + exp(s)) = max(s, 0) + log(1 + exp(−|s|))
        inverse = 1 / (1 + e)
        probability = inverse if score >= 0 else e * inverse
        return probability - y, max(score, 0) - y * score, 1.0 + e
    if loss in (HINGE, SQUARED_HINGE):
        sign = 2 * y - 1
        short = 1 - sign * score
        if short <= 0:
            return 0.0, 0.0, 1.0
        if loss == HINGE:
            return -sign, short, 1.0
        return -2 * sign * short, short * short, 1.0
    if loss == POISSON:
        mean = math.exp(score)
        return mean - y, mean - y * score, 1.0
    residual = score - y
    if loss == HUBER and abs(residual) > delta:
        return math.copysign(delta, residual), delta * (abs(residual) - delta / 2), 1.0
    return residual, residual * residual / 2, 1.0


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def counted(loss, delta, score, y, weight, row):
    """In a jitted function: `slope_and_loss` of a row that counts ``weight[row]``, or 1 where ``weight`` is None."""
    slope, a, f = slope_and_loss(loss, delta, score, y[row])
    if weight is None:
        return slope, a, f
    return slope * weight[row], (a + math.log(f)) * weight[row], 1.0
