"""``sync``: synchronous mini-batch SGD. Every step, all ranks sum one gradient and take the same step."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer, takes_lazy_sums
from dml_hpc.data.reading import Reader
from dml_hpc.device import Array
from dml_hpc.optim.optimiser import Optimiser
from dml_hpc.optim.schedules import Schedule
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.gradient import Gradient
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace
from dml_hpc.trainers.vectors import Vectors

OpenOptimiser = Callable[[tuple[int, int]], Optimiser]
"""Opens the optimiser of a range of the parameters."""


class Sync(Algorithm):
    """Starts from ``parameters`` (size,), the same on every rank. ``vectors`` says where vectors lie.

    ``reducer`` sums ``gradient.dtype`` and gathers weights of the problem's dtype, each size + ``gradient.extra``
    elements: each rank updates the weights whose gradient it sums, and holds the optimiser's state for these alone.
    With ``clip_norm`` the gradient is shortened to that length where it is longer, which needs the whole sum on every
    rank before any weight changes; ``reducer`` then needs no weights.
    """

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 vectors: Vectors, reducer: Reducer, gradient: Gradient, open_optimiser: OpenOptimiser,
                 schedule: Schedule, parameters: np.ndarray, clip_norm: float | None = None):
        super().__init__(problem, reader, clock, trace, time_over)
        self.steps = reader.steps
        self._vectors, self._reducer, self._gradient, self._schedule = vectors, reducer, gradient, schedule
        self._taker: _FusedSteps | _ClippedSteps
        if clip_norm is None:
            self._taker = _FusedSteps(vectors, reducer, gradient, open_optimiser, parameters)
        else:
            self._taker = _ClippedSteps(vectors, reducer, gradient, open_optimiser, parameters, clip_norm)
        # Where nothing is scaled the weights themselves will do, unless a step may have to be taken again from them.
        self._as_they_are = problem.scaling.trivial and not gradient.repeats
        self._folded = self._folding = vectors.empty(0 if self._as_they_are else len(parameters), problem.dtype)

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        clock, reader, taker, gradient = self.clock, self.reader, self._taker, self._gradient
        self.step_size = self._schedule.step_size(step)
        self._folded = self._vectors.scaling.fold(taker.weights, self._folding)
        if self._folded is taker.weights and not self._as_they_are:
            self._folding[:] = taker.weights
            self._folded = self._folding
        loss, again, late = None, False, self.time_over()
        while loss is None:
            parts, rows = reader.take(*divmod(step, self.steps))
            waited_s = reader.waited_s
            clock.lap("read")
            gradient.fill(parts, self._folded, self._reducer.buffer, late)
            if self._reducer.comm.size > 1:
                self._vectors.wait()  # so that time is counted as what it is spent on
            clock.lap("compute", reader.waited_s - waited_s)
            last = taker.take(step, self.step_size, max(rows, 1), again)
            if self._vectors.device is not None and self._reducer.comm.size == 1:
                clock.lap("compute")
            else:
                clock.meet(taker.update_s)
            loss, again = gradient.judge(last, rows), True
        self.trace.note(reader.count / self.steps, rows, loss)
        return Met(rows, loss, bool(last[-1] > 0))

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        return self._vectors.host(self._taker.parameters())

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._vectors.host(self._folded), *divmod(step, self.steps))


class _FusedSteps:
    """Sums a gradient and updates the weights in one go.

    ``weights`` (count,) are all ranks' view of them. ``update_s`` is the time that this rank spent updating in the last
    step (on a device: queueing it).
    """

    def __init__(self, vectors: Vectors, reducer: Reducer, gradient: Gradient, open_optimiser: OpenOptimiser,
                 parameters: np.ndarray):
        assert reducer.weights is not None
        count = len(parameters)
        self.weights, self._last = reducer.weights[:count], reducer.weights[count:]
        vectors.copy(parameters, self.weights)
        self._vectors, self._reducer, self._gradient = vectors, reducer, gradient
        start, stop = reducer.owned
        self._owned = min(start, count), min(stop, count)
        # Of a small vector one rank may own all, and the others nothing.
        self._all_own_all = reducer.comm.allreduce(int(self._owned == (0, count))) == reducer.comm.size
        self._optimiser = open_optimiser(self._owned)
        self._step = (0, 0.0, 0.0, False)
        self.update_s = 0.0

    def take(self, number: int, step_size: float, weight: float, again: bool) -> np.ndarray:
        """Collective: take one step from the ranks' sums over rows of ``weight``; ``again``: instead of the last.

        Returns what the sum ends with after the weights' gradient, its first element, the loss, in real units.
        """
        self._step = number + 1, self._gradient.unit / weight, step_size, again
        self.update_s = 0.0
        self._reducer.reduce_update(self._update)
        return self._vectors.host(self._last)

    @takes_lazy_sums
    def _update(self, summed: Array, start: int, stop: int) -> None:
        """See `dml_hpc.comm.reducer.Update`."""
        began = time.perf_counter()
        count = len(self.weights)
        number, unit, step_size, again = self._step
        if start < count:
            part = self.weights[start:stop]
            self._optimiser.update(part, summed[:len(part)], start, unit, step_size, number, again)
        if stop > count:
            first = max(start, count)
            self._vectors.assign(self._last[first - count:stop - count], summed[first - start:])
            if first == count and self._gradient.loss_unit != 1:
                self._last[:1] *= self._gradient.loss_unit
        self.update_s += time.perf_counter() - began

    def parameters(self) -> np.ndarray:
        """Collective: return the weights, or the average of their iterates where one is kept."""
        average = self._optimiser.average
        if average is None:
            return self.weights
        if self._all_own_all:
            return average  # nothing to gather: every rank has the same
        own = slice(*self._owned)
        now = self.weights[own].copy()
        self._gather(average)
        averaged = self.weights.copy()
        self._gather(now)
        return averaged

    def _gather(self, own: np.ndarray) -> None:
        """Collective: make ``weights`` what their owners hold in ``own``."""
        def put(summed: np.ndarray, start: int, stop: int) -> None:
            stop = min(stop, self._owned[1])
            if start < stop:
                self.weights[start:stop] = own[start - self._owned[0]:stop - self._owned[0]]

        self._reducer.buffer[:] = 0
        self._reducer.reduce_update(put)


class _ClippedSteps:
    """Sums a gradient, shortens it to at most ``clip_norm``, and updates all weights on every rank alike.

    See `_FusedSteps`.
    """

    def __init__(self, vectors: Vectors, reducer: Reducer, gradient: Gradient, open_optimiser: OpenOptimiser,
                 parameters: np.ndarray, clip_norm: float):
        self.weights = vectors.empty(len(parameters), parameters.dtype)
        vectors.copy(parameters, self.weights)
        self._vectors, self._reducer, self._gradient, self._clip_norm = vectors, reducer, gradient, clip_norm
        self._optimiser = open_optimiser((0, len(parameters)))
        self.update_s = 0.0

    def take(self, number: int, step_size: float, weight: float, again: bool) -> np.ndarray:
        """See `_FusedSteps.take`."""
        self._reducer.allreduce()
        began = time.perf_counter()
        count, unit = len(self.weights), self._gradient.unit / weight
        summed = self._reducer.total[:count]
        norm = unit * self._vectors.norm(summed)
        shorter = min(1.0, self._clip_norm / norm) if norm > 0 else 1.0
        self._optimiser.update(self.weights, summed, 0, unit * shorter, step_size, number + 1, again)
        last = self._vectors.host(self._reducer.total[count:]).astype(np.float64)
        last[0] *= self._gradient.loss_unit
        self.update_s = time.perf_counter() - began
        return last

    def parameters(self) -> np.ndarray:
        """See `_FusedSteps.parameters`."""
        return self.weights if self._optimiser.average is None else self._optimiser.average
