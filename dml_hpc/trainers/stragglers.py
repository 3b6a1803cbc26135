"""Which ranks are slower than the others, measured while a run goes on.

Whoever sums gradients waits for the slowest rank (Dean and Barroso, *The tail at scale*, CACM 56(2), 2013): it is to be
known which one that is. What is compared is the time that ranks are busy, reading and computing, for equal work.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.trainers.algorithm import Algorithm

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

MEASURED_S = 0.25
"""A measurement takes so long at least, and until all ranks that have work have done some; what they tell each other
meanwhile is added up."""
WINDOW = 8
"""Measurements that are judged together: 2 s at least."""
SLOW, STILL_SLOW = 1.2, 1.1
"""A rank is slow that takes more than so many times as long as the median rank in all measurements of the window, and
stays so until the median of the window is below the second. Times of equal ranks vary by a tenth or more, and stalls
are far longer, but not those of one rank eight times in a row: with deviations of 15 % once in a million windows."""
LEAST_WAIT = 0.05
"""The others must wait for it for this share of the time."""
CHANGED = 1.5
"""A slow rank is told of again when it is so many times as slow, or as fast, as was said."""


@dataclass
class Straggler:
    """A rank that took ``ratio`` times as long as the median rank for equal work, from step ``since_step`` on.

    ``wait`` is the share of the time that others waited for it, ``until_step`` when it was slow no longer (None: it
    still is).
    """

    rank: int
    ratio: float
    wait: float
    since_step: int
    until_step: int | None = None


@dataclass
class _Measured:
    """How slow ranks were, over so many ``seconds`` from ``step`` on; all (ranks,), NaN for a rank without work.

    ``slowness`` is their time for equal work, ``busier`` their time, each as a multiple of the median rank's, and
    ``busy`` their time as a share of ``seconds``.
    """

    step: int
    slowness: np.ndarray
    busier: np.ndarray
    busy: np.ndarray


class Stragglers:
    """Judges what ``ranks`` ranks measured, told by `seen`. Everything is the same wherever the same is told.

    ``found`` are those that were slow at any time, in the order in which they were found.
    """

    def __init__(self, ranks: int):
        self.found: list[Straggler] = []
        self._ranks = ranks
        self._window: deque[_Measured] = deque(maxlen=WINDOW)
        self._said: dict[int, float] = {}
        self._works = np.zeros(ranks, bool)
        self._begin()

    def _begin(self) -> None:
        self._busy, self._work = np.zeros((2, self._ranks))
        self._seconds, self._step = 0.0, -1

    def forget(self) -> None:
        """Forget what was measured, as ranks have other work now; who is slow stays so until that is known better."""
        self._window.clear()
        self._begin()

    def seen(self, step: int, busy: np.ndarray, work: np.ndarray, seconds: float) -> list[Straggler]:
        """Count the last ``seconds``, until ``step``: how long each rank was ``busy``, for how much ``work`` (ranks,).

        Work is in units of which each takes as long as any other. Returns whose case has changed.
        """
        self._step = step if self._step < 0 else self._step
        self._busy, self._work, self._seconds = self._busy + busy, self._work + work, self._seconds + seconds
        self._works |= work > 0
        if self._seconds < MEASURED_S or not self._works.any() or not self._work[self._works].all():
            return []
        self._window.append(self._measured())
        self._begin()
        return self._judge(step) if len(self._window) == WINDOW else []

    def _measured(self) -> _Measured:
        works = self._works
        with np.errstate(divide="ignore", invalid="ignore"):
            slowness = _by_median(np.where(works, self._busy / self._work, np.nan))
        return _Measured(self._step, slowness, _by_median(np.where(works, self._busy, np.nan)),
                         np.where(works, self._busy, 0.0) / self._seconds)

    def slowness(self) -> np.ndarray | None:
        """Return how many times as long as the median rank each takes for equal work, by measurement (`WINDOW`, ranks).

        None: that is not known of all ranks yet.
        """
        if len(self._window) < WINDOW:
            return None
        found = np.array([measured.slowness for measured in self._window])
        return found if np.isfinite(found).all() and (found > 0).all() else None

    def busiest(self) -> float:
        """Return the share of the time that the busiest rank is busy."""
        return float(np.median([measured.busy.max() for measured in self._window]))

    def _judge(self, step: int) -> list[Straggler]:
        slowness, busier, busy = (np.array([getattr(measured, name) for measured in self._window])
                                  for name in ("slowness", "busier", "busy"))
        # A rank may have a row less than others, and take as long as they do for what does not depend on rows.
        least = np.minimum(slowness, busier)
        waits = busy - np.array([median_low(row) for row in busy.tolist()])[:, None]
        ratio, wait = np.median(slowness, axis=0), np.median(waits, axis=0)
        changed = []
        slow = {straggler.rank: straggler for straggler in self.found if straggler.until_step is None}
        for rank in range(self._ranks):
            straggler = slow.get(rank)
            if straggler is None:
                if (least[:, rank] > SLOW).all() and wait[rank] > LEAST_WAIT:
                    straggler = Straggler(rank, float(ratio[rank]), float(wait[rank]), self._window[0].step)
                    self.found.append(straggler)
                    changed.append(straggler)
                    self._said[rank] = straggler.ratio
            elif ratio[rank] < STILL_SLOW:
                straggler.until_step = step
                changed.append(straggler)
            elif np.isfinite(ratio[rank]):
                straggler.ratio, straggler.wait = float(ratio[rank]), float(wait[rank])
                if not 1 / CHANGED < straggler.ratio / self._said[rank] < CHANGED:
                    changed.append(straggler)
                    self._said[rank] = straggler.ratio
        return changed


def _by_median(seconds: np.ndarray) -> np.ndarray:
    """Return times as multiples of the median, of two ranks the faster one's; NaN are left out, and stay."""
    known = seconds[~np.isnan(seconds)]
    middle = median_low(known.tolist()) if len(known) else np.nan
    return seconds / (middle if middle > 0 else np.nan)


class Pace:
    """How fast ranks get on with ``algorithm``, told whenever they meet (`dml_hpc.store.saving.Gauge`). Collective.

    ``tell(line)`` speaks to the user, who is told what would help: ``advice``.
    """

    def __init__(self, comm: Intracomm, algorithm: Algorithm, tell: Callable[[str], None], advice: str = ""):
        self._algorithm, self._tell, self._advice = algorithm, tell, advice
        self._places: list[dict[str, str]] = comm.allgather(place())
        self.stragglers = Stragglers(comm.size)
        self._before = (0.0, 0.0, 0.0)

    def start(self) -> None:
        """Measure from now on."""
        self.stragglers.forget()
        self._before = self._now()

    def _now(self) -> tuple[float, float, float]:
        algorithm = self._algorithm
        spent = algorithm.clock.seconds
        return spent["read"] + spent["compute"], algorithm.work, algorithm.trace.seconds

    def own(self) -> list[float]:
        """Return how long this rank was busy since it was last asked, its work, and how long that is ago."""
        now, before = self._now(), self._before
        self._before = now
        return [after - earlier for after, earlier in zip(now, before, strict=True)]

    def met(self, step: int, table: np.ndarray) -> None:
        """Judge what all ranks' `own` (ranks, 3) say after ``step`` steps."""
        for straggler in self.stragglers.seen(step, table[:, 0], table[:, 1], float(table[:, 2].max())):
            rank, there = straggler.rank, self._places[straggler.rank]
            who = f"slow     rank {rank} ({there['host']}, {there['cores']})"
            if straggler.until_step is not None:
                self._tell(f"{who} is no slower than the others any more, after step {step:,}")
            else:
                self._tell(f"{who} has taken {straggler.ratio:.2g} times as long as the median rank for the same work "
                           f"since step {straggler.since_step:,}: others wait for it {straggler.wait:.0%} of the time"
                           + self._advice)

    def result(self) -> list[dict[str, Any]]:
        """Return the ranks that were slow, where they run, and how slow they were, as a record tells it."""
        return [{**asdict(one), **self._places[one.rank]} for one in self.stragglers.found]


def place() -> dict[str, str]:
    """Return where this process runs: its host and the cores it may use."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {"host": platform.node(), "cores": _ranges(cores)}


def _ranges(numbers: list[int]) -> str:
    """Return numbers as "cores 0-3, 8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    told = ", ".join("-".join(map(str, run)) for run in runs)
    return "all cores" if not told else f"core{'s' * (len(numbers) > 1)} {told}"
