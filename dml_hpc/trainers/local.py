"""``local``: every rank takes steps alone, and every τ steps the models are averaged.

Moritz, Nishihara, Stoica and Jordan, *SparkNet*, ICLR 2016, §2.1. With ``average_momentum`` the optimiser's state is
averaged too (Yu, Jin and Yang, *On the linear speedup analysis of communication efficient momentum SGD*, ICML 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer, takes_lazy_sums
from dml_hpc.data.reading import Reader
from dml_hpc.device import Array
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept, State
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.learners import MiniBatches
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace
from dml_hpc.trainers.vectors import Vectors


class Local(Algorithm):
    """A step is a round: ``tau`` mini-batches on each rank, then one average, by the rows each rank has met.

    A mini-batch is this rank's part of a batch of all ranks, so that plain SGD with ``tau`` 1 is ``sync``. ``batches``
    ends the run after so many mini-batches (None: whenever it is told to). ``reducer`` sums `averaged` elements; what
    learns lies in its weights, where it has any, which must be each rank's own: as they are on a device.
    """

    unit = "round"

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 vectors: Vectors, reducer: Reducer, learner: MiniBatches, schedule: Schedule,
                 parameters: np.ndarray, tau: int, batches: int | None, average_momentum: bool):
        super().__init__(problem, reader, clock, trace, time_over)
        self.steps = max(1, round(reader.steps / tau))
        self._vectors, self._reducer, self._learner, self._schedule = vectors, reducer, learner, schedule
        self._tau, self._batches = tau, batches
        if reducer.weights is not None:
            size = problem.layers.size
            learner.move([reducer.weights[start:start + size] for start in range(0, reducer.size, size)])
        self._shared = [learner.weights, *(learner.optimiser.state if average_momentum else [])]
        learner.begin(parameters)
        self._last, self._rows = 0, 0.0
        self.batches = 0
        """Steps that this rank has taken."""

    @staticmethod
    def averaged(problem: Problem, learner: MiniBatches, average_momentum: bool) -> int:
        """Return how many elements a round's average has."""
        return problem.layers.size * (1 + (len(learner.optimiser.state) if average_momentum else 0))

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        clock, reader = self.clock, self.reader
        count, loss, late = 0, 0.0, False
        stop = (step + 1) * self._tau
        for number in range(step * self._tau, stop if self._batches is None else min(stop, self._batches)):
            self._last, self.step_size = number, self._schedule.step_size(number)
            parts, _ = reader.take(*divmod(number, reader.steps))
            waited_s = reader.waited_s
            clock.lap("read")
            self.batches += 1
            rows, met = self._learner.learn(parts, self.step_size)
            count, loss = count + rows, loss + met
            clock.lap("compute", reader.waited_s - waited_s)
            self._missed += reader.left_out_rows / reader.steps
            late = self.time_over()
            if late or not np.isfinite(met):
                break
        rows, loss, late = self._average(count, loss, late)
        self.trace.note(count, rows, loss)
        self._lost_rows(self._reducer.comm)
        return Met(rows, loss, late)

    def _average(self, count: int, loss: float, late: bool) -> tuple[int, float, bool]:
        """Collective: make every rank's model the average; return what all ranks have met together."""
        size, fused = self.problem.layers.size, self._reducer.weights is not None
        for place, vector in enumerate(self._shared):
            np.multiply(vector, count, out=self._reducer.buffer[place * size:(place + 1) * size])
        self.clock.lap("compute")
        totals = np.array([count, loss, late], np.float64)
        self._reducer.comm.Allreduce(totals.copy(), totals)
        self._rows = totals[0]
        if not fused:
            self._reducer.allreduce()
        elif self._rows:
            self._reducer.reduce_update(self._divide)
        self._vectors.wait()
        if fused:
            self._reducer.comm.Barrier()  # until then others may read the weights that this rank will change
        self.clock.meet()
        for place, vector in enumerate([] if fused or not self._rows else self._shared):
            self._vectors.assign(vector, self._reducer.total[place * size:(place + 1) * size], self._rows)
        self.clock.lap("compute")
        return int(totals[0]), float(totals[1]), bool(totals[2])

    @takes_lazy_sums
    def _divide(self, summed: Array, start: int, stop: int) -> None:
        """See `dml_hpc.comm.reducer.Update`: the sum becomes the average on its way to the weights."""
        assert self._reducer.weights is not None
        self._vectors.assign(self._reducer.weights[start:stop], summed, self._rows)

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        own = self._learner.optimiser.average
        if own is None:
            return self._learner.parameters()
        # Every rank has taken part in as many steps; a rank without rows has no average.
        has = float(self.reader.count > 0)
        self._reducer.buffer[:] = 0
        np.multiply(own, has, out=self._reducer.buffer[:len(own)])
        self._reducer.allreduce()
        return self._vectors.host(self._reducer.total[:len(own)]) / max(self._reducer.comm.allreduce(has), 1.0)

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._vectors.host(self._learner.folded), *divmod(self._last, self.reader.steps))

    def state(self) -> State:
        """See `Algorithm.state`: the weights, and of every rank its optimiser's vectors and how far it is."""
        learner, comm = self._learner, self._reducer.comm
        state = State(own={"number": learner.number, "batches": self.batches})
        self._vectors.put_shared(state, "weights", learner.weights, comm)
        for name, vector in learner.optimiser.vectors().items():
            self._vectors.put(state, _of_rank(name, comm.rank), vector, 0, len(vector))
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`: on as many ranks as gave the state each takes its own.

        On another number each takes the mean of the optimisers' vectors of the ranks that have learnt anything, and
        the largest counts.
        """
        learner, comm = self._learner, self._reducer.comm
        self._vectors.take(kept, "weights", learner.weights)
        givers = [comm.rank] if len(kept.own) == comm.size else range(len(kept.own))
        learner.number, self.batches = (int(max(kept.own[rank][name] for rank in givers))
                                        for name in ("number", "batches"))
        givers = [rank for rank in givers if kept.own[rank]["number"]]
        for name, vector in learner.optimiser.vectors().items():
            total = np.zeros(len(vector))
            for rank in givers:
                total += kept.vector(_of_rank(name, rank))
            self._vectors.copy((total / max(len(givers), 1)).astype(vector.dtype), vector)


def _of_rank(name: str, rank: int) -> str:
    return f"{name}/{rank}"
