"""How a run went on this rank: loss against seconds, examples, bytes sent and idle share, whatever the algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dml_hpc.comm.clock import Clock

MOST_POINTS = 128
"""Beyond these every other point is dropped."""


class Trace:
    """Points of a run: `note` what each step met, `point` where the clock is settled.

    ``count_bytes()`` says how much this rank has ever sent, None: the library does not say.
    """

    def __init__(self, clock: Clock, bytes_sent: Callable[[], int | None] = lambda: 0):
        self._clock, self.count_bytes, self._before = clock, bytes_sent, 0
        self.examples = 0.0
        """Rows that this rank learnt from."""
        self.earlier_s = 0.0
        """Seconds that the run took before it was resumed."""
        self.points: list[dict[str, Any]] = []
        self._started = time.perf_counter()
        self._loss, self._rows, self._marks, self._spacing = 0.0, 0, 0, 1

    def start(self) -> None:
        """Count seconds and bytes from now on."""
        self._started, self._before = time.perf_counter(), self.count_bytes() or 0

    def bytes_sent(self) -> int | None:
        """Return how much this rank has sent since `start`."""
        sent = self.count_bytes()
        return None if sent is None else sent - self._before

    @property
    def seconds(self) -> float:
        """Since `start`, and before the run was resumed."""
        return self.earlier_s + time.perf_counter() - self._started

    def note(self, own_rows: float, rows: int, loss: float) -> None:
        """Count ``own_rows`` examples of this rank; ``rows`` met the summed ``loss`` (all ranks' where known)."""
        self.examples += own_rows
        self._rows += rows
        self._loss += loss

    def point(self) -> None:
        """Write down where the run is."""
        self._marks += 1
        if self._marks % self._spacing:
            return
        spent = self._clock.seconds
        total = sum(spent.values())
        self.points.append({
            "seconds": round(self.seconds, 6), "examples": round(self.examples),
            "loss": self._loss / self._rows if self._rows else None, "bytes_sent": self.bytes_sent(),
            "idle": round(spent["wait"] / total, 6) if total else 0.0,
            **{phase: round(seconds, 6) for phase, seconds in spent.items()}})
        self._loss, self._rows = 0.0, 0
        if len(self.points) == MOST_POINTS:
            self.points, self._spacing = self.points[1::2], self._spacing * 2
