"""What ``evaluate`` and ``predict`` share: a model and a data set that fit each other, and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.commands.opening import named, open_data
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.objective import Objective
from dml_hpc.store.model import LinearModel, read_model
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_BLOCK_ROWS = 1 << 16
"""Rows scored at a time: bounds memory, whatever the data's size."""


class Fitted(NamedTuple):
    """A model with the data it is applied to."""

    model: LinearModel
    dataset: Dataset
    objective: Objective


def open_fitted(comm: Intracomm, model: Path, data: Sequence[Path], x_key: str | None, y_key: str | None) -> Fitted:
    """Collective: open both; `AgreedError` when the data's features are not the model's, by name and order.

    Where either has no names for its features, their number decides.
    """
    dataset = open_data(comm, data, x_key, y_key)
    with agreed(comm):
        trained = read_model(model)
        _check_features(trained, dataset, model, named(data))
        objective = open_objective(trained.objective)
    return Fitted(trained, dataset, objective)


def _check_features(trained: LinearModel, dataset: Dataset, model: Path, data: str) -> None:
    ours, theirs = trained.feature_names, dataset.manifest.feature_names
    if ours is None or theirs is None:
        if len(trained.weights) - 1 != dataset.features:
            raise UserError(f"{model} was trained on {len(trained.weights) - 1} features, {data} has "
                            f"{dataset.features}")
    elif ours != theirs:
        first = next((f"'{a}' there, '{b}' here" for a, b in zip(ours, theirs, strict=False) if a != b),
                     f"{len(ours)} there, {len(theirs)} here")
        raise UserError(f"{model} was trained on other features than {data} has: {len(ours)} against {len(theirs)}, "
                        f"first difference: {first} (import new data with --like the training set)")


def warm_up(fitted: Fitted) -> None:
    """Have the scoring kernel compiled, or read from Numba's cache, by running it on no rows."""
    kind = fitted.model.weights.dtype
    X = no_rows(fitted.dataset, computable(np.dtype(fitted.dataset.manifest.dtype), kind))
    fitted.objective.scores(X, fitted.model.weights, np.empty(0, kind))


def block_rows(dataset: Dataset) -> int:
    """Return how many rows are scored at a time."""
    return min(MOST_BLOCK_ROWS, dataset.block_rows())


def score_blocks(fitted: Fitted, rank: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (scores, y), both (count,), for this rank's contiguous share of the rows, block by block in order."""
    weights = fitted.model.weights
    start, stop = split(fitted.dataset.rows, size, rank)
    for piece in fitted.dataset.pieces(start, stop, block_rows(fitted.dataset)):
        scores = np.empty(len(piece.y), weights.dtype)
        fitted.objective.scores(piece.X.astype(computable(piece.X.dtype, weights.dtype), copy=False), weights, scores)
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            raise UserError(f"{fitted.dataset.path}: the score of row {piece.first + int(bad[0])} is "
                            f"{scores[bad[0]]}; its features hold NaN, infinity or values beyond {weights.dtype}")
        progressed()
        yield scores, piece.y
