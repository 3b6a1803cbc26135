"""``sync``: synchronous mini-batch SGD. Every step, all ranks sum one gradient and take the same step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.reading import Reader
from dml_hpc.errors import AgreedError
from dml_hpc.optim.schedules import Schedule
from dml_hpc.optim.sgd import Sgd
from dml_hpc.trainers.gradient import Gradient
from dml_hpc.trainers.problem import Problem
from dml_hpc.watch import at_step


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is found and named
def train_sync(reducer: Reducer, problem: Problem, reader: Reader, gradient: Gradient, weights: np.ndarray,
               schedule: Schedule, momentum: float, clock: Clock, on_step: Callable[[int, float], None]) -> list[float]:
    """Collective: minimise the problem from ``weights`` (features + 1, the same on every rank), in place.

    Afterwards every rank holds the same weights. ``reader`` gives this rank's rows. ``reducer`` sums
    ``gradient.dtype`` and gathers weights of the problem's dtype, each features + 1 + ``gradient.extra`` elements: each
    rank updates the weights whose gradient it sums, and holds the optimiser's state for these alone.
    ``on_step(rows, loss)`` is told each step's rows (of all ranks) and mean loss. Returns the mean loss of each epoch's
    batches, as they were met. Raises `AgreedError` on all ranks when the loss is no longer finite.
    """
    batches = problem.batches
    step_taker = _StepTaker(reducer, gradient, len(weights),
                            Sgd(reducer.owned, problem.dtype, len(weights) - 1, momentum, problem.l2, gradient.repeats))
    step_taker.weights[:] = weights
    folded = np.empty_like(weights)
    losses, loss_sum, seen = [], 0.0, 0
    clock.start()
    for step in range(schedule.steps):
        at_step(step + 1)
        problem.scaling.fold(step_taker.weights, folded)
        batch_loss, again = None, False
        while batch_loss is None:
            parts, count = reader.take(*divmod(step, batches.steps))
            waited_s = reader.waited_s
            clock.lap("read")
            gradient.fill(parts, folded, reducer.buffer)
            clock.lap("compute", reader.waited_s - waited_s)
            step_taker.take(schedule.step_size(step), count, again)
            clock.meet(step_taker.update_s)
            batch_loss, again = gradient.judge(step_taker.last, count), True
        if not math.isfinite(batch_loss):
            raise AgreedError(
                f"the loss became {batch_loss} at step {step + 1}: the step size {schedule.step_size(step):.3g} is "
                "too large for this data (try a tenth of it), or the data holds NaN or infinity", 0, 1)
        loss_sum, seen = loss_sum + batch_loss, seen + count
        on_step(count, batch_loss / max(count, 1))
        clock.lap("compute")
        if (step + 1) % batches.steps == 0 or step + 1 == schedule.steps:
            clock.settle(reducer.comm)
            losses.append(loss_sum / max(seen, 1))
            loss_sum, seen = 0.0, 0
            clock.start()
    weights[:] = step_taker.weights
    return losses


class _StepTaker:
    """Sums a gradient and updates the weights in one go.

    ``weights`` (count,) are all ranks' view of them; ``last`` is what the sum ends with after their gradient, its first
    element, the loss, in real units. ``update_s`` is the time that this rank spent updating in the last step.
    """

    def __init__(self, reducer: Reducer, gradient: Gradient, count: int, optimiser: Sgd):
        assert reducer.weights is not None
        self.weights, self.last = reducer.weights[:count], reducer.weights[count:]
        self._reducer, self._gradient, self._optimiser = reducer, gradient, optimiser
        self._step = (0.0, 0.0, False)

    def take(self, step_size: float, rows: int, again: bool) -> None:
        """Collective: take one step from the ranks' sums over ``rows`` rows in all; ``again``: instead of the last."""
        self._step = self._gradient.unit / max(rows, 1), step_size, again
        self.update_s = 0.0
        self._reducer.reduce_update(self._update)

    def _update(self, summed: np.ndarray, start: int, stop: int) -> None:
        """See `dml_hpc.comm.reducer.Update`."""
        began = time.perf_counter()
        count = len(self.weights)
        unit, step_size, again = self._step
        if start < count:
            part = self.weights[start:stop]
            self._optimiser.update(part, summed[:len(part)], start, unit, step_size, again)
        if stop > count:
            first = max(start, count)
            self.last[first - count:stop - count] = summed[first - start:]
            if first == count:
                self.last[0] *= self._gradient.loss_unit
        self.update_s += time.perf_counter() - began
