"""Recursive doubling: in step i ranks 2^i apart exchange all that they have summed so far; log₂(p) messages deep.

Thakur, Rabenseifner and Gropp, *Optimization of collective communication operations in MPICH*, Int. J. High Perform.
Comput. Appl. 19, 2005. When p is no power of two, the ranks beyond the largest one hand their vector to a partner
first and get the sum from it last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import finish
from dml_hpc.comm.place import Add
from dml_hpc.device import Array

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Doubling:
    """Replaces every rank's ``buffer`` by the sum. a + b has the bits of b + a, so all ranks get the same ones."""

    def __init__(self, comm: Intracomm, buffer: Array, add: Add):
        rank = comm.rank
        core = 1 << (comm.size.bit_length() - 1)  # the ranks that take part in the doubling
        self._buffer, self._landing, self._add = buffer, np.empty_like(buffer), add
        own, landing = buffer.view(np.uint8), self._landing.view(np.uint8)
        self._before, self._after = [], []
        self._steps = []
        sends = 0
        if rank >= core:
            self._before = [comm.Send_init(own, rank - core)]
            self._after = [comm.Recv_init(own, rank - core)]
            sends = 1
        else:
            if rank + core < comm.size:
                self._before = [comm.Recv_init(landing, rank + core)]
                self._after = [comm.Send_init(own, rank + core)]
                sends = 1
            partners = [rank ^ (1 << i) for i in range(core.bit_length() - 1)]
            self._steps = [(comm.Recv_init(landing, other), comm.Send_init(own, other)) for other in partners]
        self._adds_first = bool(self._before) and rank < core
        self._bytes = buffer.nbytes * (sends + len(self._steps))

    def free(self) -> None:
        """Give the requests back to MPI."""
        for request in (*self._before, *self._after, *(one for step in self._steps for one in step)):
            request.Free()

    def allreduce(self) -> int:
        """Collective; return the bytes sent."""
        for request in self._before:
            request.Start()
            finish(request)
        if self._adds_first:
            self._add(self._buffer, self._landing, self._buffer)
        for receive, send in self._steps:
            receive.Start()
            send.Start()
            finish(receive)
            finish(send)
            self._add(self._buffer, self._landing, self._buffer)
        for request in self._after:
            request.Start()
            finish(request)
        return self._bytes
