"""Loss and gradient of a linear score over sparse rows (CSR), one pass over their entries.

The losses, weights and gradients are those of `dml_hpc.kernels.glm`. Row i has ``data[k]`` (float32 or float64) at
column ``indices[k]`` for ``indptr[i]`` ≤ k < ``indptr[i + 1]``; nothing is checked, so columns must lie in
0 … features − 1.
"""

from __future__ import annotations

import math

from numba import njit

from dml_hpc.kernels.glm import _FAST, _TOO_MUCH, _slope_and_loss


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _score(data, indices, start, stop, weights):
    score = weights.dtype.type(0)
    for k in range(start, stop):
        score += data[k] * weights[indices[k]]
    return score + weights[len(weights) - 1]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def loss_and_gradient(loss, data, indices, indptr, y, rows, weights, gradient):
    """Add the gradient of ``rows`` to ``gradient`` and return their summed loss; see `glm.loss_and_gradient`."""
    bias = len(weights) - 1
    bias_slope = weights.dtype.type(0)
    total = 0.0
    for i in range(len(rows)):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        c, a, f = _slope_and_loss(loss, _score(data, indices, start, stop, weights), y[rows[i]])
        for k in range(start, stop):
            gradient[indices[k]] += c * data[k]
        bias_slope += c
        total += a + math.log(f)
    gradient[bias] += bias_slope
    return total


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def fixed_point_gradient(loss, data, indices, indptr, y, rows, weights, scale, per_unit, per_loss_unit, out):
    """Add the gradient of ``rows``, their loss and masses in fixed point to ``out`` (features + 4,) int64.

    See `glm.fixed_point_gradient`; rows are scaled, z_j = x_j·scale_j, but never shifted.
    """
    features = len(weights) - 1
    for i in range(len(rows)):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        squares = weights.dtype.type(0)
        for k in range(start, stop):
            z = data[k] * scale[indices[k]]
            squares += z * z
        c, a, f = _slope_and_loss(loss, _score(data, indices, start, stop, weights), y[rows[i]])
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
        for k in range(start, stop):
            out[indices[k]] += int(data[k] * scale[indices[k]] * step)
        out[features] += int(scale[features] * step)
        out[features + 1] += int(value * per_loss_unit)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def scores(data, indices, indptr, weights, out):
    """Write the score of every row to ``out`` (rows,)."""
    for i in range(len(out)):
        out[i] = _score(data, indices, indptr[i], indptr[i + 1], weights)
