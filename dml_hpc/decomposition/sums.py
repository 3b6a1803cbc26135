"""Sums over all chunks of a matrix: in float64, or in fixed point, whose bits do not depend on the order."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

OpenReducer = Callable[..., Reducer]
"""``open(comm, size, dtype)``, collective: a reducer."""


class Sum:
    """A vector (size,) to which every rank of ``comm`` adds what its chunks contribute.

    `clear`, `add` any number of times, then `total` (collective). With ``reproducible`` every addend is rounded to a
    multiple of one power of two and added in int64: the total is the same on any number of ranks as long as the addends
    are. What is added has then to be bounded: in any order of addition no element's magnitude may pass ``bound``.
    """

    def __init__(self, comm: Intracomm, size: int, open_reducer: OpenReducer, clock: Clock, reproducible: bool = False):
        self._reducer = open_reducer(comm, size, "int64" if reproducible else "float64")
        self.clock = clock
        self._unit = 0.0
        self.summed_by = self._reducer.name
        self._total = np.empty(size if reproducible else 0)

    def clear(self, bound: float = 1.0) -> None:
        """Set this rank's part to zero."""
        self._reducer.buffer[:] = 0
        # Two bits are left for the sign and for the roundings of all addends.
        self._unit = 2.0 ** (math.frexp(bound)[1] - 61) if bound > 0 else 1.0

    def add(self, part: np.ndarray, start: int = 0) -> None:
        """Add ``part``, float32 or float64 of any shape, to elements ``start`` and on."""
        flat = part.reshape(-1)
        place = self._reducer.buffer[start:start + flat.size]
        if place.dtype == np.int64:
            from dml_hpc.kernels import blocks

            blocks.add_fixed(flat, 1 / self._unit, place)
        else:
            place += flat

    @property
    def unit(self) -> float | None:
        """What one is worth in fixed point; None: sums are float64."""
        return self._unit if self._total.size else None

    def add_units(self, part: np.ndarray, start: int = 0) -> None:
        """Add ``part``, int64 of any shape, counted in `unit`, to elements ``start`` and on."""
        self._reducer.buffer[start:start + part.size] += part.reshape(-1)

    def total(self) -> np.ndarray:
        """Collective: return the sum (size,) float64, the same on every rank; valid until the next call."""
        with self.clock.phase("communicate"):
            self._reducer.allreduce()
        if self._total.size:
            np.multiply(self._reducer.total, self._unit, out=self._total)
            return self._total
        return self._reducer.total

    def close(self) -> None:
        """Collective: let go of the reducer."""
        self._reducer.close()
