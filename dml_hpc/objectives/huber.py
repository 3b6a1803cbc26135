"""Regression that outliers do not pull away: ℓ(s, y) = ½r² for |r| ≤ δ, δ|r| − ½δ² beyond, with r = s − y."""

from __future__ import annotations

import math

import numpy as np

from dml_hpc.kernels import losses
from dml_hpc.objectives.regression import Regression

DELTA = 1.35
"""Close to 1.345, which is 95 % as efficient as least squares where errors are normal with variance 1."""


class Huber(Regression):
    """``delta`` δ > 0 is in units of the label (Huber, *Robust Estimation of a Location Parameter*, 1964)."""

    name = "huber"
    loss = losses.HUBER
    curvature = 1.0

    def __init__(self, delta: float = DELTA):
        if not 0 < delta < math.inf:
            raise ValueError(f"δ is {delta}, not a positive number")
        self.delta = float(delta)

    @property
    def settings(self) -> dict[str, object]:
        """See `Objective.settings`."""
        return {"delta": self.delta}

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        distance = np.abs(scores[:, 0].astype(np.float64) - targets)
        return np.where(distance <= self.delta, distance ** 2 / 2, self.delta * (distance - self.delta / 2))
