"""What objectives compute of a batch, done on a device by the CUDA twins of their kernels.

Nothing here waits for the device: what the host's `Objective` returns is added to an array on the device instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from dml_hpc.data.reading import Rows
from dml_hpc.device import Array, Device
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.on_device.sequential import DeviceSequential

if TYPE_CHECKING:
    from dml_hpc.data.csr import Csr
    from dml_hpc.objectives.objective import Objective

__all__ = ["DeviceObjective", "DeviceSequential", "on_device"]


class DeviceObjective(ABC):
    """What ``objective`` computes, on ``device``; see `Objective`. All arrays are the device's.

    A ``part`` is a `Rows` of device arrays: its X is (·, features) of float16, float32 or float64, or bfloat16 as bits
    (uint16), or a `Csr` whose three arrays are the device's; y and weight have the parameters' dtype; its ``rows`` may
    be None: all rows in their order, which saves reading their numbers. ``loss`` is (1,) float64. Calls queue work,
    which is done in the device's stream, so arrays that were given may be changed by work that is queued later.
    Where it is ``capturable``, `Device.capture` may be given calls of `loss_and_gradient`.
    """

    capturable = False

    def __init__(self, objective: Objective, device: Device):
        self.objective, self.device = objective, device

    @abstractmethod
    def loss_and_gradient(self, layers: Layers, part: Rows, parameters: Array, gradient: Array, loss: Array) -> None:
        """Add the gradient of the summed, weighted loss of the rows to ``gradient`` (size,), that sum to ``loss``.

        Both arrays and ``parameters`` (size,) are for rows as they are stored.
        """

    @abstractmethod
    def fixed_point_gradient(self, layers: Layers, part: Rows, parameters: Array, shift: Array, scale: Array,
                             per_unit: float, per_loss_unit: float, out: Array) -> None:
        """Add the rows' gradient, loss and masses to ``out`` (size + 3,) int64; see `Objective.fixed_point_gradient`.

        The sum has the same bits however rows are dealt to ranks and to calls. They may differ from the host's in each
        row's last places, as the row's own sums are taken in another order.
        """

    @abstractmethod
    def summed_loss(self, layers: Layers, part: Rows, parameters: Array, loss: Array) -> None:
        """Add the summed, weighted loss of the rows to ``loss``."""

    @abstractmethod
    def scores(self, layers: Layers, X: Array | Csr, parameters: Array, out: Array) -> None:
        """Write the scores of every row of X to ``out`` (rows, outputs), of the parameters' dtype."""

    def sequential_sgd(self, layers: Layers, part: Rows, shift: Array, scale: Array, state: DeviceSequential,
                       step_size: float, loss: Array) -> None:
        """Take one SGD step for each of the rows in turn; add the summed, weighted loss met on the way to ``loss``."""
        raise NotImplementedError(f"{self.objective.name} has no steps of one example")


def on_device(objective: Objective, device: Device) -> DeviceObjective:
    """Return what computes ``objective`` on ``device``."""
    from dml_hpc.objectives.linear_score import LinearScore
    from dml_hpc.objectives.network import Network

    if isinstance(objective, LinearScore):
        from dml_hpc.objectives.on_device.linear_score import DeviceLinear

        return DeviceLinear(objective, device)
    if isinstance(objective, Network):
        from dml_hpc.objectives.on_device.network import DeviceNetwork

        return DeviceNetwork(objective, device)
    raise TypeError(f"nothing computes {objective.name} on a device")
