"""``sync``: synchronous mini-batch SGD. Every step, all ranks sum one gradient and take the same step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.errors import AgreedError
from dml_hpc.optim.schedules import Schedule
from dml_hpc.optim.sgd import Sgd
from dml_hpc.trainers.problem import Problem


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite is found and named
def train_sync(reducer: Reducer, problem: Problem, weights: np.ndarray, schedule: Schedule, momentum: float,
               clock: Clock, on_step: Callable[[int, float], None]) -> list[float]:
    """Collective: minimise the problem from ``weights`` (features + 1, the same on every rank), in place.

    Afterwards every rank holds the same weights. ``reducer`` sums features + 2 elements: the gradient and, last,
    the loss. ``on_step(rows, loss)`` is told each step's rows (of all ranks) and mean loss. Returns the mean loss
    of each epoch's batches, as they were met. Raises `AgreedError` on all ranks when the loss is no longer finite.
    """
    batches = problem.batches
    optimiser = Sgd(weights, momentum)
    gradient, folded = np.empty_like(weights), np.empty_like(weights)
    buffer = reducer.buffer
    losses, loss_sum, seen = [], 0.0, 0
    clock.start()
    for step in range(schedule.steps):
        parts, count = batches.take(*divmod(step, batches.steps))
        clock.lap("read")
        buffer[:] = 0
        problem.scaling.fold(weights, folded)
        buffer[-1] = problem.loss_and_gradient(parts, folded, buffer[:-1])
        clock.lap("compute")
        reducer.allreduce()
        clock.meet()
        batch_loss = float(buffer[-1])
        if not math.isfinite(batch_loss):
            raise AgreedError(
                f"the loss became {batch_loss} at step {step + 1}: the step size {schedule.step_size(step):.3g} is "
                "too large for this data (try a tenth of it), or the data holds NaN or infinity", 0, 1)
        problem.scaling.pull_back(buffer[:-1], gradient)
        gradient /= max(count, 1)
        if problem.l2:
            gradient[:-1] += problem.l2 * weights[:-1]
        optimiser.update(weights, gradient, schedule.step_size(step))
        loss_sum, seen = loss_sum + batch_loss, seen + count
        on_step(count, batch_loss / max(count, 1))
        clock.lap("compute")
        if (step + 1) % batches.steps == 0 or step + 1 == schedule.steps:
            clock.settle(reducer.comm)
            losses.append(loss_sum / max(seen, 1))
            loss_sum, seen = 0.0, 0
            clock.start()
    return losses
