"""What objectives share that tell two classes apart by one score."""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.objectives.linear_score import LinearScore
from dml_hpc.objectives.metrics import area_under_curve


class TwoClasses(LinearScore):
    """The larger of the label's two values is the positive class, y = 1, predicted where the score is positive."""

    def classes(self, name: str, values: list[float] | None) -> list[float]:
        """See `Objective.classes`: exactly two."""
        if values is None:
            raise UserError(f"the label '{name}' has too many values for classes; {self.name} needs exactly two "
                            "(for a number, use --objective linear)")
        if len(values) != 2:
            shown = ", ".join(f"{value:g}" for value in values[:5]) + (", …" if len(values) > 5 else "")
            more = " (for more, use --objective softmax)" if len(values) > 2 else ""
            raise UserError(f"the label '{name}' has {len(values)} class{'es' * (len(values) != 1)} ({shown}); "
                            f"{self.name} needs exactly two{more}")
        return values

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`: 1 for the positive class, 0 for the other."""
        assert classes is not None
        positive = y == classes[1]
        strange = np.flatnonzero(~positive & (y != classes[0]))
        if len(strange):
            raise UserError(f"the label of row {strange[0]} is {y[strange[0]]:g}, which is none of the classes "
                            f"{classes[0]:g} and {classes[1]:g}")
        return positive.astype(dtype)

    def metrics(self, scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> dict[str, float | None]:
        """See `Objective.metrics`."""
        score, positive = scores[:, 0], targets > 0
        right = (score > 0) == positive
        counted = np.ones(len(right)) if weight is None else weight.astype(np.float64)
        count = float(np.sum(counted))
        return {
            "accuracy": float(np.sum(counted * right)) / count if count else None,
            "auc": area_under_curve(score, positive, weight),
            "rmse": None,
            "r2": None,
        }

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`: the class."""
        assert classes is not None
        return {"prediction": np.where(scores[:, 0] > 0, classes[1], classes[0])}
