"""Least squares: ℓ(s, y) = ½(s − y)²."""

from __future__ import annotations

import numpy as np

from dml_hpc.kernels import losses
from dml_hpc.objectives.regression import Regression


class Linear(Regression):
    """Linear regression."""

    name = "linear"
    loss = losses.SQUARED
    curvature = 1.0

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        return (scores[:, 0].astype(np.float64) - targets) ** 2 / 2
