"""Sums of a factorisation's products on a device: they stay there until a pass is over."""

from __future__ import annotations

from dml_hpc.decomposition.sums import Sum
from dml_hpc.device import Array, Device


class DeviceSums:
    """``sums`` (size,) on the device, in float64 or in the fixed point of ``total``, as int64."""

    def __init__(self, device: Device, size: int, total: Sum):
        self._device, self._unit = device, total.unit
        self.sums = device.zeros(size, "float64" if total.unit is None else "int64")

    def add(self, part: Array) -> None:
        """Add an array of ``size`` elements."""
        from dml_hpc.kernels.cuda import blocks

        flat = part.reshape(-1)
        if self._unit is None:
            self.sums += flat
        else:
            blocks.add_fixed(self._device, flat, 1 / self._unit, self.sums)

    def into(self, total: Sum, start: int) -> None:
        """Wait, and add these to ``total`` from element ``start`` on."""
        with total.clock.phase("compute"):
            found = self._device.get(self.sums)
            (total.add if self._unit is None else total.add_units)(found, start)
