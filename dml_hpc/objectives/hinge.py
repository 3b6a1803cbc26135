"""Support-vector machines, linear: ℓ(s, y) = max(0, 1 − t·s), or its square, with t = 2y − 1 for y in {0, 1}."""

from __future__ import annotations

import numpy as np

from dml_hpc.kernels import losses
from dml_hpc.objectives.two_classes import TwoClasses


class Hinge(TwoClasses):
    """max(0, 1 − t·s), whose gradient jumps where t·s = 1 (Cortes and Vapnik, *Support-Vector Networks*, 1995)."""

    name = "hinge"
    loss = losses.HINGE
    smooth = False

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        return np.maximum(0, 1 - (2.0 * targets - 1) * scores[:, 0].astype(np.float64))


class SquaredHinge(Hinge):
    """max(0, 1 − t·s)², without a half, as in scikit-learn and LIBLINEAR; its gradient is continuous."""

    name = "squared-hinge"
    loss = losses.SQUARED_HINGE
    smooth = True
    curvature = 2.0

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        return super().losses(scores, targets) ** 2
