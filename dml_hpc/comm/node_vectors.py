"""The vectors of a node's ranks, as each of them sees them in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.shared_memory import PAGE_BYTES, SharedMemory, whole_pages
from dml_hpc.kernels.node import LINE
from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MEETINGS = 3
"""Kinds of meeting that the ranks of a node have, each with flags of its own."""


class NodeVectors:
    """One buffer of ``size`` elements of ``kind`` for each rank of ``node``, and what makes one vector of their slices.

    Slice s is the pages ``cuts[s]`` (first, last) of a vector, and rank s of the node owns it. It has two places: in
    its owner's buffer, and in one vector more. In place 0 or 1,

    - ``buffers[place]`` (size,) is this rank's buffer, its own slice in that place;
    - ``totals[place]`` (size,) is one vector of all owners' slices, each in that place;
    - ``inputs`` (ranks, elements) are all buffers with every slice in place 0: an owner reads the others' there, which
      never move;
    - ``weights`` (size,), the node's, if a dtype is given; ``flags`` (`MEETINGS`, ranks · `LINE`) int64.

    Collective over ``comm``, of whose ranks ``node`` holds some. Raises `AgreedError` on all of them.
    """

    def __init__(self, comm: Intracomm, node: Intracomm, size: int, kind: np.dtype, cuts: Sequence[tuple[int, int]],
                 weights_kind: np.dtype | None):
        p, rank = node.size, node.rank
        length = whole_pages(size * kind.itemsize)
        slices = [(first * PAGE_BYTES, last * PAGE_BYTES) for first, last in cuts]
        low, high = slices[rank] if rank < len(slices) else (length, length)
        weights_length = 0 if weights_kind is None else whole_pages(size * weights_kind.itemsize)
        flags_length = whole_pages(MEETINGS * p * LINE * 8)
        # In the file: the buffers; the vector with the other place of every slice; the weights; the flags.
        other, weights, flags = p * length, (p + 1) * length, (p + 1) * length + weights_length
        own = [(rank * length, length), (other + low, high - low)]
        if rank == 0:
            own.append((weights, weights_length + flags_length))
        memory = SharedMemory(comm, node, flags + flags_length, own, "--allreduce ring")

        def vector(*pieces: tuple[int, int]) -> np.ndarray:
            return memory.map(*pieces)[:size * kind.itemsize].view(kind)

        mine = rank * length
        self.weights: np.ndarray | None = None
        try:
            with agreed(comm):
                self.buffers = [vector((mine, length)),
                                vector((mine, low), (other + low, high - low), (mine + high, length - high))]
                self.totals = [vector(*((owner * length + first, last - first)
                                        for owner, (first, last) in enumerate(slices))),
                               vector((other, length))]
                self.inputs = memory.map((0, other)).view(kind).reshape(p, length // kind.itemsize)
                self.flags = memory.map((flags, flags_length))[:MEETINGS * p * LINE * 8].view(np.int64).reshape(
                    MEETINGS, -1)
                if weights_kind is not None:
                    whole = memory.map((weights, weights_length))
                    self.weights = whole[:size * weights_kind.itemsize].view(weights_kind)
        finally:
            memory.close()
        self.own = slice(min(low // kind.itemsize, size), min(high // kind.itemsize, size))
