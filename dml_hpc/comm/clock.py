"""Where a rank's time goes: read, compute, communicate, wait."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Clock:
    """Splits the time of a loop whose steps read, compute, and meet the other ranks in one collective.

    Waiting is told from communicating without a barrier: the rank that arrives last at a collective waits for
    nobody, so the shortest time any rank spends in it is communication, and what a rank spends beyond that is
    waiting for a slower one.
    """

    def __init__(self, steps_per_epoch: int):
        self.read_s = 0.0
        self.compute_s = 0.0
        self.communicate_s = 0.0
        self.wait_s = 0.0
        self._meetings = np.zeros(steps_per_epoch)
        self._met = 0
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Begin: what has passed since the last mark belongs to nobody."""
        self._mark = time.perf_counter()

    def read(self) -> None:
        """Count the time since the last mark as reading."""
        now = time.perf_counter()
        self.read_s += now - self._mark
        self._mark = now

    def compute(self) -> None:
        """Count the time since the last mark as computing."""
        now = time.perf_counter()
        self.compute_s += now - self._mark
        self._mark = now

    def meet(self) -> None:
        """Count the time since the last mark as this step's collective."""
        now = time.perf_counter()
        self._meetings[self._met] = now - self._mark
        self._met += 1
        self._mark = now

    def settle(self, comm: Intracomm) -> None:
        """Collective, at the end of an epoch: divide the time in its collectives into communicating and waiting."""
        from mpi4py import MPI

        own = self._meetings[:self._met]
        shortest = np.empty_like(own)
        comm.Allreduce(own, shortest, MPI.MIN)
        self.communicate_s += float(shortest.sum())
        self.wait_s += float((own - shortest).sum())
        self._met = 0

    def split(self) -> dict[str, float]:
        """Return the seconds so far, by what they went to."""
        return {"read": self.read_s, "compute": self.compute_s, "communicate": self.communicate_s,
                "wait": self.wait_s}
