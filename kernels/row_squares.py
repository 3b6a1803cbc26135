"""Sums of squares of rows of factors, column by column, and what weighs the rows in them."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def weigh_rows(starts, weights, out):
    """Set ``out`` (n,) float32 to the sums of the weights (e,) of entries ``starts[i]`` … ``starts[i + 1]`` − 1.

    ``weights`` is empty where they weigh 1 each. A row's sum does not depend on the others.
    """
    for i in range(len(out)):
        total = float(starts[i + 1] - starts[i])
        if len(weights):
            total = 0.0
            for e in range(starts[i], starts[i + 1]):
                total += np.float64(weights[e])
        out[i] = total


@njit(cache=True, nogil=True)
def add_squares(rows, biases, weights, k, width, per_unit, weighted_per_unit, out):
    """out += Σ x²·per_unit, and Σ w·x²·weighted_per_unit, of ``k`` columns and biases, rounded to whole numbers.

    ``rows`` (n·width,) float32, ``biases`` (n,) float32, or empty, ``weights`` w (n,) float32: a row of 0 has no part.
    ``out`` (2·(k + 1),) int64: whoever has which rows, the sums are the same. No sum may reach 2⁶².
    """
    for n in range(len(weights)):
        weight = np.float64(weights[n])
        if weight > 0:
            for j in range(k):
                square = np.float64(rows[n * width + j]) * np.float64(rows[n * width + j])
                out[j] += np.int64(np.rint(square * per_unit))
                out[k + 1 + j] += np.int64(np.rint(weight * square * weighted_per_unit))
            if len(biases):
                square = np.float64(biases[n]) * np.float64(biases[n])
                out[k] += np.int64(np.rint(square * per_unit))
                out[2 * k + 1] += np.int64(np.rint(weight * square * weighted_per_unit))
