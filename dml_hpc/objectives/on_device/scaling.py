"""A `Scaling` of vectors that lie on a device."""

from __future__ import annotations

from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda import scaling as kernels
from dml_hpc.objectives.scaling import Scaling


class DeviceScaling:
    """Does what ``scaling`` does; ``shift`` and ``scale`` are its arrays on the device."""

    def __init__(self, scaling: Scaling, outputs: int, device: Device):
        """``outputs`` is the number of outputs of the first layer."""
        self.trivial, self._outputs, self._device = scaling.trivial, outputs, device
        self.shift, self.scale = device.put(scaling.shift), device.put(scaling.scale)
        self._shift = self.shift if scaling.shifts else None

    def fold(self, parameters: Array, out: Array) -> Array:
        """See `Scaling.fold`."""
        if self.trivial:
            return parameters
        kernels.fold(self._device, parameters, self._shift, self.scale, self._outputs, out)
        return out

    def pull_back(self, gradient: Array) -> None:
        """See `Scaling.pull_back`."""
        if not self.trivial:
            kernels.pull_back(self._device, gradient, self._shift, self.scale, self._outputs)
