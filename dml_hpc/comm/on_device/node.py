"""Ranks of a node that open one another's vectors in GPU memory, and meet: what ways to sum them share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import in_background, nap
from dml_hpc.comm.hierarchical import PATIENCE, SPINS
from dml_hpc.comm.node_vectors import MEETINGS
from dml_hpc.comm.on_device.places import OnDevice
from dml_hpc.comm.reducer import Reducer
from dml_hpc.comm.shared_memory import SharedMemory, whole_pages
from dml_hpc.comm.topology import node_of
from dml_hpc.device import Array, Device
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.files import first_line
from dml_hpc.kernels import node as kernels
from dml_hpc.mpi import agreed, first_on_node

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class NodeReducer(Reducer):
    """``node`` holds the ranks that share a machine with this one (None: the machine is asked).

    Raises `AgreedError` on every rank where one cannot open the vectors of another.
    """

    name = "hierarchical"
    _flags: np.ndarray

    def __init__(self, comm: Intracomm, size: int, dtype: str, device: Device, weights_dtype: str | None = None,
                 node: Intracomm | None = None):
        self._device = device
        self._node = node_of(comm) if node is None else node.Dup()
        self._spins = SPINS if self._node.size <= (os.cpu_count() or 1) else 0
        self._counts = [0] * MEETINGS
        self._opened: list[Array] = []
        try:
            super().__init__(comm, size, dtype, weights_dtype, OnDevice(device))
        except AgreedError:
            self._free()
            self.comm.Free()
            raise

    def _shared_flags(self) -> np.ndarray:
        """Return the flags (`MEETINGS`, ranks · `LINE`) int64 by which the ranks of the node meet."""
        count = MEETINGS * self._node.size * kernels.LINE
        length = whole_pages(8 * count)
        memory = SharedMemory(self.comm, self._node, length, [(0, length)] if self._node.rank == 0 else [])
        try:
            with agreed(self.comm):
                flags = memory.map((0, length))[:8 * count].view(np.int64).reshape(MEETINGS, -1)
        finally:
            memory.close()
        with first_on_node(self._node):
            kernels.meet(np.zeros(kernels.LINE, np.int64), 0, 0, 0, 0)
        return flags

    def _open(self, kinds: list[np.dtype]) -> list[list[Array]]:
        """Return, for each kind, the vectors (size,) of all ranks of the node as this rank's device sees them."""
        device, length = self._device, max(self.size, 1)
        with agreed(self.comm):
            own = [device.shareable(length, kind) for kind in kinds]
            shared = [device.share(array) for array in own] if self._node.size > 1 else []
        handles = self._node.allgather(shared)
        vectors: list[list[Array]] = [[] for _ in kinds]
        with agreed(self.comm):
            for rank in range(self._node.size):
                for number, kind in enumerate(kinds):
                    array = own[number] if rank == self._node.rank else self._opened_from(handles[rank][number], kind)
                    vectors[number].append(array[:self.size])
        return vectors

    def _opened_from(self, handle: bytes, kind: np.dtype) -> Array:
        try:
            self._opened.append(self._device.open_shared(handle, max(self.size, 1), kind))
        except Exception as error:  # CuPy's, of some kind
            raise UserError(f"a rank cannot read the memory of another one's GPU on its node ({first_line(error)}), as "
                            "the hierarchical all-reduce does; use --allreduce ring") from None
        return self._opened[-1]

    def _meet(self, meeting: int) -> None:
        """Wait until all ranks of the node are here, their queued work done: 0 addends, 1 sums, 2 what is gathered."""
        if self.comm.size == 1:
            return  # work that is queued in turn needs no meeting
        self.settle()
        self._counts[meeting] += 1
        patience = (0, 1) if in_background() else (self._spins, PATIENCE)
        while not kernels.meet(self._flags[meeting], self._node.rank, self._counts[meeting], *patience):
            nap()

    def _free(self) -> None:
        self.settle()
        for array in self._opened:
            self._device.close_shared(array)
        self._opened.clear()
        self._node.Barrier()  # memory that another rank has opened may not go before it has closed it
        self._node.Free()
