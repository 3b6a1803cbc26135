"""What ``evaluate`` and ``predict`` share: a model and a data set that fit each other, and scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable, glm
from dml_hpc.layout import split
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.objective import Objective
from dml_hpc.store.model import LinearModel, read_model
from dml_hpc.watch import progressed

BLOCK_ROWS = 1 << 16
"""Rows scored at a time: bounds memory, whatever the data's size."""


class Fitted(NamedTuple):
    """A model with the data it is applied to."""

    model: LinearModel
    dataset: Dataset
    objective: Objective


def open_fitted(model: Path, data: Path) -> Fitted:
    """Open both; raises `UserError` when the data's features are not the model's, by name and order."""
    trained = read_model(model)
    dataset = open_dataset(data)
    ours, theirs = trained.feature_names, dataset.manifest.feature_names
    if ours != theirs:
        first = next((f"'{a}' there, '{b}' here" for a, b in zip(ours, theirs, strict=False) if a != b),
                     f"{len(ours)} there, {len(theirs)} here")
        raise UserError(f"{model} was trained on other features than {data} has: {len(ours)} against {len(theirs)}, "
                        f"first difference: {first} (import new data with --like the training set)")
    return Fitted(trained, dataset, open_objective(trained.objective))


def warm_up(fitted: Fitted) -> None:
    """Have the scoring kernel compiled, or read from Numba's cache, by running it on no rows."""
    kind = fitted.model.weights.dtype
    X = np.empty((0, fitted.dataset.features), computable(np.dtype(fitted.dataset.manifest.dtype), kind))
    glm.scores(X, fitted.model.weights, np.empty(0, kind))


def score_blocks(fitted: Fitted, rank: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (scores, y), both (count,), for this rank's contiguous share of the rows, block by block in order."""
    weights = fitted.model.weights
    start, stop = split(fitted.dataset.rows, size, rank)
    for piece in fitted.dataset.pieces(start, stop, BLOCK_ROWS):
        scores = np.empty(len(piece.y), weights.dtype)
        glm.scores(piece.X.astype(computable(piece.X.dtype, weights.dtype), copy=False), weights, scores)
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise UserError(f"{fitted.dataset.path}: the score of row {piece.first + int(bad[0])} is "
                            f"{scores[bad[0]]}; its features hold NaN, infinity or values beyond {weights.dtype}")
        progressed()
        yield scores, piece.y
