"""Logistic regression for two classes: ℓ(s, y) = log(1 + exp(s)) − y·s, y in {0, 1}."""

from __future__ import annotations

import numpy as np

from dml_hpc.kernels import losses
from dml_hpc.objectives.two_classes import TwoClasses


class Logistic(TwoClasses):
    """The score is the positive class's log-odds."""

    name = "logistic"
    loss = losses.LOGISTIC
    curvature = 0.25

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        wide = scores[:, 0].astype(np.float64)
        return np.logaddexp(0, wide) - targets * wide

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`: the class, and the probability of the positive one."""
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(-scores[:, 0].astype(np.float64)))
        return {**super().predictions(scores, classes), "probability": probability.astype(scores.dtype)}
