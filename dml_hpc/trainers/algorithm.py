"""What every algorithm is: something that goes on by one step, which all ranks take together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.leaving_out import leave_out_lost
from dml_hpc.data.reading import Reader
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Met(NamedTuple):
    """What a step met, the same on every rank: ``rows`` of all ranks and their summed ``loss``, before they were
    learnt from; ``late``: some rank's time is over; ``done``: why there is no more to do, None: there is."""

    rows: int
    loss: float
    late: bool = False
    done: str | None = None


class Suspects(NamedTuple):
    """What a loss that went wrong was computed from: the rows of a step of an epoch, and the ``parameters`` for rows
    as they are stored."""

    parameters: np.ndarray
    epoch: int
    step: int


class Algorithm(ABC):
    """A way to minimise a problem. All ranks hold one, and call its methods together.

    ``steps`` is the number of steps that make one pass over the data, ``unit`` what a step is called in messages,
    ``reader`` what this rank reads, ``step_size`` that of the last step, NaN before the first.
    """

    steps: int
    unit = "step"
    searches = False
    """Whether it finds its step sizes itself."""
    reader: Reader
    step_size: float = math.nan
    pause: Callable[[int], int] | None = None
    """Collective: called in the middle of steps that may take long, after at most so many chunks of rows on each rank,
    the same number everywhere; returns after how many they are to meet again. `state` may be called in it."""

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool]):
        self.problem, self.reader, self.clock, self.trace, self.time_over = problem, reader, clock, trace, time_over
        self._missed = 0.0

    @property
    def own_rows(self) -> int:
        """How many rows of the data set are this rank's to learn from."""
        return self.reader.used

    @property
    def work(self) -> float:
        """How much this rank has done, in rows as all ranks have them on average: of sparse rows entries count.

        Rows that are left out count as done, at once: a rank that lacks some has time for others.
        """
        reader = self.reader
        cost = reader.work_share * reader.dataset.rows / reader.count if reader.work_share and reader.count else 1.0
        return (self.trace.examples + self._missed) * cost

    def _note(self, passes: float, rows: int, loss: float) -> None:
        """Count so many passes over this rank's rows in the trace, in which all ranks' ``rows`` met ``loss``."""
        self.trace.note(self.reader.used * passes, rows, loss)
        self._missed += self.reader.left_out_rows * passes

    def _lost_rows(self, comm: Intracomm) -> bool:
        """Collective: say whether any rank has lost rows since this was last asked; all ranks leave them out then.

        They are none of the problem's from now on. What was summed over the rows since is to be summed anew.
        """
        reader = self.reader
        if not reader.may_lose:
            return False
        found = leave_out_lost(comm, reader.dataset)
        self.clock.meet()
        if found:
            self.problem.leave_out(reader.dataset)
        return found

    def read_anew(self, open_reader: Callable[[], Reader]) -> None:
        """Collective, between steps: read what ``open_reader()`` returns from now on.

        What was read so far is let go of first, so that rows are not in memory twice.
        """
        del self.reader
        self.reader = open_reader()

    @abstractmethod
    def advance(self, step: int) -> Met:
        """Collective: take step 0, 1, …"""

    @abstractmethod
    def parameters(self) -> np.ndarray:
        """Collective: return the model as it is now (size,), by standardised features, the same on every rank.

        Valid until the next step.
        """

    @abstractmethod
    def suspects(self, step: int) -> Suspects:
        """Return what the loss of the last step, number ``step``, was computed from on this rank."""

    @abstractmethod
    def state(self) -> State:
        """Collective, between steps or in `pause`: return all that later steps depend on, beside problem and options.
        """

    @abstractmethod
    def restore(self, kept: Kept) -> None:
        """Collective, before the first step: go on from where `state` was taken, on any number of ranks.

        A step in whose middle it was taken is the next to be taken.
        """

    def epoch_losses(self) -> list[float] | None:
        """Collective: return the mean loss of every epoch as it was met, None: that of the steps says it."""
        return None
