"""``ring``: reduce-scatter, then all-gather, each rank talking to its two neighbours only.

Every rank sends 2(p−1)/p of the vector, the least any all-reduce can (Patarasuk and Yuan, *Bandwidth optimal
all-reduce algorithms for clusters of workstations*, J. Parallel Distrib. Comput. 69, 2009).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.reducer import Reducer
from dml_hpc.layout import split

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SEGMENT_BYTES = 1 << 18
"""How much travels in one message: large enough to hide a message's cost, small enough that the segment just
received is still in cache when it is added."""


class RingReducer(Reducer):
    """The vector is cut into p blocks; block b's sum travels around the ring and ends on rank b − 1 (mod p)."""

    name = "ring"

    def __init__(self, comm: Intracomm, size: int, dtype: str):
        super().__init__(comm, size, dtype)
        p = self.comm.size
        blocks = [split(size, p, b) for b in range(p)]
        step = max(1, SEGMENT_BYTES // self.buffer.itemsize)
        self._segments = [
            [self.buffer[start:min(start + step, stop)] for start in range(first, stop, step)]
            for first, stop in blocks
        ]
        self._right = (self.comm.rank + 1) % p
        self._left = (self.comm.rank - 1) % p
        # Two landing places, so that one segment arrives while the one before it is added.
        self._landing = [np.empty(min(step, -(-size // p)), self.buffer.dtype) for _ in range(2)]
        self._block_bytes = [(stop - first) * self.buffer.itemsize for first, stop in blocks]

    def _sum(self) -> None:
        p, rank = self.comm.size, self.comm.rank
        for step in range(p - 1):
            self._add_block(send=(rank - step) % p, receive=(rank - step - 1) % p)
        for step in range(p - 1):
            self._copy_block(send=(rank + 1 - step) % p, receive=(rank - step) % p)

    def _add_block(self, send: int, receive: int) -> None:
        sending = [self.comm.Isend(segment, self._right) for segment in self._segments[send]]
        targets = self._segments[receive]
        arriving = [self._arrival(targets, i) for i in range(min(2, len(targets)))]
        for i, target in enumerate(targets):
            arriving[i].Wait()
            target += self._landing[i % 2][:target.size]
            if i + 2 < len(targets):
                arriving.append(self._arrival(targets, i + 2))
        self._finish(sending, send)

    def _arrival(self, targets: list[np.ndarray], i: int):  # type: ignore[no-untyped-def]
        return self.comm.Irecv(self._landing[i % 2][:targets[i].size], self._left)

    def _copy_block(self, send: int, receive: int) -> None:
        arriving = [self.comm.Irecv(segment, self._left) for segment in self._segments[receive]]
        sending = [self.comm.Isend(segment, self._right) for segment in self._segments[send]]
        for request in arriving:
            request.Wait()
        self._finish(sending, send)

    def _finish(self, sending: list, block: int) -> None:
        for request in sending:
            request.Wait()
        assert self.bytes_sent is not None
        self.bytes_sent += self._block_bytes[block]
