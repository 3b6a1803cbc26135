"""Classes told apart by one score each: targets, losses, metrics and predictions of rows, by softmax.

``scores`` are (rows, classes), ``targets`` (rows,) the numbers of the rows' classes, ``weight`` (rows,) what each row
counts, or None: 1 each.
"""

from __future__ import annotations

import numpy as np

from dml_hpc.errors import UserError
from dml_hpc.objectives.metrics import area_under_curve


def at_least_two(name: str, values: list[float], objective: str) -> list[float]:
    """Return the ``values`` of the label ``name`` as classes; `UserError` where there is nothing to tell apart."""
    if len(values) < 2:
        shown = f" ({values[0]:g})" if values else ""
        raise UserError(f"the label '{name}' has {len(values)} class{'es' * (len(values) != 1)}{shown}; {objective} "
                        "needs at least two")
    return values


def targets(y: np.ndarray, classes: list[float], dtype: np.dtype) -> np.ndarray:
    """Return the numbers 0 … classes − 1 of the labels' classes as ``dtype``; `UserError` names one that has none."""
    values = np.asarray(classes, np.float64)
    order = np.argsort(values)
    found = order[np.minimum(np.searchsorted(values, y, sorter=order), len(values) - 1)]
    strange = np.flatnonzero(values[found] != y)
    if len(strange):
        shown = ", ".join(f"{value:g}" for value in classes[:5]) + (", …" if len(classes) > 5 else "")
        raise UserError(f"the label of row {strange[0]} is {y[strange[0]]:g}, which is none of the classes {shown}")
    return found.astype(dtype)


def losses(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the cross-entropy log Σ_c exp(s_c) − s_y of each row (rows,), float64."""
    below = scores.astype(np.float64)
    below -= scores.max(axis=1, keepdims=True, initial=-np.inf)
    own = np.take_along_axis(below, targets.astype(np.int64)[:, None], axis=1)[:, 0]
    return np.log(np.exp(below, out=below).sum(axis=1)) - own


def tallies(scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return (2,) float64: the weight of the rows whose largest score is their class's, and that of all rows."""
    right = scores.argmax(axis=1) == targets
    if weight is None:
        return np.array([right.sum(), len(right)], np.float64)
    return np.array([weight[right].sum(dtype=np.float64), weight.sum(dtype=np.float64)])


def metrics_of(tallies: np.ndarray) -> dict[str, float | None]:
    """Return the metrics (see `Objective.metrics`) of rows from the sum of their `tallies`: ``accuracy`` alone."""
    right, count = tallies.tolist()
    return {"accuracy": right / count if count else None, "auc": None, "rmse": None, "r2": None}


def metrics(scores: np.ndarray, targets: np.ndarray, weight: np.ndarray | None) -> dict[str, float | None]:
    """Return `metrics_of` the rows and, of two classes, ``auc``."""
    found = metrics_of(tallies(scores, targets, weight))
    if scores.shape[1] == 2:
        found["auc"] = area_under_curve(scores[:, 1] - scores[:, 0], targets > 0, weight)
    return found


def predictions(scores: np.ndarray, classes: list[float]) -> dict[str, np.ndarray]:
    """Return ``prediction`` (rows,), the class with the largest score, and ``probability`` (rows, classes)."""
    terms = scores.astype(np.float64)
    terms -= scores.max(axis=1, keepdims=True, initial=-np.inf)
    np.exp(terms, out=terms)
    terms /= terms.sum(axis=1, keepdims=True)
    return {"prediction": np.asarray(classes, np.float64)[scores.argmax(axis=1)],
            "probability": terms.astype(scores.dtype)}
