"""What objectives share whose score is linear in the features: s = x·w + b."""

from __future__ import annotations

import numpy as np

from dml_hpc.data.csr import Csr
from dml_hpc.kernels import glm, glm_sparse, plain
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.objective import Objective
from dml_hpc.objectives.sequential import Sequential


class LinearScore(Objective):
    """One score a row; the parameters are the weights w, then the intercept b."""

    sequential = True
    loss: int
    """Which ℓ of `dml_hpc.kernels.losses`."""
    delta = 1.0
    """The δ of that ℓ, where it has one."""

    def layers(self, features: int, classes: list[float] | None) -> Layers:
        """See `Objective.layers`: one layer with one output."""
        return Layers((features, 1))

    def loss_and_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                          rows: np.ndarray, parameters: np.ndarray, gradient: np.ndarray) -> float:
        """See `Objective.loss_and_gradient`."""
        if isinstance(X, Csr):
            return glm_sparse.loss_and_gradient(self.loss, self.delta, X.data, X.indices, X.indptr, y, weight, rows,
                                                parameters, gradient)
        return glm.loss_and_gradient(self.loss, self.delta, plain(X), y, weight, rows, parameters, gradient)

    def fixed_point_gradient(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                             rows: np.ndarray, parameters: np.ndarray, shift: np.ndarray, scale: np.ndarray,
                             per_unit: float, per_loss_unit: float, out: np.ndarray) -> None:
        """See `Objective.fixed_point_gradient`."""
        if isinstance(X, Csr):
            glm_sparse.fixed_point_gradient(self.loss, self.delta, X.data, X.indices, X.indptr, y, weight, rows,
                                            parameters, scale, per_unit, per_loss_unit, out)
        else:
            glm.fixed_point_gradient(self.loss, self.delta, plain(X), y, weight, rows, parameters, shift, scale,
                                     per_unit, per_loss_unit, out)

    def scores(self, layers: Layers, X: np.ndarray | Csr, parameters: np.ndarray, out: np.ndarray) -> None:
        """See `Objective.scores`."""
        if isinstance(X, Csr):
            glm_sparse.scores(X.data, X.indices, X.indptr, parameters, out[:, 0])
        else:
            glm.scores(plain(X), parameters, out[:, 0])

    def sequential_sgd(self, layers: Layers, X: np.ndarray | Csr, y: np.ndarray, weight: np.ndarray | None,
                       rows: np.ndarray, shift: np.ndarray, scale: np.ndarray, state: Sequential,
                       step_size: float) -> float:
        """See `Objective.sequential_sgd`; rows that are dense have all features."""
        if isinstance(X, Csr):
            state.hold(1)
            return glm_sparse.sequential_sgd(self.loss, self.delta, X.data, X.indices, X.indptr, y, weight, rows,
                                             state.unless_plain(scale), state.parameters, state.seen, state.worth,
                                             step_size, state.l1, state.l2)
        return glm.sequential_sgd(self.loss, self.delta, plain(X), y, weight, rows, shift, scale, state.settle(),
                                  step_size, state.l1, state.l2)
