"""``average``: SimuParallelSGD. Each rank runs sequential SGD over its own rows; the models are averaged once.

Zinkevich, Weimer, Li and Smola, *Parallelized Stochastic Gradient Descent*, NIPS 2010, algorithm 3: partition,
shuffle locally, one example at a time with a constant step size, one average at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.errors import JobError
from dml_hpc.trainers.problem import Problem


def train_average(reducer: Reducer, problem: Problem, weights: np.ndarray, step_size: float, steps: int,
                  clock: Clock, on_step: Callable[[int, float], None]) -> list[float]:
    """Collective: train on this rank's rows from ``weights`` (features + 1), then average over the ranks, in place.

    Afterwards every rank holds the average of those ranks that have rows. ``steps`` counts batches of the
    schedule; a rank takes one SGD step for each of its rows in them. ``reducer`` sums features + 2 elements: the
    weights and, last, 1 for a rank with rows. ``on_step(rows, loss)`` is told this rank's rows and their mean
    loss before each was learnt from. Returns this rank's mean loss of each epoch. Raises `JobError` on a rank
    whose weights are no longer finite.
    """
    batches, scaling = problem.batches, problem.scaling
    losses, loss_sum, seen = [], 0.0, 0
    clock.start()
    for step in range(steps):
        parts, count = batches.take(*divmod(step, batches.steps))
        clock.lap("read")
        loss = 0.0
        for part in parts:
            X, y = problem.arrays[part.shard]
            loss += problem.objective.sequential_sgd(X, y, part.rows, scaling.shift, scaling.scale, weights,
                                                     step_size, problem.l2)
        if not math.isfinite(loss):
            raise JobError(f"the loss became {loss} in batch {step + 1}: the step size {step_size:.3g} is too large "
                           "for this data (try a tenth of it), or the data holds NaN or infinity")
        own = sum(len(part.rows) for part in parts)
        loss_sum, seen = loss_sum + loss, seen + own
        on_step(count, loss / max(own, 1))
        if (step + 1) % batches.steps == 0 or step + 1 == steps:
            losses.append(loss_sum / max(seen, 1))
            loss_sum, seen = 0.0, 0
        clock.lap("compute")
    takes_part = float(batches.count > 0)
    np.multiply(weights, takes_part, out=reducer.buffer[:-1])
    reducer.buffer[-1] = takes_part
    clock.lap("compute")
    reducer.allreduce()
    clock.meet()
    np.divide(reducer.buffer[:-1], max(reducer.buffer[-1], 1), out=weights)
    clock.lap("compute")
    clock.settle(reducer.comm)
    return losses
