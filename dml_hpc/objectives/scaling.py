"""Standardised features without rewriting the data: the scaling is folded into the weights.

With z_j = (x_j − m_j)·c_j the score is Σ w_j·z_j + b = Σ (w_j·c_j)·x_j + (b − Σ w_j·c_j·m_j): a linear map of the
weights, whose transpose takes the gradient back (chain rule).
"""

from __future__ import annotations

import numpy as np


class Scaling:
    """``shift`` m (features,) and ``scale`` c (features + 1,); c of the intercept is 1, or 0 when there is none."""

    def __init__(self, shift: np.ndarray, scale: np.ndarray):
        self.shift = shift
        self.scale = scale
        self._change = np.empty_like(shift)

    def fold(self, weights: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write to ``out`` the weights for raw rows that score as ``weights`` do for standardised ones.

        Both (features + 1,), intercept last.
        """
        np.multiply(weights, self.scale, out=out)
        np.multiply(self.shift, out[:-1], out=self._change)
        out[-1] -= self._change.sum()  # not BLAS, whose order of addition depends on its number of threads
        return out

    def pull_back(self, gradient: np.ndarray) -> None:
        """Turn the ``gradient`` by raw weights (features + 1,) into that by standardised ones, in place.

        As it is linear, so may the sum of several gradients be turned, or each of them.
        """
        np.multiply(self.shift, gradient[-1], out=self._change)
        gradient[:-1] -= self._change
        gradient *= self.scale


def standardising(mean: np.ndarray, deviation: np.ndarray, numeric: np.ndarray, intercept: bool,
                  dtype: np.dtype) -> Scaling:
    """Return the scaling that gives numeric features mean 0 and deviation 1 and leaves the others as they are.

    All (features,). A feature that never varies is switched off (scale 0), as it tells nothing. Without an
    intercept there is nothing to take up the shift, so features are divided by their deviation only.
    """
    scaled = numeric & (deviation > 0)
    scale = np.ones(len(mean) + 1)
    scale[:-1][scaled] = 1 / deviation[scaled]
    scale[:-1][numeric & ~scaled] = 0
    scale[-1] = float(intercept)
    shift = np.where(numeric, mean, 0.0) if intercept else np.zeros(len(mean))
    return Scaling(shift.astype(dtype), scale.astype(dtype))


def of_sparse(minimum: np.ndarray, maximum: np.ndarray, numeric: np.ndarray, intercept: bool,
              dtype: np.dtype) -> Scaling:
    """Return the scaling that brings numeric features of sparse rows into −1 … 1 and leaves the others as they are.

    All (features,). Nothing is shifted, as zeros are to stay zeros, and a feature is divided by its largest magnitude
    rather than by its deviation, which is tiny where hardly any row has it.
    """
    largest = np.maximum(-minimum, maximum)
    scale = np.ones(len(largest) + 1)
    scaled = numeric & (largest > 0)
    scale[:-1][scaled] = 1 / largest[scaled]
    scale[-1] = float(intercept)
    return Scaling(np.zeros(len(largest), dtype), scale.astype(dtype))


def identity(features: int, intercept: bool, dtype: np.dtype) -> Scaling:
    """Return the scaling that changes nothing."""
    none = np.zeros(features)
    return standardising(none, none, np.zeros(features, bool), intercept, dtype)
