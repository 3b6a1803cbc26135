"""``tree``: sums flow up a k-ary tree to rank 0 and the total flows down again, as Spark's treeReduce does.

2·log_k(p) messages deep, so it wins where latency counts more than bandwidth. The smallest vectors are summed by
recursive doubling, which is half as deep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import finish
from dml_hpc.comm.doubling import Doubling
from dml_hpc.comm.place import HOST, Add, Place
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.device import Array
from dml_hpc.layout import split

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

DOUBLING_BYTES = 1 << 14
"""Up to here every rank sends the whole vector log₂(p) times rather than wait for a root."""
SEGMENT_BYTES = 1 << 18
MOST_SEGMENTS = 64
AHEAD = 2
"""Segments of each child that may be arriving at a time."""


class TreeReducer(Reducer):
    """Rank r's parent is (r − 1) // fan_in; children are added in rank order, so the sum's order is fixed.

    The vector flows in segments, so that the levels of the tree work at the same time. Rank 0 owns the whole sum; in
    recursive doubling every rank does. ``total`` is ``buffer``.
    """

    name = "tree"

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None, fan_in: int = 2,
                 place: Place = HOST):
        """Raises `ValueError` when ``fan_in`` is below 1 (1 is a chain)."""
        if fan_in < 1:
            raise ValueError(f"a tree's fan-in is at least 1, not {fan_in}")
        super().__init__(comm, size, dtype, weights_dtype, place)
        self._doubling: Doubling | None = None
        if self.buffer.nbytes <= DOUBLING_BYTES:
            self._doubling = Doubling(self.comm, self.buffer, place.adder(dtype))
            self.owned = (0, size)
            return
        self.owned = (0, size) if self.comm.rank == 0 else (0, 0)
        cuts = min(MOST_SEGMENTS, -(-self.buffer.nbytes // (place.segment_bytes or SEGMENT_BYTES)))
        self._pieces = [slice(*split(size, cuts, cut)) for cut in range(cuts)]
        self._up = _Up(self.comm, self.buffer, self._pieces, fan_in, place.adder(dtype))
        self._down = _Down(self.comm, self.buffer, self._pieces, fan_in)
        self._weights_down = None if self.weights is None else _Down(self.comm, self.weights, self._pieces, fan_in)

    def _free(self) -> None:
        if self._doubling is not None:
            self._doubling.free()
            return
        for way in (self._up, self._down, self._weights_down):
            if way is not None:
                way.free()

    def _allreduce(self) -> None:
        self.settle()
        if self._doubling is not None:
            self._sent(self._doubling.allreduce())
        else:
            self._flow(self._down, lambda piece: None)

    def _reduce_scatter(self) -> None:
        self.settle()
        if self._doubling is not None:
            self._sent(self._doubling.allreduce())
        else:
            self._flow(None, lambda piece: None)

    def _allgather(self) -> None:
        self.settle()
        if self._doubling is None:
            if self.comm.rank == 0:
                for cut in range(len(self._pieces)):
                    self._down.send(cut)
            self._sent(self._down.receive())

    def _reduce_update(self, update: Update) -> None:
        def finished(piece: slice) -> None:
            update(self.buffer[piece], piece.start, piece.stop)
            self.settle()

        self.settle()
        if self._doubling is not None:
            self._sent(self._doubling.allreduce())
            update(self.buffer, 0, self.size)
        else:
            self._flow(self._weights_down, finished)

    def _flow(self, down: _Down | None, finished: Callable[[slice], object]) -> None:
        """Sum towards the root, which tells ``finished`` of each segment and sends it ``down`` at once."""
        self._up.begin()
        for cut, piece in enumerate(self._pieces):
            self._up.pass_on(cut)
            if self.comm.rank == 0:
                finished(piece)
                if down is not None:
                    down.send(cut)
        self._sent(self._up.end() + (down.receive() if down is not None else 0))


class _Up:
    """The way of the segments of ``buffer`` towards the root."""

    def __init__(self, comm: Intracomm, buffer: Array, pieces: list[slice], fan_in: int, add: Add):
        parent, children = _family(comm, fan_in)
        self._pieces = [buffer[piece] for piece in pieces]
        self._add = add
        longest = max(len(piece) for piece in self._pieces)
        landing = [[np.empty_like(buffer, shape=longest) for _ in range(AHEAD)] for _ in children]
        self._arrived = [[places[cut % AHEAD][:len(piece)] for cut, piece in enumerate(self._pieces)]
                         for places in landing]
        self._receives = [[comm.Recv_init(place.view(np.uint8), child) for place in places]
                          for child, places in zip(children, self._arrived, strict=True)]
        self._sends = [comm.Send_init(piece.view(np.uint8), parent) for piece in self._pieces if parent is not None]

    def free(self) -> None:
        """Give the requests back to MPI."""
        for request in (*self._sends, *(one for child in self._receives for one in child)):
            request.Free()

    def begin(self) -> None:
        for requests in self._receives:
            for request in requests[:AHEAD]:
                request.Start()

    def pass_on(self, cut: int) -> None:
        """Add what the children send of segment ``cut``, and send the sum to the parent."""
        target = self._pieces[cut]
        for requests, arrived in zip(self._receives, self._arrived, strict=True):
            finish(requests[cut])
            self._add(target, arrived[cut], target)
            if cut + AHEAD < len(requests):
                requests[cut + AHEAD].Start()
        if self._sends:
            self._sends[cut].Start()

    def end(self) -> int:
        """Wait until all is sent; return how many bytes."""
        for request in self._sends:
            finish(request)
        return sum(piece.nbytes for piece in self._pieces) if self._sends else 0


class _Down:
    """The way of the segments of ``array`` from the root to all."""

    def __init__(self, comm: Intracomm, array: Array, pieces: list[slice], fan_in: int):
        parent, children = _family(comm, fan_in)
        places = [array[piece].view(np.uint8) for piece in pieces]
        self._receives = [comm.Recv_init(place, parent) for place in places if parent is not None]
        self._sends = [[comm.Send_init(place, child) for child in children] for place in places]
        self._bytes = array.nbytes * len(children)

    def free(self) -> None:
        """Give the requests back to MPI."""
        for request in (*self._receives, *(one for cut in self._sends for one in cut)):
            request.Free()

    def send(self, cut: int) -> None:
        """Send segment ``cut`` to the children."""
        for request in self._sends[cut]:
            request.Start()

    def receive(self) -> int:
        """Take every segment from the parent and send it on; wait until all is sent; return how many bytes.

        A root has sent them already.
        """
        for request in self._receives:
            request.Start()
        for cut, request in enumerate(self._receives):
            finish(request)
            self.send(cut)
        for requests in self._sends:
            for request in requests:
                finish(request)
        return self._bytes


def _family(comm: Intracomm, fan_in: int) -> tuple[int | None, range]:
    """Return this rank's parent (None for the root) and its children."""
    rank, p = comm.rank, comm.size
    children = range(min(p, rank * fan_in + 1), min(p, rank * fan_in + fan_in + 1))
    return ((rank - 1) // fan_in if rank else None), children
