"""``mpi``: the MPI library's own all-reduce, the baseline."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.elements import adder, storage
from dml_hpc.comm.place import HOST, Place
from dml_hpc.comm.reducer import Reducer, Update

if TYPE_CHECKING:
    from mpi4py.MPI import Datatype, Intracomm, Op

MOST_ELEMENTS = 1 << 30
"""In one call: a count is a C int in MPI libraries before MPI 4."""


class LibraryReducer(Reducer):
    """`MPI_Allreduce` in place; every rank owns the whole sum, and updates all weights."""

    name = "mpi"

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None,
                 place: Place = HOST):
        super().__init__(comm, size, dtype, weights_dtype, place)
        from mpi4py import MPI

        self.bytes_sent = None
        self.owned = (0, size)
        self._in_place = MPI.IN_PLACE
        self._comm = MPI.Intracomm(self.comm)  # the same one, unwatched: whoever calls us is watched already
        halves = self.buffer.itemsize == 2  # MPI has no such floats: to it they are what they are held in
        self._op = _summing(dtype) if halves else MPI.SUM
        sent = self.buffer.view(np.uint16) if halves else self.buffer
        self._parts = [sent[start:start + MOST_ELEMENTS] for start in range(0, size, MOST_ELEMENTS)]

    def _allreduce(self) -> None:
        for part in self._parts:
            self._comm.Allreduce(self._in_place, part, self._op)

    _reduce_scatter = _allreduce

    def _allgather(self) -> None:
        """Every rank has all of it."""

    def _reduce_update(self, update: Update) -> None:
        self._allreduce()
        update(self.buffer, 0, self.size)


@cache  # a process may make a few only
def _summing(dtype: str) -> Op:
    """Return the MPI operation that adds 16-bit floats by our kernel."""
    from mpi4py import MPI

    add = adder(dtype)

    def sum_into(a: Any, b: Any, datatype: Datatype) -> None:
        one, other = (np.frombuffer(part, storage(dtype)) for part in (a, b))
        add(one, other, other)

    return MPI.Op.Create(sum_into, commute=True)
