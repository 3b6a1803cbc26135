"""How good scores are, beyond the loss."""

from __future__ import annotations

import numpy as np


def area_under_curve(scores: np.ndarray, positive: np.ndarray, weight: np.ndarray | None = None) -> float | None:
    """Return the area under the ROC curve: the chance that a positive row scores above a negative one.

    ``scores`` (count,), ``positive`` (count,) bool; each row counts ``weight`` (count,), or 1; ties count a half (the
    Mann–Whitney statistic). None when only one class is there.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    counted = np.ones(len(order)) if weight is None else weight[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])[:len(order)]
    if not len(starts):
        return None
    here = positive[order]
    positives = np.add.reduceat(counted * here, starts)  # by distinct score
    negatives = np.add.reduceat(counted * ~here, starts)
    pairs = float(positives.sum()) * float(negatives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float(np.sum(positives * (below + negatives / 2))) / pairs
