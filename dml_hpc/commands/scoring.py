"""What ``evaluate`` and ``predict`` share: a model and a data set that fit each other, and scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.commands.opening import named, open_data
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.data.shard import check_weights
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.objective import Objective
from dml_hpc.store.model import Model, read_model
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MOST_BLOCK_ROWS = 1 << 16
MOST_BLOCK_SCORES = 1 << 21
"""What is scored at a time: bounds memory, whatever the data's size."""


class Fitted(NamedTuple):
    """A model with the data it is applied to."""

    model: Model
    dataset: Dataset
    objective: Objective
    layers: Layers


class Scored(NamedTuple):
    """``scores`` (count, outputs) of some rows with their labels ``y`` (count,), and what each counts, None: 1 each."""

    scores: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None


def open_fitted(comm: Intracomm, model: Path, data: Sequence[Path], x_key: str | None, y_key: str | None,
                weight_key: str | None = None, labels: bool = True) -> Fitted:
    """Collective: open both; `AgreedError` when the data's features are not the model's (see `check_features`).

    Without ``labels`` files without a manifest need none.
    """
    dataset = open_data(comm, data, x_key, y_key, weight_key, labels=labels)
    with agreed(comm):
        trained = read_model(model)
        check_features(trained.feature_names, trained.features, dataset, str(model), named(data))
        objective = open_objective(trained.objective, **trained.settings)
    return Fitted(trained, dataset, objective, Layers(trained.widths))


def check_features(names: list[str] | None, features: int, dataset: Dataset, trained: str, data: str,
                   made: str = "trained on") -> None:
    """Raise `UserError` unless the data set has the features that something was trained on, by name and order.

    ``names`` and ``features`` are those of what was ``trained``, which, like ``data``, is what a person calls it;
    ``made`` says how it came about. Where either has no names for its features, their number decides.
    """
    theirs = dataset.manifest.feature_names
    if names is None or theirs is None:
        if features != dataset.features:
            raise UserError(f"{trained} was {made} {features} features, {data} has {dataset.features}")
    elif names != theirs:
        first = next((f"'{a}' there, '{b}' here" for a, b in zip(names, theirs, strict=False) if a != b),
                     f"{len(names)} there, {len(theirs)} here")
        raise UserError(f"{trained} was {made} other features than {data} has: {len(names)} against {len(theirs)}, "
                        f"first difference: {first} (import new data with --like what it was {made})")


def warm_up(fitted: Fitted) -> None:
    """Have the scoring kernel compiled, or read from Numba's cache, by running it on no rows."""
    kind = fitted.model.weights.dtype
    X = no_rows(fitted.dataset, fitted.dataset.computable(kind))
    fitted.objective.scores(fitted.layers, X, fitted.model.weights, no_scores(fitted))


def no_scores(fitted: Fitted) -> np.ndarray:
    """Return the scores (0, outputs) of no rows."""
    return np.empty((0, fitted.layers.outputs), fitted.model.weights.dtype)


def block_rows(fitted: Fitted) -> int:
    """Return how many rows are scored at a time."""
    return max(1, min(MOST_BLOCK_ROWS, MOST_BLOCK_SCORES // fitted.layers.outputs, fitted.dataset.block_rows()))


def score_blocks(fitted: Fitted, rank: int, size: int) -> Iterator[Scored]:
    """Yield the scores of this rank's contiguous share of the rows, block by block in order.

    Raises `UserError` for a score that is not finite, and for a weight that is not, or is negative.
    """
    dataset, weights = fitted.dataset, fitted.model.weights
    start, stop = split(dataset.rows, size, rank)
    kind = dataset.computable(weights.dtype)
    for piece in dataset.pieces(start, stop, block_rows(fitted)):
        scores = np.empty((len(piece.y), fitted.layers.outputs), weights.dtype)
        fitted.objective.scores(fitted.layers, piece.X.astype(kind, copy=False), weights, scores)
        bad = np.argwhere(~np.isfinite(scores))
        if len(bad):
            raise UserError(f"{dataset.path}: the score of row {piece.first + int(bad[0, 0])} is "
                            f"{scores[tuple(bad[0])]}; its features hold NaN, infinity or values beyond "
                            f"{weights.dtype}")
        if piece.weight is not None:
            check_weights(piece.weight, piece.first, f"{dataset.path}: ")
        progressed()
        yield Scored(scores, piece.y, piece.weight)
