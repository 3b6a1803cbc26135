"""What a network of fully connected layers needs beside matrix products: gathering, activations, slopes, sparse rows.

A layer of parameters is a block (inputs + 1, outputs), its last row the biases (see `dml_hpc.objectives.layers`);
``bias`` is that row. Matrices are C-contiguous, of the parameters' dtype; X is (rows, features) in any float, float16
held as its bits (uint16). ``rows`` are int64 row numbers into X, ``y`` and ``weight``; row i of a matrix belongs to
``rows[i]``. ``weight`` is what each row counts, or None: 1 each.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.lanes import converted
from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.prefetch import LINE_BYTES, prefetch

LANES = 16
ROWS_AHEAD = 2
"""How many sparse rows ahead the parameters that they touch are fetched."""


@njit(cache=True, nogil=True)
def are_consecutive(rows):
    """Return whether ``rows`` are r, r + 1, r + 2 …, at least one."""
    consecutive = len(rows) > 0
    for i in range(1, len(rows)):
        consecutive &= rows[i] == rows[i - 1] + 1
    return consecutive


@njit(cache=True, nogil=True)
def gather(X, rows, out):
    """Write the ``rows`` of X to ``out`` (count, features), converted to its dtype."""
    features, like = X.shape[1], out.dtype.type(0)
    line = LINE_BYTES // X.itemsize
    for i in range(len(rows)):
        x, z = X[rows[i]], out[i]
        ahead = X[rows[min(i + 2, len(rows) - 1)]]
        for j in range(0, features, line):
            prefetch(ahead, j)
        for j in range(features):
            z[j] = converted(x[j], like)


@njit(cache=True, nogil=True)
def relu(scores, bias):
    """Replace every row s of ``scores`` (count, outputs) by max(s + bias, 0); NaN stays NaN."""
    zero = scores.dtype.type(0)
    for i in range(len(scores)):
        s = scores[i]
        for o in range(len(bias)):
            value = s[o] + bias[o]
            s[o] = zero if value < zero else value


@njit(cache=True, nogil=True, fastmath=FAST)
def through_relu(slopes, activations, bias_gradient):
    """Turn slopes by relu's outputs into those by its inputs, in place; add their sum to ``bias_gradient``.

    Both are (count, outputs); ``activations`` are the outputs.
    """
    zero = slopes.dtype.type(0)
    for i in range(len(slopes)):
        slope, a = slopes[i], activations[i]
        for o in range(len(bias_gradient)):
            value = slope[o] if a[o] > zero else zero
            slope[o] = value
            bias_gradient[o] += value


@njit(cache=True, nogil=True, fastmath=FAST)
def through_tanh(slopes, activations, bias_gradient):
    """As `through_relu`, for tanh: its slope is 1 − tanh²."""
    one = slopes.dtype.type(1)
    for i in range(len(slopes)):
        slope, a = slopes[i], activations[i]
        for o in range(len(bias_gradient)):
            value = slope[o] * (one - a[o] * a[o])
            slope[o] = value
            bias_gradient[o] += value


@njit(cache=True, nogil=True)
def below_largest(scores, bias, y, rows, tops, own):
    """Replace every row s of ``scores`` (count, classes) by s + bias less its largest; those of classes y in ``own``.

    ``y`` are class numbers, ``own`` is (count,), ``tops`` scratch of `LANES` elements. exp can then not overflow.
    """
    classes = len(bias)
    whole = classes // LANES * LANES
    for i in range(len(rows)):
        s = scores[i]
        largest = s[0] + bias[0]
        tops[:] = largest
        for first in range(0, whole, LANES):
            # Lane by lane, which needs no assumption on NaN to be vectorised.
            for lane in range(LANES):
                value = s[first + lane] + bias[first + lane]
                s[first + lane] = value
                tops[lane] = value if value > tops[lane] else tops[lane]
        for c in range(whole, classes):
            value = s[c] + bias[c]
            s[c] = value
            largest = value if value > largest else largest
        for lane in range(LANES):
            largest = tops[lane] if tops[lane] > largest else largest
        for c in range(classes):
            s[c] -= largest
        own[i] = s[int(y[rows[i]])]


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def softmax_slopes(terms, y, weight, rows, own, bias_gradient):
    """Return the summed cross-entropy Σ log Σ_c exp(s_c) − s_y (float64), and turn ``terms`` into its slopes by s.

    ``terms`` (count, classes) are exp of what `below_largest` made, ``own`` (count,) what it found. The slopes' sum is
    added to ``bias_gradient`` (classes,).
    """
    classes, total = len(bias_gradient), 0.0
    one = terms.dtype.type(1)
    for i in range(len(rows)):
        e = terms[i]
        summed = terms.dtype.type(0)
        for c in range(classes):
            summed += e[c]
        counts = one if weight is None else weight[rows[i]]
        total += (math.log(summed) - own[i]) * counts
        label = int(y[rows[i]])
        share = counts / summed
        for c in range(classes):
            value = e[c] * share
            e[c] = value
            bias_gradient[c] += value
        e[label] -= counts
        bias_gradient[label] -= counts
    return total


@njit(cache=True, nogil=True, fastmath=FAST)
def squared_slopes(scores, bias, y, weight, rows, bias_gradient):
    """Return Σ ½(s − y)² (float64) of ``scores`` (count, 1) + bias, which become its slopes; see `softmax_slopes`."""
    total = 0.0
    for i in range(len(rows)):
        residual = scores[i, 0] + bias[0] - y[rows[i]]
        slope = residual if weight is None else residual * weight[rows[i]]
        total += np.float64(residual) * slope / 2
        scores[i, 0] = slope
        bias_gradient[0] += slope
    return total


@njit(cache=True, nogil=True)
def fetch(indices, indptr, row, flat, outputs):
    """In a jitted function: prefetch what a sparse row touches in ``flat``, a block (features + 1, outputs), flat."""
    line = LINE_BYTES // flat.itemsize
    for k in range(indptr[row], indptr[row + 1]):
        for o in range(0, outputs, line):
            prefetch(flat, indices[k] * outputs + o)


@njit(cache=True, nogil=True, fastmath=FAST)
def sparse_products(data, indices, indptr, rows, block, out):
    """Write x·W of the sparse ``rows`` x to ``out`` (count, outputs); W is ``block`` without its last row."""
    outputs, like = np.uintp(block.shape[1]), out.dtype.type(0)
    flat = block.reshape(block.size)
    for i in range(len(rows)):
        if i + ROWS_AHEAD < len(rows):
            fetch(indices, indptr, rows[i + ROWS_AHEAD], flat, block.shape[1])
        s = out[i]
        s[:] = like
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            value, place = converted(data[k], like), np.uintp(indices[k]) * outputs
            for o in range(outputs):
                s[o] += value * flat[place + o]


@njit(cache=True, nogil=True, fastmath=FAST)
def scatter_slopes(data, indices, indptr, rows, slopes, gradient):
    """Add Σ xᵀ·slope of the sparse ``rows`` x to ``gradient`` (features + 1, outputs); slopes are (count, outputs)."""
    outputs, like = np.uintp(gradient.shape[1]), gradient.dtype.type(0)
    flat = gradient.reshape(gradient.size)
    for i in range(len(rows)):
        if i + ROWS_AHEAD < len(rows):
            fetch(indices, indptr, rows[i + ROWS_AHEAD], flat, gradient.shape[1])
        slope = slopes[i]
        for k in range(indptr[rows[i]], indptr[rows[i] + 1]):
            value, place = converted(data[k], like), np.uintp(indices[k]) * outputs
            for o in range(outputs):
                flat[place + o] += value * slope[o]
