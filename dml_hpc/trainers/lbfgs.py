"""``lbfgs``: L-BFGS on the whole data set, its vectors dealt to the ranks (cf. Sandblaster: Dean et al., NIPS 2012)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.reading import Reader
from dml_hpc.kernels.dots import dot
from dml_hpc.optim.lbfgs import Iterate, Minimiser
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.gradient import Gradient
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace

SETTLED = "the loss no longer falls"


class _RowsLostError(Exception):
    """Rows were lost in an evaluation, on some rank; raised on all of them."""


class Lbfgs(Algorithm):
    """A step is an iteration: about one pass over the data, on every rank over its own rows.

    Each rank holds the part of the parameters, of the gradient and of the history that ``reducer`` sums on it, and
    ranks exchange inner products; where every rank has the whole sum (``mpi``), or sums are reproducible (in fixed
    point), every rank does the same with whole vectors. Ends when an iteration lowers the objective by less
    than ``tolerance`` of it.
    """

    unit = "iteration"
    searches = True
    step_size = 1.0

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 reducer: Reducer, gradient: Gradient, parameters: np.ndarray, tolerance: float):
        super().__init__(problem, reader, clock, trace, time_over)
        self.steps = 1
        self._reducer, self._gradient, self._tolerance = reducer, gradient, tolerance
        size = problem.layers.size
        start, stop = min(reducer.owned[0], size), min(reducer.owned[1], size)
        everywhere = reducer.comm.allreduce(stop - start)
        self._whole = gradient.repeats or everywhere > size
        self._own = slice(0, size) if self._whole else slice(start, stop)
        self._parameters = parameters.copy()
        self._x = self._parameters[self._own]
        self._folded = self._folding = np.empty(0 if problem.scaling.trivial else size, problem.dtype)
        penalised = [(max(low, self._own.start) - self._own.start, min(high, self._own.stop) - self._own.start)
                     for low, high in problem.layers.penalised if max(low, self._own.start) < min(high, self._own.stop)]
        self._penalised = [slice(*part) for part in penalised]
        self._ranges = penalised
        self._loss, self._late = 0.0, False
        self._passes = self._met = 0
        self._objective: float | None = None
        self._done: str | None = None
        self._minimiser = self._begun()

    def _begun(self) -> Minimiser:
        """Return what minimises from where this is."""
        return Minimiser(self._evaluate, self._x, self._dots, l1=self.problem.l1, penalised=self._ranges)

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        if self._done is not None:
            return Met(0, 0.0, done=self._done)
        self._passes = self._met = 0
        iterate = self._iterate()
        self._x = iterate.x
        self.clock.lap("compute")
        rows = self.problem.rows
        self._note(self._passes, rows, self._loss)
        self._done = iterate.ended
        if self._done is None and self._objective is not None:
            fallen = self._objective - iterate.loss
            if math.isfinite(fallen) and fallen <= self._tolerance * abs(self._objective):
                self._done = SETTLED
        self._objective = iterate.loss
        return Met(self._met, self._loss * (self._met / rows), self._late, self._done)

    def _iterate(self) -> Iterate:
        """Collective: take an iteration; one in which rows are lost, which changes the function, begins anew.

        So does the history, which knows of another function.
        """
        while True:
            try:
                return next(self._minimiser)
            except _RowsLostError:
                self._x, self._objective = self._minimiser.x, None
                self._minimiser = self._begun()

    def _evaluate(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Collective: return the objective and its gradient at the parameters of which ``x`` is this rank's part."""
        clock, reader, problem, gradient, reducer = self.clock, self.reader, self.problem, self._gradient, self._reducer
        clock.lap("compute")
        self._publish(x)
        self._folded = problem.scaling.fold(self._parameters, self._folding)
        size, loss = problem.layers.size, None
        while loss is None:
            waited_s = reader.waited_s
            gradient.fill(reader.everything(), self._folded, reducer.buffer, self.time_over())
            clock.lap("compute", reader.waited_s - waited_s)
            if self._lost_rows(reducer.comm):
                raise _RowsLostError
            if self._whole:
                reducer.allreduce()
                clock.meet()
                last = reducer.total[size:].astype(np.float64)
                last[0] *= gradient.loss_unit
                loss = gradient.judge(last, problem.rows)
            else:
                own = np.array([gradient.own_loss, self.time_over()], np.float64)  # not rounded to the buffer's floats
                last = np.empty_like(own)
                reducer.comm.Allreduce(own, last)
                reducer.reduce_scatter()
                clock.meet()
                loss = float(last[0])
        self._loss, self._late = loss / problem.mean_weight, self._late or last[-1] > 0
        self._passes, self._met = self._passes + 1, self._met + problem.rows
        weight = problem.rows * problem.mean_weight
        slope = np.multiply(reducer.total[self._own], gradient.unit / weight, dtype=np.float64).astype(x.dtype)
        penalty = 0.0
        for part in self._penalised if problem.l2 else ():
            slope[part] += problem.l2 * x[part]
            penalty += problem.l2 / 2 * dot(x[part], x[part])
        if problem.l2:
            penalty = penalty if self._whole else reducer.comm.allreduce(penalty)
        return loss / weight + penalty, slope

    def _publish(self, x: np.ndarray) -> None:
        """Collective: make ``_parameters`` on every rank those of which each holds its part in ``x``."""
        if self._whole:
            self._parameters[:] = x
            return
        self._reducer.total[self._own] = x
        self._reducer.allgather()
        self._parameters[:] = self._reducer.total[:len(self._parameters)]
        self.clock.meet()

    def _dots(self, rows: list[np.ndarray], vector: np.ndarray) -> np.ndarray:
        """Collective: return the inner products of vectors, of which each rank holds its part, with ``vector``."""
        own = np.array([dot(row, vector) for row in rows])
        if self._whole:
            return own
        self.clock.lap("compute")
        everywhere = np.empty_like(own)
        self._reducer.comm.Allreduce(own, everywhere)
        self.clock.meet()
        return everywhere

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        self._publish(self._x)
        self._reducer.comm.Barrier()  # all have read it before anyone writes there again
        return self._parameters

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._folded, step, 0)

    def state(self) -> State:
        """See `Algorithm.state`: x, its gradient and the pairs of the history, and the inner products of these.

        That the time was over is not kept: who goes on may have more of it.
        """
        comm, size = self._reducer.comm, self.problem.layers.size
        state = State({"minimiser": self._minimiser.values(), "objective": self._objective, "done": self._done,
                       "gradient": self._gradient.state(), "left_out": self._left_out()})
        for name, vector in self._minimiser.vectors().items():
            if self._whole:
                state.put_shared(name, vector, comm.rank, comm.size)
            else:
                state.put(name, vector, self._own.start, size)
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`; nothing is evaluated. Each rank reads what it now holds of the vectors.

        Where other shards are left out now, only the point is taken back.
        """
        values = kept.values
        self._gradient.restore(values["gradient"])
        if values.get("left_out", []) != self._left_out():  # what is kept is of another function
            kept.read("x", self._x, self._own.start)
            self._minimiser = self._begun()
            return
        self._minimiser.restore(values["minimiser"], lambda name, out: kept.read(name, out, self._own.start))
        self._objective = values["objective"]
        self._done = None if values["done"] == SETTLED else values["done"]  # a smaller tolerance may be wanted now
        self._x = self._minimiser.x

    def _left_out(self) -> list[str]:
        """Return the names of the shards that do not count."""
        return sorted(Path(one.file).name for one in self.reader.dataset.left_out)
