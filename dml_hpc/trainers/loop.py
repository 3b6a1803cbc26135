"""The loop every algorithm runs in: until a limit is reached, the loss no longer falls, or it rises."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.errors import AgreedError
from dml_hpc.store.saving import Saving
from dml_hpc.store.state import Kept, State, Values
from dml_hpc.trainers.algorithm import Algorithm, Met
from dml_hpc.trainers.rebalancing import Rebalancing
from dml_hpc.trainers.stragglers import Pace
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
TIME_OVER = "the time is over"


@dataclass(frozen=True)
class Limits:
    """When a run ends: after ``steps`` (None: no limit), or an epoch that lowers the loss by less than ``tolerance``
    of it (None: never mind), or ``patience`` looks at the validation data that find it no better. ``wanted`` is what
    the user has said of it: a run that has ended goes on only where that is something else."""

    steps: int | None
    tolerance: float | None = None
    patience: int = 3
    wanted: Values = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a run, the same on every rank.

    ``parameters`` (size,) by standardised features; ``losses`` the mean loss of each epoch as it was met,
    ``validation`` that of the validation data after each; ``stopped`` says why the run ended. ``steps`` and ``rows``
    count those before the run was resumed too, ``earlier_rows`` these alone.
    """

    parameters: np.ndarray
    steps: int = 0
    rows: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    stopped: str = "all steps are taken"
    began: float = math.nan
    """The mean loss in the beginning."""
    earlier_rows: int = 0


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is found and named
def train(comm: Intracomm, algorithm: Algorithm, limits: Limits, on_step: Callable[[Met], None],
          validate: Callable[[np.ndarray], float] | None, diverged: Callable[[int, str], AgreedError],
          saving: Saving | None = None, pace: Pace | None = None, rebalancing: Rebalancing | None = None) -> Outcome:
    """Collective: let ``algorithm`` take steps until one of the ``limits`` is reached.

    ``validate(parameters)`` (collective) returns the loss on validation data; with it, the best parameters that were
    looked at are returned, else the last. ``diverged(step, how)`` (collective) makes the error that is raised on all
    ranks when the loss is no longer finite, or has risen far above where it began. ``saving`` keeps what is needed to
    go on from any step, and knows where to begin. ``pace`` is told how busy ranks are, and ``rebalancing`` moves rows
    between epochs.
    """
    saving = saving or Saving(comm, lambda line: None)
    clock, trace, epoch_steps = algorithm.clock, algorithm.trace, algorithm.steps
    spacing = UNKNOWN_SPACING if limits.steps is None else max(1, limits.steps // POINTS)
    course = _Course(_Rise(max(LEAST_WINDOW, min(epoch_steps, 200))), limits.patience)
    if saving.kept is not None:
        course.restore(saving.kept.part("loop"), limits.wanted)
        algorithm.restore(saving.kept.part("algorithm"))
        trace.earlier_s = course.seconds
    earlier_rows = course.rows
    clock.start()
    trace.start()

    def state() -> State:
        whole = State()
        whole.add("loop", course.state(comm.rank, comm.size, trace.seconds, limits.wanted))
        whole.add("algorithm", algorithm.state())
        return whole

    def end_epoch() -> None:
        course.end_epoch()
        if validate is not None:
            parameters = algorithm.parameters()
            course.look(validate(parameters), parameters)
            clock.start()

    def look() -> dict[str, Any]:
        return {"epoch": course.step / epoch_steps, "loss": course.loss, "examples": course.rows - earlier_rows}

    if pace is not None:
        saving.gauges.append(pace)
    saving.watch(course.step, limits.steps, look, clock.so_far)
    if saving.active:
        algorithm.pause = lambda chunks: saving.pause(course.step, chunks, state)
    saving.start(course.step)
    if pace is not None:
        pace.start()
    if course.step == limits.steps and course.amid_epoch:  # a shorter run than the one that is gone on from
        end_epoch()
    while course.stopped is None and (limits.steps is None or course.step < limits.steps):
        at_step(course.step + 1)
        met = algorithm.advance(course.step)
        if met.done is not None and not met.rows:  # whatever the limits, it had come to its end before
            course.stopped = met.done
            break
        course.count(met, diverged)
        on_step(met)
        clock.lap("compute")
        over = met.late or met.done is not None or course.step == limits.steps
        epoch_ends = course.step % epoch_steps == 0
        if epoch_ends or over or course.step % spacing == 0:
            clock.settle(comm)
            trace.point()
            clock.start()
        if met.late or met.done is not None:
            course.stopped = met.done or TIME_OVER
        if epoch_ends or over:
            end_epoch()
            if limits.tolerance is not None and _settled(course.losses, limits.tolerance):
                course.stopped = course.stopped or "the loss no longer falls"
        if course.stopped is None and course.step != limits.steps:
            if epoch_ends and rebalancing is not None:
                rebalancing.look(course.step)
                clock.start()
            saving.after(course.step, state)
            clock.lap("communicate")
    saving.complete(course.step, state)
    best = course.best_parameters
    return Outcome(algorithm.parameters().copy() if best is None else best, course.step, course.rows, course.losses,
                   course.validation, course.stopped or Outcome.stopped, course.rise.first, earlier_rows)


@dataclass
class _Course:
    """How far a run has come, and what the loop must remember of it."""

    rise: _Rise
    patience: int
    step: int = 0
    rows: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    stopped: str | None = None
    seconds: float = 0.0
    _epoch_loss: float = 0.0
    _epoch_rows: int = 0
    _best: float = math.inf
    _misses: int = 0
    best_parameters: np.ndarray | None = None

    def count(self, met: Met, diverged: Callable[[int, str], AgreedError]) -> None:
        """Count a step. Raises what ``diverged`` makes of a loss that goes wrong."""
        self.step += 1
        if not math.isfinite(met.loss):
            raise diverged(self.step - 1, f"became {met.loss}")
        if met.rows and self.rise.seen(met.loss / met.rows, met.rows):
            raise diverged(self.step - 1, f"rose from {self.rise.first:.4g} to {self.rise.recent:.4g}")
        self._epoch_loss, self._epoch_rows = self._epoch_loss + met.loss, self._epoch_rows + met.rows
        self.rows += met.rows

    @property
    def amid_epoch(self) -> bool:
        """Whether an epoch has begun, and is not written down."""
        return self._epoch_rows > 0

    @property
    def loss(self) -> float | None:
        """The mean loss of this epoch so far, or of the one before; None: none is known."""
        if self._epoch_rows:
            return self._epoch_loss / self._epoch_rows
        return self.losses[-1] if self.losses else None

    def end_epoch(self) -> None:
        """Write down the mean loss of the epoch, or of what was met of it."""
        self.losses.append(self._epoch_loss / max(self._epoch_rows, 1))
        self._epoch_loss, self._epoch_rows = 0.0, 0

    def look(self, loss: float, parameters: np.ndarray) -> None:
        """Count a look at the validation data, under which ``parameters`` have a ``loss``."""
        self.validation.append(loss)
        if loss < self._best:
            self._best, self._misses, self.best_parameters = loss, 0, parameters.copy()
            return
        self._misses += 1
        if self._misses >= self.patience:
            self.stopped = f"the loss on the validation data has not fallen {self._misses} times"

    def state(self, rank: int, ranks: int, seconds: float, wanted: Values) -> State:
        """Return all of this, on which ``seconds`` have been spent, as ``wanted`` by the user."""
        values = {name: getattr(self, name) for name in _REMEMBERED}
        state = State({**values, "seconds": seconds, "rise": self.rise.values(), "wanted": wanted})
        if self.best_parameters is not None:
            state.put_shared("best", self.best_parameters, rank, ranks)
        return state

    def restore(self, kept: Kept, wanted: Values) -> None:
        """Go on from where `state` was taken."""
        for name in _REMEMBERED:
            setattr(self, name, kept.values[name])
        if kept.values["wanted"] != wanted:
            self.stopped = None
        self.rise.restore(kept.values["rise"])
        self.seconds = kept.values["seconds"]
        if "best" in kept.names():
            self.best_parameters = kept.vector("best")


_REMEMBERED = ("step", "rows", "losses", "validation", "stopped", "_epoch_loss", "_epoch_rows", "_best", "_misses")


def _settled(losses: list[float], tolerance: float) -> bool:
    return len(losses) > 1 and losses[-2] - losses[-1] < tolerance * abs(losses[-2])


class _Rise:
    """Whether the mean loss over a window of steps is far above that of the start: the first step's, or window's."""

    def __init__(self, window: int):
        self._window = window
        self._sum, self._count, self._rows = 0.0, 0, 0
        self.first, self.recent = math.nan, math.nan

    def values(self) -> list[float]:
        """Return all that it remembers."""
        return [self._sum, self._count, self._rows, self.first, self.recent]

    def restore(self, values: list[float]) -> None:
        """Go on from `values`."""
        self._sum, count, rows, self.first, self.recent = values
        self._count, self._rows = int(count), int(rows)

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
