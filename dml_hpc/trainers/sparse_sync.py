"""``sync`` on sparse rows of very many features: ranks exchange what their rows touch, and change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.data.csr import Csr
from dml_hpc.data.reading import Reader
from dml_hpc.kernels import touched
from dml_hpc.optim.optimiser import Optimiser
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class SparseSync(Algorithm):
    """The steps of `Sync` for one score a row, by an optimiser that leaves alone what has no gradient.

    Every rank holds all the weights and the same optimiser's state. A step gathers all ranks' (index, value) pairs on
    every rank, which adds them up in the order of ranks, so that all come to the same bits. Time and traffic of a step
    are those of the batch's entries, whatever the number of features.
    """

    def __init__(self, comm: Intracomm, problem: Problem, reader: Reader, clock: Clock, trace: Trace,
                 time_over: Callable[[], bool], optimiser: Optimiser, schedule: Schedule, parameters: np.ndarray):
        super().__init__(problem, reader, clock, trace, time_over)
        self.steps = reader.steps
        self._comm, self._optimiser, self._schedule = comm, optimiser, schedule
        size, dtype = problem.layers.size, problem.dtype
        self._weights, self._folded = parameters.copy(), np.zeros(size, dtype)
        self._gradient, self._total = np.zeros(size, dtype), np.zeros(size, dtype)
        self._marks, self._mark = np.zeros(size, np.int32), 0
        self._at, self._values = np.empty(0, np.int64), np.empty(0, dtype)
        self._all_at, self._all_values = np.empty(0, np.int64), np.empty(0, dtype)
        self._union, self._summed = np.empty(0, np.int64), np.empty(0, dtype)
        self.bytes_sent = 0

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        clock = self.clock
        self.step_size = self._schedule.step_size(step)
        late = self.time_over()
        while True:
            count, loss, rows = self._collect(step)
            if not self._lost_rows(self._comm):
                break
        at, values = self._at[:count], self._values[:count]
        counts, totals = self._exchange(at, values, np.array([count, loss, late], np.float64))
        clock.meet()
        union = self._add_up(counts)
        self._optimiser.update_at(self._weights, union, self._summed[:len(union)],
                                  1 / (max(rows, 1) * self.problem.mean_weight), self.step_size)
        clock.lap("compute")
        loss = float(totals[1]) / self.problem.mean_weight
        self._note(1 / self.steps, rows, loss)
        return Met(rows, loss, totals[2] > 0)

    def _collect(self, step: int) -> tuple[int, float, int]:
        """Make ``_at`` and ``_values`` begin with what this rank's rows of a step touch, and its gradient there.

        Returns how many elements these are, the rows' summed loss, and how many rows all ranks have.
        """
        clock, reader, problem = self.clock, self.reader, self.problem
        parts, rows = reader.take(*divmod(step, self.steps))
        waited_s = reader.waited_s
        clock.lap("read")
        bias = problem.layers.size - 1
        self._begin(1)
        self._at[0], count, loss = bias, 1, 0.0
        self._fold(self._at[:1])
        for part in parts:
            assert isinstance(part.X, Csr)
            self._begin(count + touched.rows_entries(part.X.indptr, part.rows), count)
            before = count
            count = touched.collect(part.X.indices, part.X.indptr, part.rows, self._marks, self._mark, self._at, count)
            self._fold(self._at[before:count])
            loss += problem.objective.loss_and_gradient(problem.layers, part.X, part.y, part.weight, part.rows,
                                                        self._folded, self._gradient)
            progressed()
        touched.take_out(self._gradient, problem.scaling.scale, self._at[:count], self._values[:count])
        clock.lap("compute", reader.waited_s - waited_s)
        return count, loss, rows

    def _begin(self, room: int, count: int = 0) -> None:
        """Have room for so many touched elements; with ``count`` 0 none is marked any more."""
        if not count:
            self._next_mark()
        if room > len(self._at):
            self._at = np.concatenate([self._at[:count], np.empty(2 * room - count, np.int64)])
            self._values = np.empty(2 * room, self.problem.dtype)

    def _next_mark(self) -> None:
        self._mark += 1
        if self._mark == np.iinfo(np.int32).max:
            self._marks[:] = 0
            self._mark = 1

    def _fold(self, at: np.ndarray) -> None:
        """Make the parameters for stored rows at ``at``, their penalties paid."""
        self._optimiser.settle(self._weights, at)
        touched.fold_at(self._weights, self.problem.scaling.scale, at, self._folded)

    def _exchange(self, at: np.ndarray, values: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Collective: gather all ranks' pairs in ``_all_at``, ``_all_values``; return their counts, and own's sums."""
        heads = np.empty((self._comm.size, len(own)))
        self._comm.Allgather(own, heads)
        counts = heads[:, 0].astype(np.int64)
        if counts.sum() > len(self._all_at):
            self._all_at = np.empty(2 * int(counts.sum()), np.int64)
            self._all_values = np.empty(len(self._all_at), self.problem.dtype)
        places = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self._comm.Allgatherv(at, [self._all_at, counts, places, _mpi_type(at)])
        self._comm.Allgatherv(values, [self._all_values, counts, places, _mpi_type(values)])
        self.bytes_sent += (at.nbytes + values.nbytes) * (self._comm.size - 1)
        return counts, heads.sum(axis=0)

    def _add_up(self, counts: np.ndarray) -> np.ndarray:
        """Add up all ranks' pairs into ``_summed``, in the order in which they are met; return the places."""
        if len(self._union) < counts.sum():
            self._union = np.empty(2 * int(counts.sum()), np.int64)
            self._summed = np.empty(len(self._union), self.problem.dtype)
        self._next_mark()
        found = start = 0
        for count in counts.tolist():
            part = slice(start, start + count)
            found = touched.add_up(self._all_at[part], self._all_values[part], self._total, self._marks, self._mark,
                                   self._union, found)
            start += count
        union = self._union[:found]
        touched.pick(self._total, union, self._summed)
        return union

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        self._optimiser.settle(self._weights)
        return self._weights

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._folded, *divmod(step, self.steps))

    def state(self) -> State:
        """See `Algorithm.state`; all penalties are paid first, which may change last bits of the steps that follow."""
        self._optimiser.settle(self._weights)
        state = State()
        for name, vector in self._vectors().items():
            state.put_shared(name, vector, self._comm.rank, self._comm.size)
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`."""
        for name, vector in self._vectors().items():
            kept.read(name, vector)

    def _vectors(self) -> dict[str, np.ndarray]:
        return {"weights": self._weights, **self._optimiser.vectors()}


def _mpi_type(array: np.ndarray) -> object:
    from mpi4py.util.dtlib import from_numpy_dtype

    return from_numpy_dtype(array.dtype)
