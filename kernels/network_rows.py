"""A network's gradient in fixed point, one row at a time, always by the same instructions.

Blocks, ``y``, ``weight``, ``rows`` and X are those of `dml_hpc.kernels.network`. ``widths`` and ``starts``, both
(layers + 1,) int64, say where each block lies in ``parameters`` (size,). No sum may be reordered here: the bits of a
row's term must not depend on what is computed beside it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import converted

_TOO_MUCH = 1 << 30


@njit(cache=True, nogil=True, error_model="numpy")
def _softmax(scores, slopes, label, counts):
    """Write the slopes of a row's cross-entropy by its ``scores``, counted ``counts`` times; return that loss."""
    largest = scores[0]
    for c in range(1, len(scores)):
        largest = max(largest, scores[c])
    summed = scores.dtype.type(0)
    for c in range(len(scores)):
        slopes[c] = math.exp(scores[c] - largest)
        summed += slopes[c]
    for c in range(len(scores)):
        slopes[c] = slopes[c] / summed * counts
    slopes[label] -= counts
    return (math.log(np.float64(summed)) - np.float64(scores[label] - largest)) * counts


@njit(cache=True, nogil=True, error_model="numpy")
def _through(widths, starts, parameters, tanh, label, counts, values, slopes):
    """Take one row through all layers and back; return its loss.

    ``values`` (Σ outputs,) hold at first x·W of the first layer, then each layer's outputs one after the other, the
    scores last; ``slopes`` become those by what each layer adds up.
    """
    layers, here = len(widths) - 1, 0
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for layer in range(layers):
        outputs = widths[layer + 1]
        out = values[here:here + outputs]
        block = parameters[starts[layer]:starts[layer + 1]].reshape(widths[layer] + 1, outputs)
        if layer > 0:
            out[:] = zero
            for j in range(widths[layer]):
                a, w = values[here - widths[layer] + j], block[j]
                for o in range(outputs):
                    out[o] += a * w[o]
        for o in range(outputs):
            s = out[o] + block[widths[layer], o]
            if layer + 1 < layers:
                s = math.tanh(s) if tanh else (zero if s < zero else s)
            out[o] = s
        here += outputs
    outputs = widths[layers]
    here -= outputs
    if outputs == 1:
        residual = values[here] - label
        slopes[here] = residual * counts
        loss = np.float64(residual) * np.float64(residual) * 0.5 * counts
    else:
        loss = _softmax(values[here:], slopes[here:], int(label), counts)
    for layer in range(layers - 1, 0, -1):
        inputs, outputs = widths[layer], widths[layer + 1]
        block = parameters[starts[layer]:starts[layer + 1]].reshape(inputs + 1, outputs)
        for j in range(inputs):
            summed = zero
            for o in range(outputs):
                summed += block[j, o] * slopes[here + o]
            a = values[here - inputs + j]
            slopes[here - inputs + j] = summed * (one - a * a) if tanh else (summed if a > zero else zero)
        here -= inputs
    return loss


@njit(cache=True, nogil=True, error_model="numpy")
def _squares(vector):
    total = 0.0
    for i in range(len(vector)):
        total += np.float64(vector[i]) * np.float64(vector[i])
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _count(widths, starts, squares, values, slopes, loss, per_unit, per_loss_unit, out):
    """Add the row's masses and loss to ``out``; return whether its gradient may be added too.

    ``squares`` is ‖z‖². A row's mass is (Σ (‖slopes‖·max(‖inputs‖, 1))²)^½ over the layers, about the length of its
    gradient, no element of which exceeds it.
    """
    size, total, here = starts[-1], 0.0, 0
    for layer in range(len(widths) - 1):
        outputs = widths[layer + 1]
        total += _squares(slopes[here:here + outputs]) * max(squares, 1.0)
        squares = _squares(values[here:here + outputs])
        here += outputs
    mass, loss_mass = math.sqrt(total) * (per_unit / 4294967296.0), loss * (per_loss_unit / 4294967296.0)
    fits, loss_fits = mass < _TOO_MUCH, loss_mass < _TOO_MUCH
    if not (fits and loss_fits):
        out[size + 1] += 1 if fits else _TOO_MUCH
        out[size + 2] += 1 if loss_fits else _TOO_MUCH
        return False
    out[size] += int(loss * per_loss_unit)
    out[size + 1] += 1 + int(mass)
    out[size + 2] += 1 + int(loss_mass)
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _add(scale, step, outputs, out):
    """Add ``scale`` times the ``step`` (outputs,) in units to ``out`` (outputs,), rounded towards zero."""
    for o in range(outputs):
        out[o] += int(scale * step[o])


@njit(cache=True, nogil=True, error_model="numpy")
def _add_upper(widths, starts, values, step, out):
    """Add the gradient of all layers but the first; ``step`` are the slopes in units."""
    here = widths[1]
    one = values.dtype.type(1)
    for layer in range(1, len(widths) - 1):
        inputs, outputs = widths[layer], widths[layer + 1]
        for j in range(inputs):
            _add(values[here - inputs + j], step[here:here + outputs], outputs, out[starts[layer] + j * outputs:])
        _add(one, step[here:here + outputs], outputs, out[starts[layer] + inputs * outputs:])
        here += outputs


@njit(cache=True, nogil=True, error_model="numpy")
def fixed_point_gradient(X, y, weight, rows, widths, starts, parameters, tanh, shift, scale, per_unit, per_loss_unit,
                         out):
    """Add the rows' gradient, loss and masses in fixed point to ``out`` (size + 3,) int64.

    See `dml_hpc.kernels.glm.fixed_point_gradient`, whose contract this is: units, rounding, standardised rows and
    masses. ``tanh`` says which activation, tanh or relu; one output means ½(s − y)², several cross-entropy.
    """
    features, outputs, like = widths[0], widths[1], parameters.dtype.type(0)
    one = parameters.dtype.type(1)
    z = np.empty(features, parameters.dtype)
    values, slopes = np.empty(widths[1:].sum(), parameters.dtype), np.empty(widths[1:].sum(), parameters.dtype)
    block = parameters[:starts[1]].reshape(features + 1, outputs)
    for i in range(len(rows)):
        x = X[rows[i]]
        values[:outputs] = like
        for j in range(features):
            value = converted(x[j], like)
            z[j] = (value - shift[j]) * scale[j]
            for o in range(outputs):
                values[o] += value * block[j, o]
        counts = one if weight is None else weight[rows[i]]
        loss = _through(widths, starts, parameters, tanh, y[rows[i]], counts, values, slopes)
        if _count(widths, starts, _squares(z), values, slopes, loss, per_unit, per_loss_unit, out):
            for o in range(len(slopes)):
                slopes[o] *= per_unit
            for j in range(features):
                _add(z[j], slopes, outputs, out[j * outputs:])
            _add(scale[features], slopes, outputs, out[features * outputs:])
            _add_upper(widths, starts, values, slopes, out)


@njit(cache=True, nogil=True, error_model="numpy")
def sparse_fixed_point_gradient(data, indices, indptr, y, weight, rows, widths, starts, parameters, tanh, scale,
                                per_unit, per_loss_unit, out):
    """As `fixed_point_gradient`, of sparse rows: they are scaled, never shifted."""
    features, outputs, like = widths[0], widths[1], parameters.dtype.type(0)
    one = parameters.dtype.type(1)
    values, slopes = np.empty(widths[1:].sum(), parameters.dtype), np.empty(widths[1:].sum(), parameters.dtype)
    block = parameters[:starts[1]].reshape(features + 1, outputs)
    for i in range(len(rows)):
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        values[:outputs] = like
        squares = 0.0
        for k in range(start, stop):
            value, w = converted(data[k], like), block[indices[k]]
            for o in range(outputs):
                values[o] += value * w[o]
            squares += np.float64(value * scale[indices[k]]) ** 2
        counts = one if weight is None else weight[rows[i]]
        loss = _through(widths, starts, parameters, tanh, y[rows[i]], counts, values, slopes)
        if _count(widths, starts, squares, values, slopes, loss, per_unit, per_loss_unit, out):
            for o in range(len(slopes)):
                slopes[o] *= per_unit
            for k in range(start, stop):
                j = indices[k]
                _add(converted(data[k], like) * scale[j], slopes, outputs, out[j * outputs:])
            _add(scale[features], slopes, outputs, out[features * outputs:])
            _add_upper(widths, starts, values, slopes, out)
