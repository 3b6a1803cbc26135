"""What there is to train: an objective on a rank's rows of a data set, as every algorithm needs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dml_hpc.data.batches import Batches, Part, RandomShare
from dml_hpc.data.dataset import Dataset
from dml_hpc.errors import UserError
from dml_hpc.kernels import computable
from dml_hpc.objectives.objective import Objective
from dml_hpc.objectives.scaling import Scaling
from dml_hpc.optim.sgd import Sgd
from dml_hpc.watch import progressed


@dataclass
class Problem:
    """Minimise mean ℓ(x·w + b, y) + ½·l2·‖w‖² over the rows of a data set; the intercept b is not penalised.

    ``w`` weighs standardised features (see `Scaling`). ``arrays`` holds X (rows of the shard, features) and the
    targets (rows of the shard,) of each shard that this rank reads, by shard number; shard s holds the rows
    ``offsets[s]`` … ``offsets[s + 1] − 1``.
    """

    objective: Objective
    batches: Batches
    scaling: Scaling
    arrays: dict[int, tuple[np.ndarray, np.ndarray]]
    offsets: np.ndarray
    rows: int
    features: int
    l2: float
    dtype: np.dtype

    def loss_and_gradient(self, parts: list[Part], weights: np.ndarray, gradient: np.ndarray) -> float:
        """Add the summed gradient of this rank's rows in a step to ``gradient``; return their summed loss.

        ``weights`` are those for raw rows, and so is the gradient; both (features + 1,).
        """
        total = 0.0
        for part in parts:
            X, y = self.arrays[part.shard]
            total += self.objective.loss_and_gradient(X, y, part.rows, weights, gradient)
            progressed()
        return total


    def fixed_point_gradient(self, parts: list[Part], folded: np.ndarray, per_unit: float, per_loss_unit: float,
                             out: np.ndarray) -> None:
        """Add the gradient by standardised weights, the loss and the masses of this rank's rows to ``out``, int64.

        ``folded`` are the weights for raw rows (features + 1,), ``out`` is (features + 4,).
        """
        for part in parts:
            X, y = self.arrays[part.shard]
            self.objective.fixed_point_gradient(X, y, part.rows, folded, self.scaling.shift, self.scaling.scale,
                                                per_unit, per_loss_unit, out)
            progressed()


def open_arrays(dataset: Dataset, shards: Iterable[int], objective: Objective, classes: list[float] | None,
                dtype: np.dtype) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return X and targets of ``shards``; X stays mapped where the kernels can use it as it is.

    Raises `UserError` for a shard that cannot be read, or holds a label that the objective cannot learn from.
    """
    arrays = {}
    for number in shards:
        X, y = dataset.shard(number)
        try:
            targets = objective.targets(y, classes, dtype)
        except UserError as error:
            raise UserError(f"{dataset.path / dataset.manifest.shards[number].file}: {error}") from None
        arrays[number] = X.astype(computable(X.dtype, dtype), copy=False), targets
    return arrays


def compile_kernels(problem: Problem, stored: np.dtype, sequential: bool, reproducible: bool) -> None:
    """Have the kernels of this problem compiled, or read from Numba's cache, by running them on no rows.

    ``stored`` is the dtype of the data set's X.
    """
    X = np.empty((0, problem.features), computable(stored, problem.dtype))
    none = np.empty(0, problem.dtype)
    weights = np.zeros(problem.features + 1, problem.dtype)
    rows = np.empty(0, np.int64)
    scaling = problem.scaling
    if sequential:
        problem.objective.sequential_sgd(X, none, rows, scaling.shift, scaling.scale, weights, 0.0, 0.0)
        RandomShare(1, 1, 2).take(0, 0)
    else:
        summed = np.empty(0, np.int64 if reproducible else problem.dtype)
        Sgd((0, 0), problem.dtype, 0).update(weights[:0], summed, 0, 1.0, 0.0)
    if reproducible:
        problem.objective.fixed_point_gradient(X, none, rows, weights, scaling.shift, scaling.scale, 1.0, 1.0,
                                               np.zeros(len(weights) + 3, np.int64))
    problem.objective.loss_and_gradient(X, none, rows, weights, weights.copy())
    problem.batches.take(0, 0)
