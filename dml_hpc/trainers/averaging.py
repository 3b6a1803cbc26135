"""``average``: SimuParallelSGD. Each rank runs sequential SGD over its own rows; the models are averaged once.

Zinkevich, Weimer, Li and Smola, *Parallelized Stochastic Gradient Descent*, NIPS 2010, algorithm 3: deal the rows to
the ranks at random, shuffle locally, learn from one example at a time with a constant step size, average at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.batches import RandomShare
from dml_hpc.data.reading import Reader, Resident
from dml_hpc.errors import JobError
from dml_hpc.trainers.problem import Problem
from dml_hpc.watch import at_step


def train_average(reducer: Reducer, problem: Problem, reader: Reader, offsets: np.ndarray, share: RandomShare,
                  weights: np.ndarray, step_size: float, steps: int, clock: Clock,
                  on_step: Callable[[int, float], None]) -> list[float]:
    """Collective: train on this rank's ``share`` from ``weights`` (features + 1), then average, in place.

    Afterwards every rank holds the average of those ranks that have rows. ``steps`` counts the share's chunks; a
    rank takes one SGD step for each of its rows in them. ``reader`` holds every shard, shard s the rows
    ``offsets[s]`` … ``offsets[s + 1] − 1``. ``reducer`` sums
    features + 2 elements: the weights and, last, 1 for a rank with rows. ``on_step(rows, loss)`` is told this rank's
    rows and their mean loss, each before it was learnt from. Returns the mean of those losses over all ranks,
    by epoch. Raises `JobError` on a rank whose loss is no longer finite.
    """
    scaling = problem.scaling
    met = np.zeros((-(-steps // share.steps), 2))  # by epoch: summed loss, rows
    examples = _Examples(problem, reader, offsets)
    clock.start()
    for step in range(steps):
        at_step(step + 1)
        rows = share.take(*divmod(step, share.steps))
        X, y = examples.gather(rows)
        clock.lap("read")
        loss = problem.objective.sequential_sgd(X, y, examples.order[:len(y)], scaling.shift, scaling.scale, weights,
                                                step_size, problem.l2)
        if not math.isfinite(loss):
            raise JobError(f"the loss became {loss} among the first {(step + 1) * len(rows):,} examples: the step "
                           f"size {step_size:.3g} is too large for this data (try a tenth of it), or the data holds "
                           "NaN or infinity")
        met[step // share.steps] += loss, len(rows)
        on_step(len(rows), loss / max(len(rows), 1))
        clock.lap("compute")
    takes_part = float(share.count > 0)
    np.multiply(weights, takes_part, out=reducer.buffer[:-1])
    reducer.buffer[-1] = takes_part
    clock.lap("compute")
    reducer.allreduce()
    clock.meet()
    np.divide(reducer.total[:-1], max(reducer.total[-1], 1), out=weights)
    clock.lap("compute")
    clock.settle(reducer.comm)
    everywhere = sum(reducer.comm.allgather(met))
    return (everywhere[:, 0] / np.maximum(everywhere[:, 1], 1)).tolist()


class _Examples:
    """Copies of the rows of a chunk, one after the other in the order of visiting; they lie in any shards."""

    def __init__(self, problem: Problem, reader: Reader, offsets: np.ndarray):
        assert isinstance(reader, Resident), "rows from anywhere"
        self._arrays, self._offsets = reader.arrays, offsets
        stored = next((X.dtype for X, _, _ in reader.arrays.values()), problem.dtype)
        self._X = np.empty((RandomShare.CHUNK_ROWS, problem.features), stored)
        self._y = np.empty(RandomShare.CHUNK_ROWS, problem.dtype)
        self.order = np.arange(RandomShare.CHUNK_ROWS)

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return X (count, features) and targets (count,) of the global ``rows``; valid until the next call."""
        shards = np.searchsorted(self._offsets, rows, side="right") - 1
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            X, y, _ = self._arrays[shard]
            local = rows[here] - self._offsets[shard]
            self._X[here] = X[local]
            self._y[here] = y[local]
        return self._X[:len(rows)], self._y[:len(rows)]
