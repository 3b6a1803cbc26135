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

    def fold(self, weights: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write to ``out`` the weights for raw rows that score as ``weights`` do for standardised ones.

        Both (features + 1,), intercept last.
        """
        np.multiply(weights, self.scale, out=out)
        out[-1] -= self.shift @ out[:-1]
        return out

    def pull_back(self, gradient: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write to ``out`` the gradient by standardised weights, given that by raw ones; both (features + 1,)."""
        np.multiply(self.shift, -gradient[-1], out=out[:-1])
        out[:-1] += gradient[:-1]
        out[-1] = gradient[-1]
        out *= self.scale
        return out


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


def identity(features: int, intercept: bool, dtype: np.dtype) -> Scaling:
    """Return the scaling that changes nothing."""
    none = np.zeros(features)
    return standardising(none, none, np.zeros(features, bool), intercept, dtype)
