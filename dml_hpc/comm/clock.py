"""Where a rank's time goes: read, compute, communicate, wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.mpi import agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Clock:
    """Adds up this rank's seconds, by what they went to, in ``seconds``.

    For loops: `start`, then `lap` after each phase of a step and `meet` after its one collective, and `settle`
    once for many steps. For longer stretches: `phase` around them. ``meetings`` is how many collectives to expect
    between two calls of `settle`.
    """

    def __init__(self, meetings: int = 0) -> None:
        self.seconds = {"read": 0.0, "compute": 0.0, "communicate": 0.0, "wait": 0.0}
        self._meetings = np.zeros(meetings)
        self._met = 0
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Set the mark: what has passed since the last one belongs to nobody."""
        self._mark = time.perf_counter()

    def lap(self, phase: str, read_s: float = 0.0) -> None:
        """Count the time since the mark as ``phase``, ``read_s`` of it as reading, and set the mark."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._mark - read_s
        self.seconds["read"] += read_s
        self._mark = now

    def meet(self, compute_s: float = 0.0) -> None:
        """Keep the time since the mark as that of a collective, for `settle`, and set the mark.

        ``compute_s`` of it were computing.
        """
        now = time.perf_counter()
        if self._met == len(self._meetings):
            self._meetings = np.append(self._meetings, np.zeros(max(64, self._met)))
        self._meetings[self._met] = now - self._mark - compute_s
        self.seconds["compute"] += compute_s
        self._met += 1
        self._mark = now

    def settle(self, comm: Intracomm) -> None:
        """Collective: divide the time of the collectives met since the last call into communicating and waiting.

        No barrier is needed to tell them apart: the rank that arrives last at a collective waits for nobody, so
        the shortest time that any rank spends in it is communication, and the rest is waiting for a slower rank.
        """
        from mpi4py import MPI

        own = self._meetings[:self._met]
        shortest = np.empty_like(own)
        comm.Allreduce(own, shortest, MPI.MIN)
        self.seconds["communicate"] += float(shortest.sum())
        self.seconds["wait"] += float((own - shortest).sum())
        self._met = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time as ``name``."""
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    @contextmanager
    def agreed(self, comm: Intracomm) -> Iterator[None]:
        """`dml_hpc.mpi.agreed`, with the time from this rank's end of the block to the last rank's as waiting."""
        with agreed(comm):
            yield
            done = time.perf_counter()
        self.seconds["wait"] += time.perf_counter() - done
