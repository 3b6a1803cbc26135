"""Rows that move from slow ranks to fast ones, between epochs.

What a rank takes for its part of the work is measured (`dml_hpc.trainers.stragglers`), and parts become proportional to
the speed that was seen, so that all ranks are through at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.data.reading import Reader
from dml_hpc.errors import AgreedError
from dml_hpc.trainers.algorithm import Algorithm
from dml_hpc.trainers.stragglers import Pace

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

LEAST_GAIN = 0.03
"""Rows move when a step is expected to take so much less of its time,"""
CERTAIN = 0.25
"""by all measurements but this share of them: who is slow now and then is as often slow with fewer rows."""
MOST_CHANGE = 2.0
"""A rank's share becomes at most so many times as large, or as small, at once."""
LEAST_SHARE = 1 / 8
"""Of an equal share, that every rank keeps: else nobody would know when it is fast again."""
MOVING_SHARE = 0.05
"""Of the time, at most, goes into moving."""
REST_S = 8.0
"""Rows stay where they are for so long after a move that took back another, and twice as long after the next such one:
where speeds change by the minute, rows cannot follow them."""
_MOST_TOLD = 3


def better_shares(shares: np.ndarray, slowness: np.ndarray) -> np.ndarray:
    """Return the shares (ranks,), of a sum of 1, with which ranks would take equally long, or are on the way there.

    ``slowness`` (ranks,) is what each takes for equal work. With ``shares`` a rank is busy for share · slowness; what
    does not depend on its rows is part of that, so that these shares are approached over several moves.
    """
    wanted = (1 / slowness) / np.sum(1 / slowness)
    near = np.clip(wanted, shares / MOST_CHANGE, shares * MOST_CHANGE)
    kept = np.maximum(near, LEAST_SHARE / len(shares))
    return kept / kept.sum()


def gain(shares: np.ndarray, better: np.ndarray, slowness: np.ndarray) -> float:
    """Return by which share of its time the rank that all wait for is through earlier with ``better`` shares."""
    return 1 - float(np.max(better * slowness) / np.max(shares * slowness))


class Rebalancing:
    """Moves the rows of ``algorithm`` as ``pace`` says. Collective; ``tell(line)`` speaks to the user.

    ``reopen(shares)`` (collective) returns this rank's reader where ranks have such shares of the work, once it has
    closed the one before. ``moves`` are the shares that came of it, as a record tells them.
    """

    def __init__(self, comm: Intracomm, algorithm: Algorithm, pace: Pace, reopen: Callable[[Sequence[float]], Reader],
                 tell: Callable[[str], None]):
        self._comm, self._algorithm, self._pace, self._reopen, self._tell = comm, algorithm, pace, reopen, tell
        self.moves: list[dict[str, Any]] = []
        self._shares = self._known()
        self._over = comm.size == 1 or min(self._shares) == 0
        self._not_before, self._rest_s = 0.0, 0.0
        self._change = np.zeros(comm.size)

    def _known(self) -> list[float]:
        return self._comm.allgather(self._algorithm.reader.work_share)

    def look(self, step: int) -> None:
        """Collective, between epochs, after ``step`` steps: move rows where that saves time."""
        if self._over:
            return
        wanted: list[float] | None = self._comm.bcast(self._wanted() if self._comm.rank == 0 else None)
        if wanted is None:
            return
        began, before = time.monotonic(), self._shares
        with self._algorithm.clock.phase("read"):
            self._algorithm.read_anew(lambda: self._opened(wanted))
        self._shares = self._known()
        now = time.monotonic()
        change = np.subtract(self._shares, before)
        if change @ self._change < 0:
            self._rest_s = max(2 * self._rest_s, REST_S)
        self._change = change
        self._not_before = now + max((now - began) / MOVING_SHARE, self._rest_s)
        self._pace.start()
        if not self._over:
            self.moves.append({"step": step, "shares": [round(share, 4) for share in self._shares]})
            self._tell(f"moved    rows after step {step:,}: {_told(before, self._shares)}")

    def _wanted(self) -> list[float] | None:
        """Return the shares to move to, None: stay. Rank 0 decides: its floats may differ from another's."""
        slowness = self._pace.stragglers.slowness()
        if slowness is None or time.monotonic() < self._not_before:
            return None
        shares = np.array(self._shares)
        better = better_shares(shares, np.median(slowness, axis=0))
        gains = [gain(shares, better, measured) for measured in slowness]
        saved = float(np.quantile(gains, CERTAIN)) * self._pace.stragglers.busiest()
        return better.tolist() if saved > LEAST_GAIN else None

    def _opened(self, wanted: list[float]) -> Reader:
        try:
            return self._reopen(wanted)
        except AgreedError as error:
            self._over = True
            self._tell(f"warning  rows stay where they are: rank {error.rank} cannot take others ({error})")
        return self._reopen(self._shares)


def _told(before: list[float], after: list[float]) -> str:
    changes = sorted(range(len(after)), key=lambda rank: -abs(after[rank] - before[rank]))
    told = [f"rank {rank} has {after[rank]:.1%} of them instead of {before[rank]:.1%}" for rank in changes[:_MOST_TOLD]]
    return ", ".join(told) + (f", and {len(changes) - _MOST_TOLD} others" if len(changes) > _MOST_TOLD else "")
