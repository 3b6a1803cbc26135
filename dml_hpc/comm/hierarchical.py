"""``hierarchical``: inside a node ranks read one another's buffers where they lie; between nodes rings, one a lane.

The vector is cut into as many slices as the node has ranks. Each rank adds up its slice from all the buffers of the
node, in place, in its own one. Nothing is copied to give the others the sum: every rank has mapped the owners' slices
one after the other, and so reads them as one vector. Two meetings of the node's ranks are all that it takes: one when
every addend is written, one when every slice is summed.

With several nodes a slice is a lane: its owners, one a node, sum it around a `Circle`, all lanes at once, and the sum
over the node is taken segment by segment on the way, while other segments travel.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import in_background, nap
from dml_hpc.comm.circle import Circle
from dml_hpc.comm.elements import adder, storage
from dml_hpc.comm.node_vectors import MEETINGS, NodeVectors
from dml_hpc.comm.reducer import Reducer, Update
from dml_hpc.comm.shared_memory import PAGE_BYTES, whole_pages
from dml_hpc.comm.topology import node_of
from dml_hpc.errors import AgreedError
from dml_hpc.kernels import node as kernels
from dml_hpc.layout import split
from dml_hpc.mpi import first_on_node

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

SPINS = 2000
"""Looks at a flag before the core is offered to others: some tens of µs."""
PATIENCE = 5000
"""Looks after that before Python gets its turn, to see to signals."""
CHUNK_BYTES = 1 << 18
"""How much of a slice is summed before it is updated: it stays in the second-level cache in between."""


class HierarchicalReducer(Reducer):
    """See the module. ``node`` holds the ranks that share memory with this one (None: the machine is asked).

    ``buffer`` and ``total`` lie in memory that all ranks of the node share. The slice that a rank owns has two places
    in turn: while one holds a sum that slower ranks still read, the next addend is written to the other. ``weights``
    are there once for the whole node. Nodes may hold different numbers of ranks: there are as many lanes as the
    smallest has ranks, and the spare ranks of the others only bring their addends.
    """

    name = "hierarchical"

    def __init__(self, comm: Intracomm, size: int, dtype: str, weights_dtype: str | None = None,
                 node: Intracomm | None = None):
        from mpi4py import MPI

        self._node = node_of(comm) if node is None else node.Dup()
        self._lanes = comm.allreduce(self._node.size, MPI.MIN)
        self._lane = comm.Split(self._node.rank if self._node.rank < self._lanes else MPI.UNDEFINED, comm.rank)
        self._alone = comm.allreduce(self._node.size, MPI.MAX) == comm.size  # one node: no wire
        self._spins = SPINS if self._node.size <= (os.cpu_count() or 1) else 0
        self._counts = [0] * MEETINGS
        self._circles: dict[tuple[int, bool], Circle] = {}
        try:
            super().__init__(comm, size, dtype, weights_dtype)
        except AgreedError:
            self._free()
            self.comm.Free()
            raise

    def _allocate(self, weights_dtype: str | None) -> None:
        kind = storage(self.dtype)
        # Slices end on pages, so that each can be mapped by itself.
        pages = whole_pages(self.size * kind.itemsize) // PAGE_BYTES
        cuts = [split(pages, self._lanes, lane) for lane in range(self._lanes)]
        self._vectors = vectors = NodeVectors(self.comm, self._node, self.size, kind, cuts,
                                              None if weights_dtype is None else storage(weights_dtype))
        self._place = 0
        self.buffer, self.total = vectors.buffers[0], vectors.totals[1]
        self.weights = vectors.weights
        self._slice = vectors.own
        self._scratch = np.empty(min(CHUNK_BYTES // kind.itemsize, self._slice.stop - self._slice.start), kind)
        self._add = adder(self.dtype)
        with first_on_node(self._node):
            self._compile_kernels()
        self.owned = self._slice.start, self._slice.stop
        if self._lane and not self._alone:
            start, stop = split(self.owned[1] - self.owned[0], self._lane.size, self._lane.rank)
            self.owned = self._slice.start + start, self._slice.start + stop

    def _compile_kernels(self) -> None:
        """Have them compiled, or read from Numba's cache, by running them on nothing."""
        alone = np.zeros((2, kernels.LINE), np.int64)
        kernels.meet(alone[0], 0, 0, 0, 0)
        if self._add is np.add:
            kernels.add_rows(self._vectors.inputs, self._node.rank, 0, self._scratch[:0])
            kernels.node_allreduce(alone, 0, 0, self._vectors.inputs, self._vectors.totals[0], 0, 0, 0, 0)

    def _allreduce(self) -> None:
        if self._alone and self._add is np.add:
            vectors, count = self._vectors, self._counts[0] + 1
            self._counts[:2] = count, count
            while not kernels.node_allreduce(vectors.flags, self._node.rank, count, vectors.inputs, self.buffer,
                                             self._slice.start, self._slice.stop, *self._patience()):
                self._nap()
        else:
            self._meet(0)
            if self._alone:
                self._add_others(self._slice.start, self.buffer[self._slice])
            elif self._lane:
                self._sent(self._circle(False).allreduce())
            self._meet(1)
        self._turn()

    def _reduce_scatter(self) -> None:
        self._meet(0)
        if self._alone:
            self._add_others(self._slice.start, self.buffer[self._slice])
        elif self._lane:
            self._sent(self._circle(False).reduce_scatter())
        self._meet(1)
        self._turn()

    def _allgather(self) -> None:
        if self._lane and not self._alone:
            self._place ^= 1
            self._sent(self._circle(False).allgather())
            self._place ^= 1
        self._meet(2)

    def _reduce_update(self, update: Update) -> None:
        self._meet(0)
        if self._alone:
            step = max(len(self._scratch), 1)
            for start in range(self._slice.start, self._slice.stop, step):
                stop = min(start + step, self._slice.stop)
                summed = self._scratch[:stop - start]
                summed[:] = self.buffer[start:stop]
                self._add_others(start, summed)
                update(summed, start, stop)
        elif self._lane:
            own, first = self.buffer[self._slice], self._slice.start
            self._sent(self._circle(True).allreduce(
                lambda piece: update(own[piece], first + piece.start, first + piece.stop)))
        self._meet(1)

    def _circle(self, update: bool) -> Circle:
        """Return the ring of this rank's lane, over the place that its slice has now."""
        key = self._place, update
        if key not in self._circles:
            own = self._vectors.totals[self._place][self._slice]
            rank, p = self._node.rank, self._node.size
            others = [self._vectors.inputs[(rank + turn) % p][self._slice] for turn in range(1, p)]
            gathered = own
            if update:
                assert self.weights is not None
                gathered = self.weights[self._slice]
            self._circles[key] = Circle(self._lane, [own, *others], gathered, self._add)
        return self._circles[key]

    def _add_others(self, start: int, out: np.ndarray) -> None:
        """Add the other ranks' elements from ``start`` on to ``out``, which holds this rank's own."""
        rank, p = self._node.rank, self._node.size
        if self._add is np.add:
            kernels.add_rows(self._vectors.inputs, rank, start, out)
            return
        for turn in range(1, p):
            self._add(out, self._vectors.inputs[(rank + turn) % p][start:start + len(out)], out)

    def _meet(self, meeting: int) -> None:
        """Wait until all ranks of the node are here: 0 with its addend, 1 its sum, 2 what is to be gathered."""
        self._counts[meeting] += 1
        while not kernels.meet(self._vectors.flags[meeting], self._node.rank, self._counts[meeting], *self._patience()):
            self._nap()

    def _nap(self) -> None:
        nap()
        self._node.Iprobe()  # it raises when a rank of the node has died, whom shared memory would wait for for ever

    def _patience(self) -> tuple[int, int]:
        return (0, 1) if in_background() else (self._spins, PATIENCE)

    def _turn(self) -> None:
        """The sum lies where it is; the next addend is written to the other place."""
        self.total = self._vectors.totals[self._place]
        self._place ^= 1
        self.buffer = self._vectors.buffers[self._place]

    def _free(self) -> None:
        for circle in self._circles.values():
            circle.free()
        if self._lane:
            self._lane.Free()
        self._node.Free()
