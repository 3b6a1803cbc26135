"""Logistic regression for two classes: ℓ(s, y) = log(1 + exp(s)) − y·s, y in {0, 1}."""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.kernels import glm
from dml_hpc.objectives.objective import Objective


class Logistic(Objective):
    """The larger of the label's two values is the positive class; the score is its log-odds."""

    name = "logistic"
    loss = glm.LOGISTIC

    def classes(self, name: str, values: list[float] | None) -> list[float]:
        """See `Objective.classes`: exactly two."""
        if values is None:
            raise UserError(f"the label '{name}' has too many values for classes; logistic needs exactly two "
                            "(for a number, use --objective linear)")
        if len(values) != 2:
            shown = ", ".join(f"{value:g}" for value in values[:5]) + (", …" if len(values) > 5 else "")
            raise UserError(f"the label '{name}' has {len(values)} class{'es' * (len(values) != 1)} ({shown}); "
                            "logistic needs exactly two")
        return values

    def targets(self, y: np.ndarray, classes: list[float] | None, dtype: np.dtype) -> np.ndarray:
        """See `Objective.targets`."""
        assert classes is not None
        positive = y == classes[1]
        strange = np.flatnonzero(~positive & (y != classes[0]))
        if len(strange):
            raise UserError(f"the label of row {strange[0]} is {y[strange[0]]:g}, which is none of the classes "
                            f"{classes[0]:g} and {classes[1]:g}")
        return positive.astype(dtype)

    def summed_loss(self, scores: np.ndarray, targets: np.ndarray) -> float:
        """See `Objective.summed_loss`."""
        wide = scores.astype(np.float64)
        return float(np.sum(np.logaddexp(0, wide) - targets * wide))

    def metrics(self, scores: np.ndarray, targets: np.ndarray) -> dict[str, float | None]:
        """See `Objective.metrics`."""
        right = float(np.mean((scores > 0) == (targets > 0))) if targets.size else None
        return {"accuracy": right, "auc": area_under_curve(scores, targets > 0), "rmse": None, "r2": None}

    def predictions(self, scores: np.ndarray, classes: list[float] | None) -> dict[str, np.ndarray]:
        """See `Objective.predictions`: the class, and the probability of the positive one."""
        assert classes is not None
        with np.errstate(over="ignore"):
            probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
        return {
            "prediction": np.where(scores > 0, classes[1], classes[0]),
            "probability": probability.astype(scores.dtype),
        }


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the area under the ROC curve: the chance that a positive row scores above a negative one.

    ``scores`` (count,), ``positive`` (count,) bool; ties count a half (the Mann–Whitney statistic with mid-ranks).
    None when only one class is there.
    """
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    stops = np.r_[starts[1:], ordered.size]
    mid_rank = np.repeat((starts + stops + 1) / 2, stops - starts)
    rank_sum = float(mid_rank[positive[order]].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
