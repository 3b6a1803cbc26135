"""``hierarchical`` on GPUs: ranks of a node read one another's vectors in GPU memory; between nodes a ring a lane.

Every rank opens the vectors of all ranks of its node (CUDA IPC): they lie on its own GPU, which several ranks may
share, or on a peer of it. The vector is cut into as many slices as there are ranks, and each adds up its slice with one
kernel that reads all of them, in the order of the ranks, and in a fused update goes on to the new weights at once. When
all slices are there, each rank copies the others' to its own vector. A rank waits for its GPU only where its work meets
that of others: when its addend is written, and when its slice is done.

With several nodes a slice is a lane: its owners, one a node, sum it around a `Circle`, through the host's memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.elements import storage
from dml_hpc.comm.on_device.node import NodeReducer
from dml_hpc.comm.on_device.staged_circle import StagedCircle
from dml_hpc.comm.on_device.whole import WholeHierarchical
from dml_hpc.comm.reducer import Update
from dml_hpc.comm.topology import node_of
from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda import sums
from dml_hpc.layout import bound
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Comm, Intracomm

WHOLE_BYTES = 1 << 16
"""Up to here, on one node, a second meeting takes longer than to read the others' slices as well."""
STEP = 128
"""Slices begin at multiples of so many elements: on whole lines of memory, so that all accesses are of 16 bytes."""


def open_hierarchical(comm: Intracomm, size: int, dtype: str, device: Device, weights: str | None) -> NodeReducer:
    """Collective: return the reducer for vectors of this size."""
    from mpi4py import MPI

    node = node_of(comm)
    alone = comm.allreduce(node.size, MPI.MAX) == comm.size
    small = size * storage(dtype).itemsize <= WHOLE_BYTES
    kind = WholeHierarchical if alone and small else DeviceHierarchical
    try:
        return kind(comm, size, dtype, device, weights, node)
    finally:
        node.Free()


class DeviceHierarchical(NodeReducer):
    """See the module. ``buffer``, ``total`` and ``weights`` are this rank's own; others read them during a call."""

    _lane: Comm | None = None
    _circle: StagedCircle | None = None

    def _allocate(self, weights_dtype: str | None) -> None:
        from mpi4py import MPI

        p, rank = self._node.size, self._node.rank
        lanes = self.comm.allreduce(p, MPI.MIN)
        self._alone = self.comm.allreduce(p, MPI.MAX) == self.comm.size  # one node: no wire
        self._lane = self.comm.Split(rank if rank < lanes else MPI.UNDEFINED, self.comm.rank)
        cuts = np.array([min(self.size, STEP * bound(-(-self.size // STEP), lanes, min(slice_, lanes)))
                         for slice_ in range(p + 1)])
        self._slice = slice(*map(int, cuts[rank:rank + 2]))
        self._flags = self._shared_flags()
        kinds = [storage(dtype) for dtype in (self.dtype, self.dtype, weights_dtype) if dtype is not None]
        vectors = self._open(kinds)
        with agreed(self.comm):
            self._cuts = self._device.put(cuts)
            own = [arrays[rank] for arrays in vectors]
            self._addends, self._totals, *gathered = [sums.LazySum(self._device, arrays) for arrays in vectors]
        self.buffer, self.total = own[:2]
        self.weights = own[2] if weights_dtype is not None else None
        self._gathered = gathered[0] if gathered else None
        self.owned = self._slice.start, self._slice.stop
        if self._lane and not self._alone:
            self._circle = StagedCircle(self._lane, self._device, self.total[self._slice], self.dtype,
                                        None if self.weights is None else self.weights[self._slice])
            start, stop = self._circle.owned
            self.owned = self._slice.start + start, self._slice.start + stop

    def _allreduce(self) -> None:
        self._meet(0)
        self._sum_slice()
        if self._circle:
            self._sent(self._circle.allreduce())
        self._meet(1)
        self._gather(self._totals, self.total)

    def _reduce_scatter(self) -> None:
        self._meet(0)
        self._sum_slice()
        if self._circle:
            self._sent(self._circle.reduce_scatter())
        self._meet(1)

    def _allgather(self) -> None:
        if self._circle:
            self._sent(self._circle.allgather())
        self._meet(2)
        self._gather(self._totals, self.total)

    def _reduce_update(self, update: Update) -> None:
        assert self.weights is not None and self._gathered is not None
        self._meet(0)
        own = self._slice
        if self._alone and own.start < own.stop and getattr(update, "takes_lazy_sums", False):
            update(self._addends[own], own.start, own.stop)
        else:
            self._sum_slice()
            if self._circle:
                self._sent(self._circle.reduce_update(lambda piece: self._update_piece(update, piece)))
            elif self._alone and own.start < own.stop:
                update(self.total[own], own.start, own.stop)
        self._meet(1)
        self._gather(self._gathered, self.weights)

    def _update_piece(self, update: Update, piece: slice) -> None:
        start, stop = self._slice.start + piece.start, self._slice.start + piece.stop
        update(self.total[start:stop], start, stop)

    def _sum_slice(self) -> None:
        """Queue the sum over the node of this rank's slice."""
        sums.add_up(self._device, self._addends[self._slice], self.total[self._slice])

    def _gather(self, vectors: sums.LazySum, out: Array) -> None:
        """Queue copies of the other ranks' slices to this rank's vector."""
        sums.gather(self._device, vectors, self._cuts, self._node.rank, out)

    def _free(self) -> None:
        if self._circle:
            self._circle.free()
        if self._lane:
            self._lane.Free()
        super()._free()
