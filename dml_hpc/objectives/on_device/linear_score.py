"""Objectives whose score is linear in the features, on a device."""

from __future__ import annotations

from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Rows
from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda import glm, glm_sparse
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.linear_score import LinearScore
from dml_hpc.objectives.on_device import DeviceObjective
from dml_hpc.objectives.on_device.sequential import DeviceSequential


class DeviceLinear(DeviceObjective):
    """What `LinearScore` computes, by fused kernels: dense rows are read from memory once.

    The same call gives the same bits each time, but for `loss_and_gradient` and `sequential_sgd` of sparse rows: the
    former adds them up in no fixed order.
    """

    objective: LinearScore
    capturable = True

    def __init__(self, objective: LinearScore, device: Device):
        super().__init__(objective, device)

    def loss_and_gradient(self, layers: Layers, part: Rows, parameters: Array, gradient: Array, loss: Array) -> None:
        """See `DeviceObjective.loss_and_gradient`."""
        X, which, delta = part.X, self.objective.loss, self.objective.delta
        if isinstance(X, Csr):
            glm_sparse.loss_and_gradient(self.device, which, delta, X.data, X.indices, X.indptr, part.y, part.weight,
                                         part.rows, parameters, gradient, loss, X.long_entries)
        else:
            glm.loss_and_gradient(self.device, which, delta, X, part.y, part.weight, part.rows, parameters, gradient,
                                  loss)

    def fixed_point_gradient(self, layers: Layers, part: Rows, parameters: Array, shift: Array, scale: Array,
                             per_unit: float, per_loss_unit: float, out: Array) -> None:
        """See `DeviceObjective.fixed_point_gradient`."""
        X, which, delta = part.X, self.objective.loss, self.objective.delta
        if isinstance(X, Csr):
            glm_sparse.fixed_point_gradient(self.device, which, delta, X.data, X.indices, X.indptr, part.y, part.weight,
                                            part.rows, parameters, scale, per_unit, per_loss_unit, out,
                                            X.long_entries)
        else:
            glm.fixed_point_gradient(self.device, which, delta, X, part.y, part.weight, part.rows, parameters, shift,
                                     scale, per_unit, per_loss_unit, out)

    def summed_loss(self, layers: Layers, part: Rows, parameters: Array, loss: Array) -> None:
        """See `DeviceObjective.summed_loss`."""
        X, which, delta = part.X, self.objective.loss, self.objective.delta
        if isinstance(X, Csr):
            glm_sparse.summed_loss(self.device, which, delta, X.data, X.indices, X.indptr, part.y, part.weight,
                                   part.rows, parameters, loss, X.long_entries)
        else:
            glm.summed_loss(self.device, which, delta, X, part.y, part.weight, part.rows, parameters, loss)

    def scores(self, layers: Layers, X: Array | Csr, parameters: Array, out: Array) -> None:
        """See `DeviceObjective.scores`."""
        if isinstance(X, Csr):
            glm_sparse.scores(self.device, X.data, X.indices, X.indptr, parameters, out[:, 0], X.long_entries)
        else:
            glm.scores(self.device, X, parameters, out[:, 0])

    def sequential_sgd(self, layers: Layers, part: Rows, shift: Array, scale: Array, state: DeviceSequential,
                       step_size: float, loss: Array) -> None:
        """See `DeviceObjective.sequential_sgd`; rows that are dense have all features."""
        X, which, delta = part.X, self.objective.loss, self.objective.delta
        if isinstance(X, Csr):
            state.hold(1)
            glm_sparse.sequential_sgd(self.device, which, delta, X.data, X.indices, X.indptr, part.y, part.weight,
                                      part.rows, scale, state.parameters, state.seen, state.worth, step_size, state.l1,
                                      state.l2, loss)
        else:
            glm.sequential_sgd(self.device, which, delta, X, part.y, part.weight, part.rows, shift, scale,
                               state.settle(), step_size, state.l1, state.l2, loss)
