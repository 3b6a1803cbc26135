"""``tree``: sums flow up a k-ary tree to rank 0 and the total flows down again, as Spark's treeReduce does.

2·log_k(p) messages deep, so it wins where latency counts more than bandwidth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.reducer import Reducer

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class TreeReducer(Reducer):
    """Rank r's parent is (r − 1) // fan_in; children are added in rank order, so the sum's order is fixed."""

    name = "tree"

    def __init__(self, comm: Intracomm, size: int, dtype: str, fan_in: int = 2):
        """Raises `ValueError` when ``fan_in`` is below 1 (1 is a chain)."""
        if fan_in < 1:
            raise ValueError(f"a tree's fan-in is at least 1, not {fan_in}")
        super().__init__(comm, size, dtype)
        rank, p = self.comm.rank, self.comm.size
        self._parent = (rank - 1) // fan_in if rank else None
        self._children = range(min(p, rank * fan_in + 1), min(p, rank * fan_in + fan_in + 1))
        # One landing place a child: all of them may send at the same time.
        self._landing = [np.empty_like(self.buffer) for _ in self._children]

    def _sum(self) -> None:
        arriving = [self.comm.Irecv(landing, child)
                    for landing, child in zip(self._landing, self._children, strict=True)]
        for landing, request in zip(self._landing, arriving, strict=True):
            request.Wait()
            self.buffer += landing
        if self._parent is not None:
            self.comm.Send(self.buffer, self._parent)
            self.comm.Recv(self.buffer, self._parent)
        sending = [self.comm.Isend(self.buffer, child) for child in self._children]
        for request in sending:
            request.Wait()
        assert self.bytes_sent is not None
        self.bytes_sent += self.buffer.nbytes * (len(sending) + (self._parent is not None))
