"""How often ranks meet for what is not training: so seldom that it costs nothing, so often that nobody waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PULSE_S = 0.25
"""Between two meetings, about; a longer step is followed by one."""
_MOST_GROWTH = 4


class Pulse:
    """Meetings of all ranks after steps that they agree on: `due` says the same on every rank.

    The next meeting is as many steps away as the slowest rank takes in `PULSE_S`.
    """

    def __init__(self, comm: Intracomm):
        self._comm = comm
        self._last, self._next = 0, 1
        self.gap = 1
        """How many steps lie between the last meeting and the next."""
        self._met_s = time.perf_counter()

    def start(self, step: int) -> None:
        """Begin after ``step`` steps, now."""
        self._last, self.gap, self._met_s = step, 1, time.perf_counter()
        self._next = step + 1

    def due(self, step: int) -> bool:
        """Say whether ranks meet when ``step`` steps are taken."""
        return step >= self._next

    def meet(self, step: int, own: list[float]) -> np.ndarray:
        """Collective: return every rank's ``own`` (ranks, count) float64, and settle when the next meeting is."""
        now = time.perf_counter()
        steps = max(step - self._last, 1)
        table = np.empty((self._comm.size, 1 + len(own)))
        self._comm.Allgather(np.array([(now - self._met_s) / steps, *own]), table)
        step_s = float(table[:, 0].max())
        wanted = PULSE_S / step_s if step_s > 0 else np.inf
        self.gap = max(1, int(min(wanted, _MOST_GROWTH * self.gap)))
        self._last, self._next, self._met_s = step, step + self.gap, time.perf_counter()
        return table[:, 1:]
