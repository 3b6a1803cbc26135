"""Small vectors on the GPUs of one node: every rank reads all of them and takes the whole sum itself.

Ranks then meet once in a call, when all addends are written, and one kernel is all that a fused update takes. The next
addend is written to another place, as slower ranks may still read this one.
"""

from __future__ import annotations

from dml_hpc.comm.elements import storage
from dml_hpc.comm.on_device.node import NodeReducer
from dml_hpc.comm.reducer import Update
from dml_hpc.kernels.cuda import sums
from dml_hpc.mpi import agreed


class WholeHierarchical(NodeReducer):
    """``total`` and ``weights`` are this rank's alone; it owns all of them, as every rank does: their bits agree."""

    def _allocate(self, weights_dtype: str | None) -> None:
        kind = storage(self.dtype)
        self._flags = self._shared_flags()
        places = self._open([kind, kind])
        with agreed(self.comm):
            self._addends = [sums.LazySum(self._device, arrays) for arrays in places]
            self.total = self.place.zeros(self.size, kind)
            if weights_dtype is not None:
                self.weights = self.place.zeros(self.size, storage(weights_dtype))
        self._buffers = [arrays[self._node.rank] for arrays in places]
        self._now = 0
        self.buffer = self._buffers[0]
        self.owned = (0, self.size)

    def _allreduce(self) -> None:
        sums.add_up(self._device, self._met(), self.total)

    _reduce_scatter = _allreduce

    def _allgather(self) -> None:
        """Every rank has all of it."""

    def _reduce_update(self, update: Update) -> None:
        if getattr(update, "takes_lazy_sums", False):
            update(self._met(), 0, self.size)
        else:
            self._allreduce()
            update(self.total, 0, self.size)

    def _met(self) -> sums.LazySum:
        """Return the sum that is to be taken, now that all addends are there."""
        self._meet(0)
        addends = self._addends[self._now]
        self._now ^= 1
        self.buffer = self._buffers[self._now]
        return addends
