"""What there is to train: an objective and its penalties, as every algorithm needs them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.data.reading import Rows
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.objective import Objective
from dml_hpc.objectives.scaling import Scaling
from dml_hpc.watch import progressed

_BLOCK_ROWS = 8192


@dataclass
class Problem:
    """Minimise mean ℓ + ½·l2·‖w‖² + l1·‖w‖₁ over the parameters by standardised features (see `Scaling`).

    The mean is over the rows of a data set, whose weights are 1 on average. Biases are not penalised.
    ``squared_norm`` is the mean of ‖(z, 1)‖² over the rows z, standardised, None when it is not known. ``mean_without``
    says what rows weigh on average where shards of the data set are left out (None: 1 each); then ``mean_weight`` is
    that, and the mean is by weight.
    """

    objective: Objective
    layers: Layers
    scaling: Scaling
    rows: int
    l1: float
    l2: float
    dtype: np.dtype
    squared_norm: float | None = None
    mean_without: Callable[[Dataset, Collection[int]], float] | None = None
    mean_weight: float = 1.0

    def leave_out(self, dataset: Dataset) -> None:
        """Go on without the rows of ``dataset`` that all ranks leave out (`Dataset.forgone`): the mean is of the rest.
        """
        self.rows = dataset.used_rows
        self.mean_weight = 1.0 if self.mean_without is None else self.mean_without(dataset, dataset.forgone)

    def loss_and_gradient(self, parts: Iterable[Rows], parameters: np.ndarray, gradient: np.ndarray) -> float:
        """Add the summed gradient of ``parts`` to ``gradient``; return their summed loss.

        ``parameters`` are those for rows as they are stored, and so is the gradient; both (size,).
        """
        return self.objective.batch_loss_and_gradient(self.layers, parts, parameters, gradient)

    def summed_loss(self, parts: Iterable[Rows], parameters: np.ndarray) -> float:
        """Return the summed loss of ``parts``, each of consecutive rows; ``parameters`` are for stored rows (size,)."""
        if self.layers.size == self.layers.features + 1:  # the fused kernel's gradient costs next to nothing
            return self.loss_and_gradient(parts, parameters, np.zeros_like(parameters))
        total = 0.0
        scores = np.empty((_BLOCK_ROWS, self.layers.outputs), self.dtype)
        for part in parts:
            for start in range(0, len(part.rows), _BLOCK_ROWS):
                rows = part.rows[start:start + _BLOCK_ROWS]
                block = slice(int(rows[0]), int(rows[-1]) + 1)
                self.objective.scores(self.layers, part.X[block], parameters, scores[:len(rows)])
                losses = self.objective.losses(scores[:len(rows)], part.y[block])
                total += float(losses.sum() if part.weight is None else losses @ part.weight[block])
                progressed()
        return total

    def fixed_point_gradient(self, parts: Iterable[Rows], parameters: np.ndarray, per_unit: float,
                             per_loss_unit: float, out: np.ndarray) -> None:
        """Add the gradient by standardised parameters, the loss and the masses of ``parts`` to ``out``, int64.

        ``parameters`` are those for rows as they are stored (size,), ``out`` is (size + 3,).
        """
        scaling = self.scaling
        for part in parts:
            self.objective.fixed_point_gradient(self.layers, part.X, part.y, part.weight, part.rows, parameters,
                                                scaling.shift, scaling.scale, per_unit, per_loss_unit, out)
            progressed()

    def penalty(self, parameters: np.ndarray) -> float:
        """Return ½·l2·‖w‖² + l1·‖w‖₁."""
        if not (self.l1 or self.l2):
            return 0.0
        total = 0.0
        for start, stop in self.layers.penalised:
            part = parameters[start:stop].astype(np.float64)
            total += self.l2 / 2 * float(np.sum(part * part)) + self.l1 * float(np.sum(np.abs(part)))
        return total

    @property
    def safe_step(self) -> float | None:
        """The step size below which one example's step contracts on average, None where curvature has no bound.

        1/(sup ℓ''·E‖z‖² + l2): the Lipschitz constant of the gradient is at most the denominator (cf. Zinkevich et al.,
        NIPS 2010, lemma 3, with the largest ‖z‖² there).
        """
        if self.objective.curvature is None or self.squared_norm is None:
            return None
        return 1 / (self.objective.curvature * self.squared_norm + self.l2)
