"""``float16`` and ``bfloat16`` of vectors on a device: see `dml_hpc.comm.compression.half`, whose numbers these are.

Nothing of it waits for the host: the exact elements, each rank's largest element and the scale that follows from them
stay on the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.compression.half import LARGEST_SCALE
from dml_hpc.comm.on_device.places import OnDevice
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.device import Device
from dml_hpc.kernels.cuda import compression, sums

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.comm.compression.compressed import Opener


class DeviceHalf(Reducer):
    """Sums float32 as ``kind``, "float16" or "bfloat16", but for the last ``exact`` elements; ``total`` is ``buffer``.

    What is not sent stays in ``residual`` (size − exact,), on the device, for the next call. Every rank owns the whole
    sum, and updates all weights.
    """

    def __init__(self, open_inner: Opener, comm: Intracomm, size: int, exact: int, weights_dtype: str | None, kind: str,
                 device: Device):
        super().__init__(comm, size, "float32", weights_dtype, OnDevice(device))
        self._device, self._n, self._exact = device, size - exact, exact
        self.owned = (0, size)
        self.residual = device.zeros(self._n, np.float32)
        scaled = kind == "float16"
        self._peak = device.zeros(1, np.uint32) if scaled else None
        self._scale = device.zeros(1, np.float32) if scaled else None
        self._known = False
        # See `Float16Reducer`.
        self._limit = 15 - (self.comm.size - 1).bit_length()
        self._inner = open_inner(self.comm, self._n + self.comm.size * 4 * (exact + scaled), kind)
        self.name, self.compression, self.choice = f"{kind} {self._inner.name}", kind, self._inner.choice
        self.bytes_sent = self._inner.bytes_sent

    def _allreduce(self) -> None:
        device, n, inner = self._device, self._n, self._inner
        gradient, exact, wire = self.buffer[:n], self.buffer[n:], inner.buffer
        if self._scale is None or self._peak is None:
            compression.encode_bfloat16(device, gradient, self.residual, wire[:n])
        else:
            if not self._known:
                self._scale.fill(self._first_scale())
                self._known = True
            self._peak.fill(0)
            compression.encode_float16(device, gradient, self.residual, wire[:n], self._scale, 2.0 ** self._limit,
                                       self._peak)
        compression.write_exact(device, exact, self._peak, self.comm.rank, self.comm.size, wire[n:])
        inner.allreduce()
        self.bytes_sent = inner.bytes_sent
        summed = inner.total
        if self._scale is None:
            sums.add_up(device, summed[:n], gradient)
        else:
            compression.widen_float16(device, summed[:n], gradient, self._scale)
        compression.read_exact(device, summed[n:], self.comm.size, exact, self._scale, self._limit, LARGEST_SCALE)

    def _first_scale(self) -> float:
        """Collective, once: return the scale that the ranks' first addends ask for."""
        xp = self._device.xp
        own = xp.abs(self.buffer[:self._n])
        peak = float(self._device.get(xp.where(xp.isfinite(own), own, 0).max())) if self._n else 0.0
        peak = max(self.comm.allgather(peak))
        exponent = self._limit - 2 - math.frexp(peak)[1] if peak > 0 else 0
        return 2.0 ** max(-LARGEST_SCALE, min(LARGEST_SCALE, exponent))

    def _reduce_scatter(self) -> None:
        self._allreduce()

    def _allgather(self) -> None:
        """Every rank has all of it."""

    def _reduce_update(self, update: Update) -> None:
        self._allreduce()
        update(self.total, 0, self.size)

    def close(self) -> None:
        """See `Reducer.close`."""
        self.settle()
        super().close()
        self._inner.close()
