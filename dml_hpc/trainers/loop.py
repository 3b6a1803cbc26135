"""The loop every algorithm runs in: until a limit is reached, the loss no longer falls, or it rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.errors import AgreedError
from dml_hpc.trainers.algorithm import Algorithm, Met
from dml_hpc.watch import at_step

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

RISEN = 10.0
"""A loss so many times that of the beginning is not on its way anywhere."""
LEAPT, LEAST_ROWS = 1000.0, 100
"""A step of so many rows at least, whose loss is so many times the first one's, need not be averaged with others."""
LEAST_WINDOW = 20
"""Steps over which the loss is averaged, at least, before it is said to rise."""
POINTS = 40
"""How often, about, a run of known length looks at its clock and writes down where it is."""
UNKNOWN_SPACING = 64


@dataclass(frozen=True)
class Limits:
    """When a run ends: after ``steps`` (None: no limit), or an epoch that lowers the loss by less than ``tolerance``
    of it (None: never mind), or ``patience`` looks at the validation data that find it no better."""

    steps: int | None
    tolerance: float | None = None
    patience: int = 3


@dataclass
class Outcome:
    """What came of a run, the same on every rank.

    ``parameters`` (size,) by standardised features; ``losses`` the mean loss of each epoch as it was met,
    ``validation`` that of the validation data after each; ``stopped`` says why the run ended.
    """

    parameters: np.ndarray
    steps: int = 0
    rows: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    stopped: str = "all steps are taken"
    began: float = math.nan
    """The mean loss in the beginning."""


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is found and named
def train(comm: Intracomm, algorithm: Algorithm, limits: Limits, on_step: Callable[[Met], None],
          validate: Callable[[np.ndarray], float] | None, diverged: Callable[[int, str], AgreedError]) -> Outcome:
    """Collective: let ``algorithm`` take steps until one of the ``limits`` is reached.

    ``validate(parameters)`` (collective) returns the loss on validation data; with it, the best parameters that were
    looked at are returned, else the last. ``diverged(step, how)`` (collective) makes the error that is raised on all
    ranks when the loss is no longer finite, or has risen far above where it began.
    """
    clock, trace, epoch_steps = algorithm.clock, algorithm.trace, algorithm.steps
    outcome = Outcome(np.empty(0))
    spacing = UNKNOWN_SPACING if limits.steps is None else max(1, limits.steps // POINTS)
    rise = _Rise(max(LEAST_WINDOW, min(epoch_steps, 200)))
    epoch_loss, epoch_rows, best, misses, step = 0.0, 0, math.inf, 0, 0
    clock.start()
    trace.start()
    while limits.steps is None or step < limits.steps:
        at_step(step + 1)
        met = algorithm.advance(step)
        step += 1
        if not math.isfinite(met.loss):
            raise diverged(step - 1, f"became {met.loss}")
        mean = met.loss / max(met.rows, 1)
        if met.rows and rise.seen(mean, met.rows):
            raise diverged(step - 1, f"rose from {rise.first:.4g} to {rise.recent:.4g}")
        epoch_loss, epoch_rows, outcome.rows = epoch_loss + met.loss, epoch_rows + met.rows, outcome.rows + met.rows
        on_step(met)
        clock.lap("compute")
        over = met.late or met.done is not None or step == limits.steps
        epoch_ends = step % epoch_steps == 0
        if epoch_ends or over or step % spacing == 0:
            clock.settle(comm)
            trace.point()
            clock.start()
        if met.late or met.done is not None:
            outcome.stopped = met.done or "the time is over"
        if epoch_ends or over:
            outcome.losses.append(epoch_loss / max(epoch_rows, 1))
            epoch_loss, epoch_rows = 0.0, 0
            if validate is not None:
                parameters = algorithm.parameters()
                outcome.validation.append(validate(parameters))
                if outcome.validation[-1] < best:
                    best, misses, outcome.parameters = outcome.validation[-1], 0, parameters.copy()
                else:
                    misses += 1
                clock.start()
                if misses == limits.patience:
                    outcome.stopped = f"the loss on the validation data has not fallen {misses} times"
                    break
            if limits.tolerance is not None and _settled(outcome.losses, limits.tolerance):
                outcome.stopped = "the loss no longer falls"
                break
        if over:
            break
    outcome.steps, outcome.began = step, rise.first
    if validate is None or not np.isfinite(best):
        outcome.parameters = algorithm.parameters().copy()
    return outcome


def _settled(losses: list[float], tolerance: float) -> bool:
    return len(losses) > 1 and losses[-2] - losses[-1] < tolerance * abs(losses[-2])


class _Rise:
    """Whether the mean loss over a window of steps is far above that of the start: the first step's, or window's."""

    def __init__(self, window: int):
        self._window = window
        self._sum, self._count, self._rows = 0.0, 0, 0
        self.first, self.recent = math.nan, math.nan

    def seen(self, loss: float, rows: int) -> bool:
        """Count the mean loss of a step of ``rows`` rows; return whether it has risen too far."""
        self._sum, self._count, self._rows = self._sum + loss * rows, self._count + 1, self._rows + rows
        if math.isnan(self.first):
            if self._rows < LEAST_ROWS:
                return False  # a few rows say nothing of the others
            self.first = self._sum / self._rows
        if rows >= LEAST_ROWS and 0 < LEAPT * self.first < loss:
            self.recent = loss
            return True
        if self._count < self._window:
            return False
        begins = math.isnan(self.recent)
        self.recent = self._sum / self._rows
        self._sum, self._count, self._rows = 0.0, 0, 0
        if self.first > 0 and self.recent > RISEN * self.first:
            return True
        if begins:
            self.first = max(self.first, self.recent)
        return False
