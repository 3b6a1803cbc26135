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

PHASES = ("read", "compute", "communicate", "wait")
MOST_SPANS = 200_000
"""Of a timeline: what comes later is left out."""


class Clock:
    """Adds up this rank's seconds, by what they went to, in ``seconds``.

    For loops: `start`, then `lap` after each phase of a step and `meet` after its one collective, and `settle`
    once for many steps. For longer stretches: `phase` around them. ``meetings`` is how many collectives to expect
    between two calls of `settle`. With ``timeline``, every stretch is kept too, see `spans`.
    """

    def __init__(self, meetings: int = 0, timeline: bool = False) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._meetings, self._ends = np.zeros(meetings), np.zeros(meetings)
        self._met = 0
        self._spans: list[tuple[int, float, float]] | None = [] if timeline else None
        self._mark = time.perf_counter()

    def start(self) -> None:
        """Set the mark: what has passed since the last one belongs to nobody."""
        self._mark = time.perf_counter()

    def forget(self) -> None:
        """Set all seconds to 0: what they went to was no part of the run that is told of."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._met = 0
        self.start()

    def lap(self, phase: str, read_s: float = 0.0) -> None:
        """Count the time since the mark as ``phase``, ``read_s`` of it as reading, and set the mark."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._mark - read_s
        self.seconds["read"] += read_s
        if self._spans is not None:
            self._span("read", self._mark, self._mark + read_s)
            self._span(phase, self._mark + read_s, now)
        self._mark = now

    def meet(self, compute_s: float = 0.0) -> None:
        """Keep the time since the mark as that of a collective, for `settle`, and set the mark.

        ``compute_s`` of it were computing.
        """
        now = time.perf_counter()
        if self._met == len(self._meetings):
            more = np.zeros(max(64, self._met))
            self._meetings, self._ends = np.append(self._meetings, more), np.append(self._ends, more)
        self._meetings[self._met] = now - self._mark - compute_s
        self._ends[self._met] = now
        self.seconds["compute"] += compute_s
        if self._spans is not None:
            self._span("compute", self._mark, self._mark + compute_s)
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
        if self._spans is not None:
            for end, whole, part in zip(self._ends[:self._met].tolist(), own.tolist(), shortest.tolist(), strict=True):
                self._span("wait", end - whole, end - part)
                self._span("communicate", end - part, end)
        self._met = 0

    def so_far(self) -> list[float]:
        """Return the seconds of each of `PHASES`, and those of collectives that `settle` has not divided yet."""
        return [*self.seconds.values(), float(self._meetings[:self._met].sum())]

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

    def spans(self, since: float) -> np.ndarray:
        """Return the stretches of the timeline, (count, 3): which of `PHASES`, start and length in seconds.

        Starts are counted from ``since``, a reading of ``time.perf_counter``.
        """
        found = np.array(self._spans or [], np.float64).reshape(-1, 3)
        found[:, 1] -= since
        return found

    def _span(self, phase: str, start: float, end: float) -> None:
        assert self._spans is not None
        if end - start > 1e-7 and len(self._spans) < MOST_SPANS:
            self._spans.append((PHASES.index(phase), start, end - start))
