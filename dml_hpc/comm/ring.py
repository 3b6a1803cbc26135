"""``ring``: each rank talks to its two neighbours only, and sends the least that any all-reduce can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dml_hpc.comm.circle import Circle
from dml_hpc.comm.place import HOST, Place
from dml_hpc.comm.reducer import Reducer, Update

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class RingReducer(Reducer):
    """One `Circle` over all ranks; ``total`` is ``buffer``."""

    name = "ring"

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None,
                 place: Place = HOST):
        super().__init__(comm, size, dtype, weights_dtype, place)
        gathered = self.buffer if self.weights is None else self.weights
        options = place.adder(dtype), place.segment_bytes
        self._circle = Circle(self.comm, [self.buffer], self.buffer, *options)
        self._update_circle = None if self.weights is None else Circle(self.comm, [self.buffer], gathered, *options)
        self.owned = self._circle.owned

    def _free(self) -> None:
        self._circle.free()
        if self._update_circle is not None:
            self._update_circle.free()

    def _allreduce(self) -> None:
        self.settle()
        self._sent(self._circle.allreduce())

    def _reduce_scatter(self) -> None:
        self.settle()
        self._sent(self._circle.reduce_scatter())

    def _allgather(self) -> None:
        self.settle()
        self._sent(self._circle.allgather())

    def _reduce_update(self, update: Update) -> None:
        assert self._update_circle is not None

        def finished(piece: slice) -> None:
            update(self.buffer[piece], piece.start, piece.stop)
            self.settle()

        self.settle()
        self._sent(self._update_circle.allreduce(finished))
