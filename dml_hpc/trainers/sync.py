"""``sync``: synchronous mini-batch SGD. Every step, all ranks sum one gradient and take the same step."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer, takes_lazy_sums
from dml_hpc.data.reading import Reader
from dml_hpc.device import Array
from dml_hpc.kernels.cuda.sums import LazySum, address
from dml_hpc.optim.optimiser import CHANGING, Optimiser
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.captured import Captured, CapturedGradient, captured_gradient
from dml_hpc.trainers.gradient import Gradient
from dml_hpc.trainers.on_device import DeviceFloatGradient
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
        self._captured: CapturedGradient | None = None
        self._capture()

    def _capture(self) -> None:
        if isinstance(self._gradient, DeviceFloatGradient):
            self._captured = captured_gradient(self._gradient, self.reader, self._fold)

    def read_anew(self, open_reader: Callable[[], Reader]) -> None:
        """See `Algorithm.read_anew`."""
        self._captured = None  # it holds the rows on the device
        super().read_anew(open_reader)
        self._capture()

    def _recapture(self) -> None:
        """Capture steps anew, which have other rows now."""
        self._captured = None
        self._capture()

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        clock, reader, taker, gradient = self.clock, self.reader, self._taker, self._gradient
        self.step_size = self._schedule.step_size(step)
        if self._captured is None:
            self._fold()
        loss, again, late = None, False, self.time_over()
        while loss is None:
            rows, waited_s = self._fill(*divmod(step, self.steps), late)
            if self._reducer.comm.size > 1:
                self._vectors.wait()  # so that time is counted as what it is spent on
            clock.lap("compute", reader.waited_s - waited_s)
            if self._lost_rows(self._reducer.comm):
                self._recapture()
                continue
            last = taker.take(step, self.step_size, max(rows, 1) * self.problem.mean_weight, again)
            if self._vectors.device is not None and self._reducer.comm.size == 1:
                clock.lap("compute")
            else:
                clock.meet(taker.update_s)
            loss, again = gradient.judge(last, rows), True
        loss /= self.problem.mean_weight
        self._note(1 / self.steps, rows, loss)
        return Met(rows, loss, bool(last[-1] > 0))

    def _fill(self, epoch: int, number: int, late: bool) -> tuple[int, float]:
        """Write this rank's share of step ``number`` to the reducer's buffer.

        Returns how many rows the step has on all ranks, and for how long the reader had waited before they were used.
        """
        reader, buffer, captured = self.reader, self._reducer.buffer, self._captured
        known = None if captured is None else captured.again(number, buffer, late)
        if known is not None:
            return known, reader.waited_s
        parts, rows = reader.take(epoch, number)
        waited_s = reader.waited_s
        self.clock.lap("read")
        if captured is None:
            self._gradient.fill(parts, self._folded, buffer, late)
        else:
            captured.fill(number, parts, rows, buffer, late)
        return rows, waited_s

    def _fold(self) -> Array:
        """Return the parameters for rows as they are stored; they stay until the next step."""
        weights = self._taker.weights
        self._folded = self._vectors.scaling.fold(weights, self._folding)
        if self._folded is weights and not self._as_they_are:
            self._folding[:] = weights
            self._folded = self._folding
        return self._folded

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        return self._vectors.host(self._taker.parameters())

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._vectors.host(self._folded), *divmod(step, self.steps))

    def state(self) -> State:
        """See `Algorithm.state`: "weights" and the optimiser's vectors, of the same names in all forms of ``sync``.

        What a compressing reducer has not sent yet is not part of it, and lost where a run goes on from it.
        """
        state = State(self._gradient.state())
        self._taker.put(state)
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`."""
        self._gradient.restore(kept.values)
        self._taker.restore(kept)


def all_own_all(reducer: Reducer, owned: tuple[int, int], count: int) -> bool:
    """Collective: say whether all of ``count`` elements are every rank's own; of few, one rank may own all alone."""
    return reducer.comm.allreduce(int(owned == (0, count))) == reducer.comm.size


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
        self._all_own_all = all_own_all(reducer, self._owned, count)
        self._optimiser = open_optimiser(self._owned)
        self._step = (0, 0.0, 0.0, False)
        self.update_s = 0.0
        self._captured: Captured | None = None
        if vectors.device is not None and not gradient.repeats:
            self._captured = Captured(vectors.device)
            self._changing = vectors.device.empty(CHANGING, np.float64)
            self._told = vectors.device.pinned(CHANGING, np.float64)

    def take(self, number: int, step_size: float, weight: float, again: bool) -> np.ndarray:
        """Collective: take one step from the ranks' sums over rows of ``weight``; ``again``: instead of the last.

        Returns what the sum ends with after the weights' gradient, its first element, the loss, in real units.
        """
        self._step = number + 1, self._gradient.unit / weight, step_size, again
        if self._captured is not None:
            self._told[:] = self._optimiser.changing(self._gradient.unit / weight, step_size, number + 1)
        self.update_s = 0.0
        self._reducer.reduce_update(self._update)
        return self._vectors.host(self._last)

    @takes_lazy_sums
    def _update(self, summed: Array, start: int, stop: int) -> None:
        """See `dml_hpc.comm.reducer.Update`."""
        began = time.perf_counter()
        if self._captured is None:
            self._take(summed, start, stop)
        else:
            where = (address(summed.table), summed.start) if isinstance(summed, LazySum) else (address(summed),)
            self._captured.queue((start, stop, *where), lambda: partial(self._take_as_told, summed, start, stop))
        self.update_s += time.perf_counter() - began

    def _take_as_told(self, summed: Array, start: int, stop: int) -> None:
        """Do what `_take` does; what changes from step to step is copied from where it has been written."""
        assert self._vectors.device is not None
        self._vectors.device.load(self._changing, self._told)
        self._take(summed, start, stop, self._changing)

    def _take(self, summed: Array, start: int, stop: int, changing: Array | None = None) -> None:
        count = len(self.weights)
        number, unit, step_size, again = self._step
        if start < count:
            part = self.weights[start:stop]
            self._optimiser.update(part, summed[:len(part)], start, unit, step_size, number, again, changing)
        if stop > count:
            first = max(start, count)
            self._vectors.assign(self._last[first - count:stop - count], summed[first - start:])
            if first == count and self._gradient.loss_unit != 1:
                self._last[:1] *= self._gradient.loss_unit

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

    def put(self, state: State) -> None:
        """Add all that later steps depend on to ``state``."""
        vectors, comm, count = self._vectors, self._reducer.comm, len(self.weights)
        vectors.put_shared(state, "weights", self.weights, comm)
        for name, vector in self._optimiser.vectors().items():
            if self._all_own_all:
                vectors.put_shared(state, name, vector, comm)
            else:
                vectors.put(state, name, vector, self._owned[0], count)

    def restore(self, kept: Kept) -> None:
        """Take back what `put` gave; weights that ranks see in one place are written by each of them, alike."""
        self._vectors.take(kept, "weights", self.weights)
        for name, vector in self._optimiser.vectors().items():
            self._vectors.take(kept, name, vector, self._owned[0])

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

    def put(self, state: State) -> None:
        """See `_FusedSteps.put`."""
        for name, vector in {"weights": self.weights, **self._optimiser.vectors()}.items():
            self._vectors.put_shared(state, name, vector, self._reducer.comm)

    def restore(self, kept: Kept) -> None:
        """See `_FusedSteps.restore`."""
        for name, vector in {"weights": self.weights, **self._optimiser.vectors()}.items():
            self._vectors.take(kept, name, vector)
