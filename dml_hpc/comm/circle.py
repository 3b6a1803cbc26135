"""The pipeline inside ``ring`` and ``hierarchical``: a reduce-scatter and an all-gather in which nobody stops.

A vector of p blocks goes round p ranks. In each of p − 1 steps a rank sends one block to its right neighbour while the
next arrives from the left and is added to its own; in p − 1 more the finished blocks go round. Every rank sends
2(p−1)/p of the vector, the least any all-reduce can (Patarasuk and Yuan, *Bandwidth optimal all-reduce algorithms for
clusters of workstations*, J. Parallel Distrib. Comput. 69, 2009). Blocks are cut into segments, and a segment is sent
on as soon as it is summed, whatever step the others are in: addition hides behind transfer, and the wire never rests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import SPIN_S, finish
from dml_hpc.comm.place import Add
from dml_hpc.device import Array
from dml_hpc.layout import split

if TYPE_CHECKING:
    from mpi4py.MPI import Comm

Hook = Callable[[slice], object]

SEGMENT_BYTES = 1 << 18
"""How much travels in one message: large enough to hide a message's cost, small enough that the segment just
received is still in cache when it is added."""
MOST_SEGMENTS = 64
"""A block has no more of them: requests cost memory too."""
LONG_BYTES, LONG_SPIN_S = 1 << 16, 1e-4
"""For messages larger than this a rank spins less: where they take longer, others need the core more."""
AHEAD = 4
"""Receives that are posted before their message is needed."""


class Circle:
    """Sums vectors of ``count`` elements over ``comm``, segment by segment.

    ``addends``, each (count,), are what this rank adds, in this order; the first also takes the partial sums that pass
    by. ``gathered`` (count,) takes the result; it may be that first one. Rank r sums block r, the elements ``owned``.
    ``add(a, b, out)`` adds segments, which are of ``segment_bytes`` (None: `SEGMENT_BYTES`) or less. ``pieces`` are
    all of them, as slices, in the order in which their addends are needed: ``needed(piece)`` is called before they are
    read, and ``landed(piece)`` when another rank's has come into ``gathered``.
    """

    def __init__(self, comm: Comm, addends: Sequence[Array], gathered: Array, add: Add,
                 segment_bytes: int | None = None, needed: Hook | None = None, landed: Hook | None = None):
        p, rank = comm.size, comm.rank
        staging = addends[0]
        itemsize = staging.itemsize
        longest = -(-len(staging) // p)
        most_bytes = segment_bytes or SEGMENT_BYTES
        cuts = max(1, min(MOST_SEGMENTS, -(-longest * itemsize // most_bytes)))  # segments of a block

        def segments(block: int) -> list[slice]:
            first, last = split(len(staging), p, block % p)
            return [slice(first + start, first + stop) for start, stop in
                    (split(last - first, cuts, cut) for cut in range(cuts))]

        # In step s of the reduction a rank sends block r − 1 − s and receives block r − 2 − s, which it sends in the
        # next step; in step s of the gathering it sends block r − s and receives block r − 1 − s.
        passing = [piece for step in range(p) for piece in segments(rank - 1 - step)]
        spreading = [piece for step in range(p) for piece in segments(rank - step)]
        self._spin_s = LONG_SPIN_S if longest * itemsize > LONG_BYTES else SPIN_S
        self._cuts = cuts
        self._half = half = (p - 1) * cuts  # messages of the reduction, and of the gathering
        self._slots = slots = min(AHEAD, half)
        landing = [np.empty_like(staging, shape=-(-longest // cuts)) for _ in range(slots)]  # where `staging` lies
        self._arrived = [landing[k % slots][:piece.stop - piece.start] for k, piece in enumerate(passing[cuts:])]
        self.pieces, self._coming = passing, spreading[cuts:]
        self._needed, self._landed = needed, landed
        self._staging, self._others = staging, addends[1:]
        self._add = add
        left, right = (rank - 1) % p, (rank + 1) % p
        outgoing = [staging[piece] for piece in passing[:half]] + [gathered[piece] for piece in spreading[:half]]
        incoming = self._arrived + [gathered[piece] for piece in spreading[cuts:]]
        # What travels is bytes, whatever they mean.
        self._sends = [comm.Send_init(place.view(np.uint8), right) for place in outgoing]
        self._receives = [comm.Recv_init(place.view(np.uint8), left) for place in incoming]
        self._bytes = [sum(place.nbytes for place in outgoing[:half]), sum(place.nbytes for place in outgoing[half:])]
        self.owned = split(len(staging), p, rank)

    def allreduce(self, finished: Hook | None = None) -> int:
        """Collective: reduce and gather; return the bytes sent.

        As soon as a segment of the owned sum lies in the first addend, ``finished(segment)`` writes that of
        ``gathered``; None when these are the same array.
        """
        return self._run(True, True, finished)

    def reduce_scatter(self) -> int:
        """Collective: leave the sum of this rank's block in the first addend; return the bytes sent."""
        return self._run(True, False)

    def allgather(self) -> int:
        """Collective: give every rank's block of ``gathered`` to all; return the bytes sent."""
        return self._run(False, True)

    def free(self) -> None:
        """Give the requests back to MPI."""
        for request in (*self._sends, *self._receives):
            request.Free()

    def _run(self, reduce: bool, gather: bool, finished: Hook | None = None) -> int:
        """Carry the messages of one half of the pipeline or of both: what arrives as message m leaves as m + cuts."""
        half, cuts, slots = self._half, self._cuts, self._slots
        first, last = 0 if reduce else half, 2 * half if gather else half
        for m in range(first, min(first + slots, last)):
            self._post(m)
        for m in range(first, first + cuts):
            if reduce:
                self._sum_own(self.pieces[m])
            if m < last:
                self._sends[m].Start()
        for m in range(first, last):
            finish(self._receives[m], self._spin_s)
            if m < half:
                piece = self.pieces[m + cuts]
                self._sum_own(piece)
                target = self._staging[piece]
                self._add(target, self._arrived[m], target)
                if finished is not None and m + cuts >= half:
                    finished(piece)
            elif self._landed is not None:
                self._landed(self._coming[m - half])
            if m + slots < last:
                self._post(m + slots)
            if m + cuts < last:
                self._sends[m + cuts].Start()
        if half == 0 and finished is not None:  # alone, with nothing to wait for
            for piece in self.pieces:
                finished(piece)
        for send in self._sends[first:last]:
            finish(send, self._spin_s)
        return self._bytes[0] * reduce + self._bytes[1] * gather

    def _post(self, m: int) -> None:
        if m >= self._half:
            finish(self._sends[m - self._half], self._spin_s)  # it was sent from where this one arrives
        self._receives[m].Start()

    def _sum_own(self, piece: slice) -> None:
        if self._needed is not None:
            self._needed(piece)
        target = self._staging[piece]
        for other in self._others:
            self._add(target, other[piece], target)
