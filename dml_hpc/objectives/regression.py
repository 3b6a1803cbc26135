"""What objectives share that learn a number."""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.objectives.linear_score import LinearScore


class Regression(LinearScore):
    """The target is the label itself; the prediction is the score, unless `expected` makes another number of it."""

    def classes(self, name: str, values: list[float] | None) -> None:
        """See `Objective.classes`: any number will do."""

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`."""
        strange = np.flatnonzero(~np.isfinite(y))
        if len(strange):
            raise UserError(f"the label of row {strange[0]} is {y[strange[0]]}, which is no number to learn")
        return y.astype(dtype, copy=False)

    def expected(self, scores: np.ndarray) -> np.ndarray:
        """Return what is predicted for ``scores``, an array of their shape."""
        return scores

    def metrics(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> dict[str, float | None]:
        """See `Objective.metrics`; R² = 1 − Σ(y − p)²/Σ(y − ȳ)² of the predictions p, None when all y are equal."""
        predicted, targets = self.expected(scores[:, 0].astype(np.float64)), targets.astype(np.float64)
        weight = np.ones(len(targets)) if weight is None else weight.astype(np.float64)
        count = float(np.sum(weight))
        residual = float(np.sum(weight * (predicted - targets) ** 2))
        mean = float(np.sum(weight * targets)) / count if count else 0.0
        total = float(np.sum(weight * (targets - mean) ** 2))
        return {
            "accuracy": None,
            "auc": None,
            "rmse": (residual / count) ** 0.5 if count else None,
            "r2": 1 - residual / total if total > 0 else None,
        }

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`."""
        return {"prediction": self.expected(scores[:, 0])}
