"""Vectors on a device that the host's reducers sum: down to pinned memory, summed there, and up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm import open_plain
from dml_hpc.comm.on_device.places import OnDevice, Pinned
from dml_hpc.comm.on_device.staged_circle import StagedCircle
from dml_hpc.comm.place import HOST
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.device import Array, Device

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def open_staged(name: str, comm: Intracomm, size: int, dtype: str, device: Device, fan_in: int, weights: str | None,
                why: str) -> Reducer:
    """Collective: return the reducer called ``name`` of vectors that are copied through the host; ``why`` they are."""
    if name == "ring" and comm.size > 1:
        return StagedRing(comm, size, dtype, device, weights, why)
    pinned = name != "hierarchical"  # its vectors lie in memory of its own
    inner = open_plain(name, comm, size, dtype, fan_in, weights, Pinned(device) if pinned else HOST)
    return StagedReducer(comm, inner, device, weights, pinned, why)


def said(name: str, pinned: bool, why: str) -> str:
    """Return how a reducer says that its vectors go through the host."""
    return f"{name}, staged through {'pinned host' if pinned else 'host'} memory ({why})"


class StagedReducer(Reducer):
    """Around ``inner``, whose vectors are ``pinned`` or not. ``total`` is ``buffer``.

    In a fused update what this rank owns is updated on the device piece by piece, as soon as a piece is summed, so that
    the optimiser's state stays there; then it goes down, to be gathered. Where every rank owns everything, nothing
    goes down again; one rank alone copies nothing.
    """

    def __init__(self, comm: Intracomm, inner: Reducer, device: Device, weights_dtype: str | None, pinned: bool,
                 why: str):
        super().__init__(comm, inner.size, inner.dtype, weights_dtype, OnDevice(device))
        self.name, self.owned, self.bytes_sent = inner.name, inner.owned, inner.bytes_sent
        self.choice = said(inner.name, pinned, why)
        self._inner, self._device, self._pinned = inner, device, pinned
        self._all_own_all = not self.comm.allreduce(int(inner.owned != (0, self.size)))

    def _allreduce(self) -> None:
        if self.comm.size == 1:
            return
        self._down(self._inner.buffer, self.buffer)
        self._inner.allreduce()
        self._up(self.total, self._inner.total)

    def _reduce_scatter(self) -> None:
        if self.comm.size == 1:
            return
        own = slice(*self.owned)
        self._down(self._inner.buffer, self.buffer)
        self._inner.reduce_scatter()
        self._up(self.total[own], self._inner.total[own])

    def _allgather(self) -> None:
        if self.comm.size == 1:
            return
        own = slice(*self.owned)
        self._down(self._inner.total[own], self.total[own])
        self._inner.allgather()
        self._up_others(self.total, self._inner.total)

    def _reduce_update(self, update: Update) -> None:
        inner, weights, gathered = self._inner, self.weights, self._inner.weights
        assert weights is not None and gathered is not None
        if self._all_own_all:
            self._allreduce()
            update(self.total, 0, self.size)
            return

        def update_here(summed: np.ndarray, start: int, stop: int) -> None:
            part = self.total[start:stop]
            self._up(part, summed)
            update(part, start, stop)
            self._down(gathered[start:stop], weights[start:stop])

        self._down(inner.buffer, self.buffer)
        inner.reduce_update(update_here)
        self._up_others(weights, gathered)
        self.bytes_sent = inner.bytes_sent

    def _down(self, target: np.ndarray, source: Array) -> None:
        """Copy to the host, and wait."""
        if not len(target):
            return
        if self._pinned:
            self._device.download(target, source).wait()
        else:
            self._device.get(source, target)

    def _up(self, target: Array, source: np.ndarray) -> None:
        """Copy to the device: work queued from now on finds it there."""
        self.bytes_sent = self._inner.bytes_sent
        if not len(target):
            return
        if self._pinned:
            self._device.follow(self._device.upload(target, source, self._device.mark()))
        else:
            self._device.put(source, target)

    def _up_others(self, target: Array, source: np.ndarray) -> None:
        """Copy what other ranks own."""
        start, stop = self.owned
        self._up(target[:start], source[:start])
        self._up(target[max(start, stop):], source[max(start, stop):])

    def close(self) -> None:
        """See `Reducer.close`."""
        self.settle()
        super().close()
        self._inner.close()


class StagedRing(Reducer):
    """``ring`` around vectors on a device; ``total`` is ``buffer``."""

    name = "ring"

    def __init__(self, comm: Intracomm, size: int, dtype: str, device: Device, weights_dtype: str | None, why: str):
        super().__init__(comm, size, dtype, weights_dtype, OnDevice(device))
        self.choice = said(self.name, True, why)
        self._circle = StagedCircle(self.comm, device, self.buffer, dtype, self.weights)
        self.owned = self._circle.owned

    def _allreduce(self) -> None:
        self._sent(self._circle.allreduce())

    def _reduce_scatter(self) -> None:
        self._sent(self._circle.reduce_scatter())

    def _allgather(self) -> None:
        self._sent(self._circle.allgather())

    def _reduce_update(self, update: Update) -> None:
        self._sent(self._circle.reduce_update(lambda piece: update(self.buffer[piece], piece.start, piece.stop)))

    def _free(self) -> None:
        self.settle()
        self._circle.free()
