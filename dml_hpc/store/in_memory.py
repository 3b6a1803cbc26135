"""A state that every rank keeps in its own memory, whole: what survivors go on from when other ranks die."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.errors import JobError
from dml_hpc.store.state import Kept, State

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_MOST_BYTES = 1 << 30
"""Of one broadcast: not every library counts beyond 2³¹."""


class InMemory(Kept):
    """All ranks' pieces, gathered on every rank. Collective over ``comm``.

    ``room`` holds vectors of an older state that nobody needs any more: they are written over.
    """

    def __init__(self, comm: Intracomm, state: State, room: dict[str, np.ndarray] | None = None):
        self.values = deepcopy(state.values)
        heads = comm.allgather((state.own, [(piece.name, piece.start, len(piece.array), piece.total,
                                             piece.array.dtype.str) for piece in state.pieces]))
        self.own = [own for own, _ in heads]
        self.vectors: dict[str, np.ndarray] = {}
        room = room or {}
        for rank, (_, pieces) in enumerate(heads):
            for number, (name, start, count, total, dtype) in enumerate(pieces):
                vector = self.vectors.get(name)
                if vector is None:
                    vector = room.get(name)
                    if vector is None or len(vector) != total or vector.dtype.str != dtype:
                        vector = np.empty(total, dtype)
                    self.vectors[name] = vector
                part = vector[start:start + count]
                if rank == comm.rank:
                    part[:] = state.pieces[number].array
                _broadcast(comm, part, rank)

    def names(self) -> Iterable[str]:
        """See `Kept.names`."""
        return self.vectors

    def kind(self, name: str) -> tuple[np.dtype, int]:
        """See `Kept.kind`."""
        vector = self._vector(name)
        return vector.dtype, len(vector)

    def read(self, name: str, out: np.ndarray, start: int = 0) -> None:
        """See `Kept.read`."""
        vector = self._vector(name)
        if start + len(out) > len(vector) or vector.dtype != out.dtype:
            raise JobError(f"the state kept in memory has {len(vector)} elements of {vector.dtype} in {name}, not "
                           f"{start + len(out)} of {out.dtype}")
        out[:] = vector[start:start + len(out)]

    def _vector(self, name: str) -> np.ndarray:
        if name not in self.vectors:
            raise JobError(f"the state kept in memory has no {name}")
        return self.vectors[name]


def _broadcast(comm: Intracomm, part: np.ndarray, root: int) -> None:
    raw = part.view(np.uint8)
    for first in range(0, len(raw), _MOST_BYTES):
        comm.Bcast(raw[first:first + _MOST_BYTES], root)
