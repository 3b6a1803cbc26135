"""Least squares: ℓ(s, y) = ½(s − y)²."""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.kernels import glm
from dml_hpc.objectives.objective import Objective


class Linear(Objective):
    """The target is the label itself and the prediction is the score."""

    name = "linear"
    loss = glm.SQUARED

    def classes(self, name: str, values: list[float] | None) -> None:
        """See `Objective.classes`: any number will do."""

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`."""
        strange = np.flatnonzero(~np.isfinite(y))
        if len(strange):
            raise UserError(f"the label of row {strange[0]} is {y[strange[0]]}, which is no number to learn")
        return y.astype(dtype, copy=False)

    def summed_loss(self, scores: np.ndarray, targets: np.ndarray) -> float:
        """See `Objective.summed_loss`."""
        return float(np.sum((scores.astype(np.float64) - targets) ** 2) / 2)

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
        """See `Objective.metrics`; R² = 1 − Σ(y − s)²/Σ(y − ȳ)², None when all y are equal."""
        scores, targets = scores.astype(np.float64), targets.astype(np.float64)
        residual = float(np.sum((scores - targets) ** 2))
        total = float(np.sum((targets - targets.mean()) ** 2)) if targets.size else 0.0
        return {
            "accuracy": None,
            "auc": None,
            "rmse": (residual / targets.size) ** 0.5 if targets.size else None,
            "r2": 1 - residual / total if total > 0 else None,
        }

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`."""
        return {"prediction": scores}
