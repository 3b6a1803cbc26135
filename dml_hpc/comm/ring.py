"""``ring``: each rank talks to its two neighbours only, and sends the least that any all-reduce can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dml_hpc.comm.circle import Circle
from dml_hpc.comm.elements import adder
from dml_hpc.comm.reducer import Reducer, Update

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class RingReducer(Reducer):
    """One `Circle` over all ranks; ``total`` is ``buffer``."""

    name = "ring"

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None):
        super().__init__(comm, size, dtype, weights_dtype)
        gathered = self.buffer if self.weights is None else self.weights
        add = adder(dtype)
        self._circle = Circle(self.comm, [self.buffer], self.buffer, add)
        self._update_circle = None if self.weights is None else Circle(self.comm, [self.buffer], gathered, add)
        self.owned = self._circle.owned

    def _free(self) -> None:
        self._circle.free()
        if self._update_circle is not None:
            self._update_circle.free()

    def _allreduce(self) -> None:
        self._sent(self._circle.allreduce())

    def _reduce_scatter(self) -> None:
        self._sent(self._circle.reduce_scatter())

    def _allgather(self) -> None:
        self._sent(self._circle.allgather())

    def _reduce_update(self, update: Update) -> None:
        assert self._update_circle is not None
        self._sent(self._update_circle.allreduce(
            lambda piece: update(self.buffer[piece], piece.start, piece.stop)))
