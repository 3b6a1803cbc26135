"""SGD one example at a time for scores linear in the features, one for each class, and their cross-entropy.

X, ``y``, ``weight`` and ``rows`` are those of `dml_hpc.kernels.network`. W are the weights by standardised features,
(features, classes). A step of size η is

    W ← S(W − η·z·δᵀ, η·l1) / (1 + η·l2),  b ← b − η·scale_b·δ,  δ = weight·(softmax(Wᵀz + b) − e_y),

with S(w, t) = sign(w)·max(|w| − t, 0), as in `dml_hpc.kernels.glm.sequential_sgd`. Both kernels return the summed,
weighted loss, each row's before its step.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from dml_hpc.kernels.glm_sparse import settle
from dml_hpc.kernels.lanes import converted
from dml_hpc.kernels.losses import FAST
from dml_hpc.kernels.network import ROWS_AHEAD, fetch

_LEAST_FACTOR = 2.0**-40


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _slopes(scores, label, counts):
    """Turn a row's ``scores`` (classes,) into δ; return its loss."""
    largest = scores[0]
    for c in range(1, len(scores)):
        largest = scores[c] if scores[c] > largest else largest
    own = scores[label] - largest
    summed = scores.dtype.type(0)
    for c in range(len(scores)):
        scores[c] = math.exp(scores[c] - largest)
        summed += scores[c]
    share = counts / summed
    for c in range(len(scores)):
        scores[c] *= share
    scores[label] -= counts
    return (math.log(summed) - own) * counts


@njit(cache=True, nogil=True, fastmath=FAST)
def _soft(w, threshold):
    """Return S(w, threshold)."""
    return max(w - threshold, type(w)(0)) + min(w + threshold, type(w)(0))


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def steps(X, y, weight, rows, shift, scale, block, step_size, l1, l2):
    """Take a step for each of ``rows`` of dense X, changing ``block`` (features + 1, classes), which are W and b.

    Rows are standardised as they are read: z_j = (x_j − shift_j)·scale_j.
    """
    features, classes, kind = X.shape[1], block.shape[1], block.dtype.type
    zero, keep, threshold = kind(0), kind(1 / (1 + step_size * l2)), kind(step_size * l1)
    slopes = np.empty(classes, block.dtype)
    total = 0.0
    for i in range(len(rows)):
        x = X[rows[i]]
        slopes[:] = block[features]
        for j in range(features):
            z, w = (converted(x[j], zero) - shift[j]) * scale[j], block[j]
            for c in range(classes):
                slopes[c] += z * w[c]
        counts = kind(1)
        if weight is not None:
            counts = weight[rows[i]]
        total += _slopes(slopes, int(y[rows[i]]), counts)
        for c in range(classes):
            slopes[c] *= kind(step_size)
        for j in range(features):
            z, w = (converted(x[j], zero) - shift[j]) * scale[j], block[j]
            for c in range(classes):
                w[c] = keep * _soft(w[c] - z * slopes[c], threshold)
        for c in range(classes):
            block[features, c] -= scale[features] * slopes[c]
    return total


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def sparse_steps(data, indices, indptr, y, weight, rows, scale, block, seen, worth, step_size, l1, l2):
    """Take a step for each of the sparse ``rows``, z_j = x_j·scale_j, touching the weights of their own features alone.

    ``block`` (features + 1, classes) holds the weights in the form of `dml_hpc.kernels.glm_sparse.sequential_sgd`,
    described by ``worth`` (2,) and ``seen`` (features,) or None, and, last, b itself. ``scale`` is (features + 1,), or
    None: 1 throughout.
    """
    features, kind, classes = len(block) - 1, block.dtype.type, np.uintp(block.shape[1])
    held = block.reshape(block.size)
    bias = held[features * block.shape[1]:]
    zero, slopes = kind(0), np.empty(block.shape[1], block.dtype)
    total, factor, owed, keep = 0.0, worth[0], worth[1], 1 / (1 + step_size * l2)
    for i in range(len(rows)):
        if i + ROWS_AHEAD < len(rows):
            fetch(indices, indptr, rows[i + ROWS_AHEAD], held, block.shape[1])
            if seen is not None:
                fetch(indices, indptr, rows[i + ROWS_AHEAD], seen, 1)
        start, stop = indptr[rows[i]], indptr[rows[i] + 1]
        slopes[:] = zero
        for k in range(start, stop):
            j = np.uintp(indices[k])
            z, first = converted(data[k], zero), j * classes
            if scale is not None:
                z *= scale[j]
            if seen is not None:
                threshold = kind(owed - seen[j])
                seen[j] = owed
                for c in range(classes):
                    held[first + c] = _soft(held[first + c], threshold)
            for c in range(classes):
                slopes[c] += z * held[first + c]
        for c in range(classes):
            slopes[c] = kind(factor) * slopes[c] + bias[c]
        counts = kind(1)
        if weight is not None:
            counts = weight[rows[i]]
        total += _slopes(slopes, int(y[rows[i]]), counts)
        of_bias, of_weights = kind(step_size), kind(step_size / factor)
        if scale is not None:
            of_bias *= scale[features]
        for c in range(classes):
            bias[c] -= of_bias * slopes[c]
            slopes[c] *= of_weights
        for k in range(start, stop):
            j = np.uintp(indices[k])
            z, first = converted(data[k], zero), j * classes
            if scale is not None:
                z *= scale[j]
            for c in range(classes):
                held[first + c] -= z * slopes[c]
        owed += step_size * l1 / factor
        factor *= keep
        if factor < _LEAST_FACTOR:
            worth[0], worth[1] = factor, owed
            settle(held, block.shape[1], seen, worth)
            factor, owed = worth[0], worth[1]
    worth[0], worth[1] = factor, owed
    return total
