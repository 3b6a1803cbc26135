"""Rows of factors that a rank needs: its own, which it changes, and those of others, which it is sent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.decomposition.mf.rows import aligned, draw
from dml_hpc.kernels.rating_lists import pack
from dml_hpc.watch import waiting

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm, Request

MESSAGE_BYTES = 1 << 22
IN_FLIGHT = 4
"""Messages that are packed and not yet sent off."""


class Table:
    """Rows of ``width`` float32, and a bias each if ``biased``: this rank's, of all that ``bounds`` (ranks + 1,) deal.

    ``needed`` (m,) int64, rising, are the rows of others that this rank wants. The table holds all in their order:
    ``factors`` (count·width,) and ``biases`` (count,) float32, of which ``own`` and ``own_biases`` are views: nothing
    of its own is copied, or sent to itself. ``memory`` returns bytes
    (n,) for them. Collective; so is `gather`, which has the others' rows sent, just those
    that are needed, and allocates nothing.
    """

    def __init__(self, comm: Intracomm, bounds: np.ndarray, needed: np.ndarray, k: int, width: int, biased: bool,
                 memory: Callable[[int], np.ndarray] = aligned):
        self._comm, self.k, self.width, self.bounds = comm, k, width, bounds
        self.first, self.last = (int(bound) for bound in bounds[comm.rank:comm.rank + 2])
        others = needed[(needed < self.first) | (needed >= self.last)]
        before = int(np.searchsorted(others, self.first))
        self._numbers = others, before
        own, count = self.last - self.first, len(others) + self.last - self.first
        self.factors = memory(4 * count * width).view(np.float32)
        self.factors[:] = 0
        self.biases = memory(4 * count).view(np.float32) if biased else None
        if self.biases is not None:
            self.biases[:] = 0
        self.own = self.factors[before * width:(before + own) * width]
        self.own_biases = None if self.biases is None else self.biases[before:before + own]
        cuts = np.searchsorted(others, bounds)
        self._coming = [(rank, int(cut) + own * (rank > comm.rank), int(cuts[rank + 1] - cut))
                        for rank, cut in enumerate(cuts[:-1]) if rank != comm.rank and cuts[rank + 1] > cut]
        with waiting("an exchange of which rows are needed"):
            asked = comm.alltoall([others[cuts[rank]:cuts[rank + 1]] for rank in range(comm.size)])
        turns = [(comm.rank + turn) % comm.size for turn in range(1, comm.size)]
        self._going = [(rank, asked[rank] - self.first) for rank in turns if len(asked[rank])]
        self._message_rows = max(1, MESSAGE_BYTES // (4 * width))
        most = max((len(rows) for _, rows in self._going), default=0)
        self._rooms = [np.empty((min(self._message_rows, most), width + 1), np.float32) for _ in range(IN_FLIGHT)]
        self.bytes_sent = 0

    def places(self) -> np.ndarray:
        """Return where each of all rows is in the table (rows,) int32; what is not in it has any number."""
        others, before = self._numbers
        own = self.last - self.first
        places = np.zeros(int(self.bounds[-1]), np.int32)
        places[others[:before]] = np.arange(before)
        places[others[before:]] = np.arange(before + own, len(others) + own)
        places[self.first:self.last] = np.arange(before, before + own)
        return places

    def draw(self, seed: int, purpose: int, deviation: float) -> None:
        """Set this rank's rows to random factors, the same whoever has them; the biases are 0."""
        draw(self.own.reshape(-1, self.width)[:, :self.k], self.first, seed, purpose, deviation)

    def gather(self) -> None:
        """Collective: get the rows of others as they are now."""
        comm, step, width = self._comm, self._message_rows, self.width
        arriving: list[Request] = []
        for rank, place, count in self._coming:
            for start in range(place, place + count, step):
                stop = min(start + step, place + count)
                arriving.append(comm.Irecv(self.factors[start * width:stop * width], rank))
                if self.biases is not None:
                    arriving.append(comm.Irecv(self.biases[start:stop], rank))
        leaving: deque[list[Request]] = deque()
        turn = 0
        with waiting("an exchange of factors"):
            for rank, rows in self._going:
                for start in range(0, len(rows), step):
                    chosen = rows[start:start + step]
                    if len(leaving) == IN_FLIGHT:
                        _finish(leaving.popleft())
                    room = self._rooms[turn % IN_FLIGHT].reshape(-1)
                    turn += 1
                    sent = room[:len(chosen) * width]
                    pack(self.own, width, chosen, sent)
                    requests = [comm.Isend(sent, rank)]
                    self.bytes_sent += sent.nbytes
                    if self.own_biases is not None:
                        sent = room[len(chosen) * width:len(chosen) * (width + 1)]
                        np.take(self.own_biases, chosen, out=sent, mode="clip")  # in place
                        requests.append(comm.Isend(sent, rank))
                        self.bytes_sent += sent.nbytes
                    leaving.append(requests)
            for requests in leaving:
                _finish(requests)
            _finish(arriving)


def _finish(requests: list[Request]) -> None:
    for request in requests:
        request.Wait()
