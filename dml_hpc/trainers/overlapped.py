"""``sync`` for networks, with sums on their way while the rank computes: the same steps, in less time.

The parameters are cut into buckets, layer by layer. While the backward pass still computes earlier layers, the
gradients of later ones are summed and their owners take the step; the weights travel back in the order in which the
next forward pass needs them, so that it begins with the first layer while the later ones are under way (as fully
sharded data parallel trainers do: Zhao et al., *PyTorch FSDP*, VLDB 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.background import take_naps
from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.reading import Reader
from dml_hpc.layout import split
from dml_hpc.objectives.network import Network
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.sync import OpenOptimiser, all_own_all
from dml_hpc.trainers.trace import Trace

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

LEAST_BUCKET = 1 << 16
"""Elements; smaller layers share a bucket with their neighbours."""


class Bucket:
    """Elements ``start`` … ``stop − 1`` of the parameters, with a reducer of their own.

    Of the weights each rank keeps those that it owns; `gather` gives every rank all of them.
    """

    def __init__(self, start: int, stop: int, reducer: Reducer, open_optimiser: OpenOptimiser, parameters: np.ndarray):
        self.start, self.stop, self._reducer = start, stop, reducer
        first, last = reducer.owned
        self._optimiser = open_optimiser((start + first, start + last))
        self._weights = parameters[start + first:start + last].copy()
        self._own = slice(first, last)
        self._all_own_all = all_own_all(reducer, reducer.owned, stop - start)

    def put(self, gradient: np.ndarray) -> None:
        """Copy this rank's gradient to where it is summed from."""
        self._reducer.buffer[:] = gradient[self.start:self.stop]

    def step(self, unit: float, step_size: float, number: int) -> None:
        """Collective: sum the gradients, and take the step with the elements that this rank owns."""
        self._reducer.reduce_scatter()
        self._optimiser.update(self._weights, self._reducer.total[self._own], self.start + self._own.start, unit,
                               step_size, number)

    def gather(self) -> None:
        """Collective: give every rank the weights as they are now, for `take`."""
        self._reducer.total[self._own] = self._weights
        self._reducer.allgather()

    def take(self, parameters: np.ndarray) -> None:
        """Copy what was gathered to ``parameters`` (size,)."""
        parameters[self.start:self.stop] = self._reducer.total

    def put_state(self, state: State, total: int) -> None:
        """Add the optimiser's vectors to ``state``, as parts of vectors of ``total`` elements."""
        comm = self._reducer.comm
        for name, vector in self._optimiser.vectors().items():
            if self._all_own_all:
                first, last = split(len(vector), comm.size, comm.rank)
                state.put(name, vector[first:last], self.start + first, total)
            else:
                state.put(name, vector, self.start + self._own.start, total)

    def restore(self, kept: Kept, parameters: np.ndarray) -> None:
        """Take them back, and the weights from ``parameters`` (size,)."""
        first = self.start + self._own.start
        self._weights[:] = parameters[first:first + len(self._weights)]
        for name, vector in self._optimiser.vectors().items():
            kept.read(name, vector, first)


class OverlappedSync(Algorithm):
    """The steps of `Sync` for a network. ``open_reducer(elements)`` (collective) opens the reducer of a bucket."""

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 comm: Intracomm, open_reducer: Callable[[int], Reducer], open_optimiser: OpenOptimiser,
                 schedule: Schedule, parameters: np.ndarray):
        super().__init__(problem, reader, clock, trace, time_over)
        assert isinstance(problem.objective, Network)
        self.steps = reader.steps
        self._schedule, self._network = schedule, problem.objective
        self._comm = comm.Dup()  # the thread's messages never meet the caller's
        self.reducers: list[Reducer] = []
        self._buckets = []
        for start, stop in buckets(problem.layers.starts):
            self.reducers.append(open_reducer(stop - start))
            self._buckets.append(Bucket(start, stop, self.reducers[-1], open_optimiser, parameters))
        self._parameters, self._gradient = parameters.copy(), np.zeros_like(parameters)
        self._folding = np.empty(0 if problem.scaling.trivial else len(parameters), problem.dtype)
        self._raw = problem.scaling.fold(self._parameters, self._folding)
        self._thread = ThreadPoolExecutor(1, "dml-hpc overlap", take_naps)
        self._coming: list[Future[None] | None] = [None] * len(self._buckets)
        self._steps: list[Future[None]] = []
        self._missing = [0] * len(self._buckets)
        self._step = 0.0, 0.0, 0

    @property
    def bytes_sent(self) -> int | None:
        """What this rank has sent, None: the library does not say."""
        sent = [reducer.bytes_sent for reducer in self.reducers]
        return None if None in sent else sum(filter(None, sent))

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        clock, reader, problem = self.clock, self.reader, self.problem
        self.step_size = self._schedule.step_size(step)
        late = self.time_over()
        waited_s = reader.waited_s
        parts, rows = reader.take(*divmod(step, self.steps))
        clock.lap("read", reader.waited_s - waited_s)
        self._step = 1 / max(rows, 1), self.step_size, step + 1
        self._gradient[:] = 0
        self._missing = [bucket.stop - bucket.start for bucket in self._buckets]
        self._network.needed, self._network.finished = self._wait_for, self._finished
        loss = problem.loss_and_gradient(parts, self._raw, self._gradient)
        self._network.needed = self._network.finished = None
        clock.lap("compute")
        sums = self._thread.submit(self._sum, np.array([loss, late], np.float64))
        for place, bucket in enumerate(self._buckets):
            self._coming[place] = self._thread.submit(bucket.gather)
        for under_way in self._steps:
            under_way.result()  # what went wrong in one is raised here
        self._steps.clear()
        loss, late = sums.result()
        clock.meet()
        self._note(1 / self.steps, rows, loss)
        return Met(rows, float(loss), late > 0)

    def _sum(self, own: np.ndarray) -> np.ndarray:
        total = np.empty_like(own)
        self._comm.Allreduce(own, total)
        return total

    def _wait_for(self, layer: int) -> None:
        """Have the weights of a layer, as they are after the last step, before the forward pass reads them."""
        start, stop = self.problem.layers.starts[layer:layer + 2]
        for place, bucket in enumerate(self._buckets):
            coming = self._coming[place]
            if bucket.start < stop and bucket.stop > start and coming is not None:
                self.clock.lap("compute")
                coming.result()
                self.clock.meet()
                self._coming[place] = None
                bucket.take(self._parameters)
                if layer == 0:
                    self.problem.scaling.fold(self._parameters, self._folding)
        if layer and self._raw is not self._parameters:
            self._raw[start:stop] = self._parameters[start:stop]

    def _finished(self, start: int, stop: int) -> None:
        """Send the gradients of the buckets that are complete with elements ``start`` … ``stop − 1``."""
        for place in reversed(range(len(self._buckets))):
            bucket = self._buckets[place]
            fresh = min(stop, bucket.stop) - max(start, bucket.start)
            if fresh <= 0:
                continue
            self._missing[place] -= fresh
            if not self._missing[place]:
                if bucket.start == 0:
                    self.problem.scaling.pull_back(self._gradient)
                bucket.put(self._gradient)
                self._steps.append(self._thread.submit(bucket.step, *self._step))

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        for layer in range(len(self.problem.layers.starts) - 1):
            self._wait_for(layer)
        return self._parameters

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._raw, *divmod(step, self.steps))

    def state(self) -> State:
        """See `Algorithm.state`: waits for the weights that are under way."""
        parameters, state = self.parameters(), State()
        state.put_shared("weights", parameters, self._comm.rank, self._comm.size)
        for bucket in self._buckets:
            bucket.put_state(state, len(parameters))
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`."""
        kept.read("weights", self._parameters)
        self._raw = self.problem.scaling.fold(self._parameters, self._folding)
        for bucket in self._buckets:
            bucket.restore(kept, self._parameters)

    def __enter__(self) -> OverlappedSync:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Collective unless a rank has failed: end the thread, after what is under way."""
        if kind is None:
            self.parameters()
            self._thread.shutdown()
            self._comm.Free()
        else:
            self._thread.shutdown(wait=False, cancel_futures=True)


def buckets(starts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the ranges of buckets for layers that begin at ``starts``: whole layers, none too small to be worth it.

    The first bucket begins with the first layer, and holds all of it.
    """
    found = list(pairwise(starts))
    place = len(found) - 1
    while len(found) > 1 and place >= 0:
        start, stop = found[place]
        if stop - start < LEAST_BUCKET:
            other = place - 1 if place else 1
            first, second = sorted((found[place], found[other]))
            found[min(place, other):max(place, other) + 1] = [(first[0], second[1])]
            place = min(place, len(found) - 1)
        place -= 1
    return found
