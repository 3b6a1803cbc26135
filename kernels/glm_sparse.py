"""Loss and gradient of a linear score over sparse rows (CSR), one pass over their entries.

The losses, weights and gradients are those of `dml_hpc.kernels.glm`. Row i has ``data[k]`` (float32 or float64) at
column ``indices[k]`` for ``indptr[i]`` ≤ k < ``indptr[i + 1]``; nothing is checked, so columns must lie in
0 … features − 1, each at most once in a row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.glm import fits
from dml_hpc.kernels.losses import FAST, counted
from dml_hpc.kernels.prefetch import LINE_BYTES, prefetch

_ENTRIES_AHEAD, _FEATURES_AHEAD = 8, 2
"""How many rows ahead entries are fetched, and how many what there is of their features."""
_LEAST_FACTOR = 2.0**-40
_PLACE = np.uintp
"""Of what is no negative number: else each access would ask whether to count from the end."""


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _span(indptr, row):
    return _PLACE(indptr[row]), _PLACE(indptr[row + 1])


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _fetch(data, indices, indptr, rows, i, first, second, third):
    """Prefetch what the rows that come after row number ``i`` of ``rows`` need, in arrays by feature too, or None."""
    start, stop = _span(indptr, rows[min(i + _ENTRIES_AHEAD, len(rows) - 1)])
    for k in range(np.int64(start), np.int64(stop), LINE_BYTES // 8):
        prefetch(data, k)
        prefetch(indices, k)
    start, stop = _span(indptr, rows[min(i + _FEATURES_AHEAD, len(rows) - 1)])
    for k in range(start, stop):
        prefetch(first, indices[k])
        if second is not None:
            prefetch(second, indices[k])
        if third is not None:
            prefetch(third, indices[k])


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _score(data, indices, start, stop, parameters):
    score = parameters.dtype.type(0)
    for k in range(start, stop):
        score += data[k] * parameters[_PLACE(indices[k])]
    return score + parameters[len(parameters) - 1]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def loss_and_gradient(loss, delta, data, indices, indptr, y, weight, rows, parameters, gradient):
    """Add the gradient of ``rows`` to ``gradient`` and return their summed loss; see `glm.loss_and_gradient`."""
    bias, kind = len(parameters) - 1, parameters.dtype.type
    delta, bias_slope, total = kind(delta), kind(0), 0.0
    for i in range(len(rows)):
        _fetch(data, indices, indptr, rows, i, parameters, gradient, None)
        start, stop = _span(indptr, rows[i])
        slope, a, f = counted(loss, delta, _score(data, indices, start, stop, parameters), y, weight, rows[i])
        c = kind(slope)
        for k in range(start, stop):
            gradient[_PLACE(indices[k])] += c * data[k]
        bias_slope += c
        total += a + math.log(f)
    gradient[bias] += bias_slope
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def fixed_point_gradient(loss, delta, data, indices, indptr, y, weight, rows, parameters, scale, per_unit,
                         per_loss_unit, out):
    """Add the gradient of ``rows``, their loss and masses in fixed point to ``out`` (features + 4,) int64.

    See `glm.fixed_point_gradient`; rows are scaled, z_j = x_j·scale_j, but never shifted.
    """
    features, kind = len(parameters) - 1, parameters.dtype.type
    delta = kind(delta)
    for i in range(len(rows)):
        _fetch(data, indices, indptr, rows, i, parameters, scale, out)
        start, stop = _span(indptr, rows[i])
        squares = kind(0)
        for k in range(start, stop):
            z = data[k] * scale[_PLACE(indices[k])]
            squares += z * z
        c, a, f = counted(loss, delta, _score(data, indices, start, stop, parameters), y, weight, rows[i])
        value = a + math.log(f)
        if not fits(c, squares, value, per_unit, per_loss_unit, out):
            continue
        step = kind(c * per_unit)
        for k in range(start, stop):
            out[_PLACE(indices[k])] += int(data[k] * scale[_PLACE(indices[k])] * step)
        out[features] += int(scale[features] * step)
        out[features + 1] += int(value * per_loss_unit)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sequential_sgd(loss, delta, data, indices, indptr, y, weight, rows, scale, held, seen, worth, step_size, l1, l2):
    """Take one SGD step for each of ``rows`` in turn; return the loss met on the way.

    The steps are those of `glm.sequential_sgd` (rows are scaled but never shifted; ``scale`` None: by 1, with a bias
    that is learnt), yet each touches the row's own features alone. The weights are w = factor·S(v, u − seen): ``held``
    (features + 1,) are v and, last, b itself; ``worth`` (2,) float64 are the factor, which L2 makes smaller with every
    step, and u, the sum of all steps' thresholds η·l1/factor. Feature j has paid its share of u up to ``seen[j]``
    (features,) float64, and pays the rest when a row has it: as S(S(v, s), t) = S(v, s + t), late payment is the same
    (Duchi and Singer 2009, §5.4; cf. Lipton and Elkan, *Efficient Elastic Net Regularization for Sparse Linear Models*,
    2015). ``seen`` is None where l1 is 0. `settle` makes ``held`` the weights.
    """
    features, kind = len(held) - 1, held.dtype.type
    delta, total, factor, owed = kind(delta), 0.0, worth[0], worth[1]
    keep, bias = 1 / (1 + step_size * l2), held[features]
    for i in range(len(rows)):
        _fetch(data, indices, indptr, rows, i, held, seen, scale)
        start, stop = _span(indptr, rows[i])
        s = kind(0)
        for k in range(start, stop):
            j = _PLACE(indices[k])
            if seen is not None:
                held[j] = _paid(held[j], owed - seen[j])
                seen[j] = owed
            z = data[k] if scale is None else data[k] * scale[j]
            s += z * held[j]
        c, a, f = counted(loss, delta, kind(factor) * s + bias, y, weight, rows[i])
        total += a + math.log(f)
        step = kind(step_size * c / factor)
        for k in range(start, stop):
            j = _PLACE(indices[k])
            z = data[k] if scale is None else data[k] * scale[j]
            held[j] -= step * z
        bias -= kind(step_size * c) if scale is None else kind(step_size * c) * scale[features]
        owed += step_size * l1 / factor
        factor *= keep
        if factor < _LEAST_FACTOR:
            worth[0], worth[1] = factor, owed
            settle(held, 1, seen, worth)
            factor, owed = worth[0], worth[1]
    held[features] = bias
    worth[0], worth[1] = factor, owed
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _paid(v, threshold):
    """Return S(v, threshold) = sign(v)·max(|v| − threshold, 0), in the type of ``v``."""
    lesser = type(v)(threshold)
    return max(v - lesser, type(v)(0)) + min(v + lesser, type(v)(0))


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def settle(held, biases, seen, worth):
    """Make ``held`` what it is worth, see `sequential_sgd`; afterwards the factor is 1 and nothing is owed.

    ``held`` is (features·biases + biases,), the biases last; feature j has the ``biases`` elements from j·biases on.
    """
    factor, owed = worth[0], worth[1]
    for j in range(len(held) // biases - 1):
        for k in range(j * biases, (j + 1) * biases):
            v = held[k] if seen is None else _paid(held[k], owed - seen[j])
            held[k] = v * factor
        if seen is not None:
            seen[j] = 0
    worth[0], worth[1] = 1.0, 0.0


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def scores(data, indices, indptr, parameters, out):
    """Write the score of every row to ``out`` (rows,)."""
    for i in range(len(out)):
        start, stop = _span(indptr, i)
        out[i] = _score(data, indices, start, stop, parameters)
