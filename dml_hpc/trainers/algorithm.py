"""What every algorithm is: something that goes on by one step, which all ranks take together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.reading import Reader
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace


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
    ``reader`` what this rank reads, ``step_size`` that of the last step.
    """

    steps: int
    unit = "step"
    searches = False
    """Whether it finds its step sizes itself."""
    reader: Reader
    step_size: float

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool]):
        self.problem, self.reader, self.clock, self.trace, self.time_over = problem, reader, clock, trace, time_over

    @property
    def own_rows(self) -> int:
        """How many rows of the data set are this rank's."""
        return self.reader.count

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

    def epoch_losses(self) -> list[float] | None:
        """Collective: return the mean loss of every epoch as it was met, None: that of the steps says it."""
        return None
