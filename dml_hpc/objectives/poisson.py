"""Poisson regression of counts, whose mean is exp(s): ℓ(s, y) = exp(s) − y·s, the log y! left out."""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.kernels import losses
from dml_hpc.objectives.regression import Regression


class Poisson(Regression):
    """A generalised linear model with the logarithm as its link (Nelder and Wedderburn, 1972); y ≥ 0."""

    name = "poisson"
    loss = losses.POISSON

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`."""
        strange = np.flatnonzero(y < 0)
        if len(strange):
            raise UserError(f"the label of row {strange[0]} is {y[strange[0]]:g}; poisson needs labels of 0 or more")
        return super().targets(y, classes, dtype)

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """See `Objective.losses`."""
        wide = scores[:, 0].astype(np.float64)
        return self.expected(wide) - targets * wide

    @np.errstate(over="ignore")
    def expected(self, scores: np.ndarray) -> np.ndarray:
        """See `Regression.expected`: exp(s)."""
        return np.exp(scores)
