"""Where vectors lie when there is a device: in its memory, or in pinned memory of the host's."""

from __future__ import annotations

from typing import Any

import numpy as np

from dml_hpc.comm.place import Add, Place
from dml_hpc.device import Device
from dml_hpc.kernels.cuda import sums


class OnDevice(Place):
    """The memory of ``device``. A message costs two waits for the device, so messages are large."""

    segment_bytes: int | None = 4 << 20

    def __init__(self, device: Device):
        self._device = device

    def zeros(self, size: int, kind: np.dtype) -> Any:
        """See `Place`."""
        return self._device.zeros(size, kind)

    def adder(self, dtype: str) -> Add:
        """See `Place`."""
        def add(a: Any, b: Any, out: Any) -> None:
            sums.add(self._device, a, b, out)
            self.settle()

        return add

    def settle(self) -> None:
        """See `Place`."""
        self._device.mark().wait()


class Pinned(Place):
    """Page-locked memory of the host's, which ``device`` copies from and to by itself. Each copy costs some µs."""

    segment_bytes: int | None = 2 << 20

    def __init__(self, device: Device):
        self._device = device

    def zeros(self, size: int, kind: np.dtype) -> np.ndarray:
        """See `Place`."""
        array = self._device.pinned(size, kind)
        array[:] = 0
        return array
