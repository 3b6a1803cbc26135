"""``mpi``: the MPI library's own all-reduce, the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dml_hpc.comm.reducer import Reducer

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class LibraryReducer(Reducer):
    """`MPI_Allreduce` in place."""

    name = "mpi"

    def __init__(self, comm: Intracomm, size: int, dtype: str):
        super().__init__(comm, size, dtype)
        from mpi4py import MPI

        self._in_place = MPI.IN_PLACE
        self.bytes_sent = None

    def _sum(self) -> None:
        self.comm.Allreduce(self._in_place, self.buffer)
