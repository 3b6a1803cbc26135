"""What there is to train: an objective on a rank's rows of a data set, as every algorithm needs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dml_hpc.data.batches import Batches, RandomShare
from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Rows
from dml_hpc.objectives.objective import Objective
from dml_hpc.objectives.scaling import Scaling
from dml_hpc.optim.sgd import Sgd
from dml_hpc.watch import progressed


@dataclass
class Problem:
    """Minimise mean ℓ(x·w + b, y) + ½·l2·‖w‖² over the rows of a data set; the intercept b is not penalised.

    ``w`` weighs standardised features (see `Scaling`).
    """

    objective: Objective
    batches: Batches
    scaling: Scaling
    rows: int
    features: int
    l2: float
    dtype: np.dtype

    def loss_and_gradient(self, parts: Iterable[Rows], weights: np.ndarray, gradient: np.ndarray) -> float:
        """Add the summed gradient of this rank's rows in a step to ``gradient``; return their summed loss.

        ``weights`` are those for raw rows, and so is the gradient; both (features + 1,).
        """
        total = 0.0
        for part in parts:
            total += self.objective.loss_and_gradient(part.X, part.y, part.rows, weights, gradient)
            progressed()
        return total

    def fixed_point_gradient(self, parts: Iterable[Rows], folded: np.ndarray, per_unit: float, per_loss_unit: float,
                             out: np.ndarray) -> None:
        """Add the gradient by standardised weights, the loss and the masses of this rank's rows to ``out``, int64.

        ``folded`` are the weights for raw rows (features + 1,), ``out`` is (features + 4,).
        """
        for part in parts:
            self.objective.fixed_point_gradient(part.X, part.y, part.rows, folded, self.scaling.shift,
                                                self.scaling.scale, per_unit, per_loss_unit, out)
            progressed()


def compile_kernels(problem: Problem, X: np.ndarray | Csr, sequential: bool, reproducible: bool) -> None:
    """Have the kernels of this problem compiled, or read from Numba's cache, by running them on ``X``, no rows."""
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
