"""``average``: machines learn alone from rows of their own, one example at a time, and their models are averaged.

Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent*, NIPS 2010: SimuParallelSGD (the rows are
dealt to the machines at random, each visits its own in random order) or, with drawn shares, ParallelSGD (each machine
draws from all rows). With several rounds it is iterative parameter mixing (McDonald, Hall and Mann, NAACL 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.reading import Reader
from dml_hpc.errors import JobError
from dml_hpc.kernels.dots import squared_norm
from dml_hpc.layout import split
from dml_hpc.optim.schedules import Schedule
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.divergence import advice, bad_row
from dml_hpc.trainers.learners import Learner
from dml_hpc.trainers.machines import Machine, cut
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace


@dataclass(frozen=True)
class Plan:
    """What the machines do: ``count`` of them in all, ``rounds`` averages.

    A machine takes ``examples`` rows in all rounds together, or ``epochs`` times its own (both None: until the time is
    over). Models weigh the same, or ``by_rows``: as much as the examples they were learnt from; one without any weighs
    nothing. A learner is given rows as they come, or ``batch`` of them at a time. With ``at_once`` a loss that goes
    wrong on one rank ends the job there and then, else it ends the run after the round, which all ranks know of.
    """

    count: int
    rounds: int
    epochs: int | None
    examples: int | None
    by_rows: bool
    batch: int | None
    at_once: bool = True


@dataclass(frozen=True)
class Spread:
    """How far apart the machines' models were before they were averaged.

    ``variance`` is the mean of ‖w_m − w̄‖² over ``machines``, ``first`` the model of machine 0 and ``half`` the average
    of the first half of them; both (size,).
    """

    machines: int
    variance: float
    first: np.ndarray
    half: np.ndarray


class Averaging(Algorithm):
    """A step is a round: every machine learns from its part of the round, then all models are averaged.

    ``machines`` are those of ``plan`` that this rank stands for; ``learner`` is the one model in memory that they take
    turns with. ``reducer`` sums vectors of size elements. ``on_chunk(loss)`` is told how this rank goes on.
    """

    unit = "round"

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 plan: Plan, reducer: Reducer, learner: Learner, machines: list[Machine], schedule: Schedule,
                 parameters: np.ndarray, on_chunk: Callable[[float], None]):
        super().__init__(problem, reader, clock, trace, time_over)
        self.plan, self.steps, self.step_size = plan, 1, schedule.step_size(0)
        self._reducer, self._learner, self._machines = reducer, learner, machines
        self._schedule, self._on_chunk = schedule, on_chunk
        self._average, self._summed = parameters.copy(), np.empty_like(parameters)
        self._met: dict[int, list[float]] = {}  # by epoch: summed loss, rows
        self._suspects = Suspects(np.empty(0), 0, 0)
        self.spread: Spread | None = None
        """Of the last round, when it was the last of the plan, and there are machines to compare."""

    @property
    def own_rows(self) -> int:
        """See `Algorithm.own_rows`."""
        return sum(machine.reader.count for machine in self._machines)

    def most_examples(self) -> int:
        """Collective: return the most that any machine has learnt from, in all rounds."""
        return self._reducer.comm.allreduce(max((machine.examples for machine in self._machines), default=0), op=max)

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        compares = step + 1 == self.plan.rounds and self.plan.count > 1
        loss, late, weights, squares = 0.0, False, 0.0, 0.0
        none = np.zeros_like(self._average) if compares else self._average
        first, half, half_weight = none, none, 0.0
        self._summed[:] = 0
        for machine in self._machines:
            self._learner.begin(self._average)
            met, over = self._learn(machine, step)
            loss, late = loss + met, late or over
            weight = float(machine.in_round if self.plan.by_rows else machine.in_round > 0)
            own = self._learner.parameters()
            squares, weights = squares + weight * squared_norm(own), weights + weight
            self._summed += own if weight == 1 else own * own.dtype.type(weight)
            if compares and machine.number == 0:
                first = own.copy()
            if compares and machine.number < self.plan.count // 2:
                half, half_weight = self._summed.copy(), weights
            if not math.isfinite(met):
                break
        self.clock.lap("compute")
        totals = np.array([sum(machine.in_round for machine in self._machines), loss, late, weights, squares])
        rows, loss, any_late, weights, squares = self._sum(self._summed, totals)
        if weights:
            np.divide(self._reducer.total, weights, out=self._average)
        if compares and math.isfinite(loss):
            self.spread = self._spread(first, half, half_weight, squares / max(weights, 1.0))
        return Met(int(rows), loss, bool(any_late))

    def _learn(self, machine: Machine, step: int) -> tuple[float, bool]:
        """Let a machine learn from its part of a round; return the summed loss, and whether the time is over."""
        reader, clock, plan = machine.reader, self.clock, self.plan
        whole = plan.examples if plan.epochs is None else plan.epochs * reader.count
        start, stop = (0, 0) if whole is None else split(whole, plan.rounds, step)
        total = 0.0
        waited_s = reader.waited_s
        for parts in machine.chunks(None if whole is None else stop - start, clock):
            number, before, loss = machine.chunk, machine.examples, 0.0
            self.step_size = self._schedule.step_size(number)
            for batch in cut(parts, plan.batch):
                loss += self._learner.learn([batch], self.step_size)[1]
            total, count = total + loss, machine.examples - before
            if not math.isfinite(loss):
                self._suspects = Suspects(np.empty(0), *divmod(number, reader.steps))  # parameters have changed since
                self.reader = reader
                if plan.at_once:
                    raise self._failed(machine, number, loss)
                return total, False
            met_so_far = self._met.setdefault(number // reader.steps, [0.0, 0])
            met_so_far[0] += loss
            met_so_far[1] += count
            self.trace.note(count, count, loss)
            self._on_chunk(loss / max(count, 1))
            clock.lap("compute", reader.waited_s - waited_s)
            waited_s = reader.waited_s
            self.trace.point()
            if self.time_over():
                return total, True
        return total, False

    def _sum(self, vector: np.ndarray, totals: np.ndarray) -> list[float]:
        """Collective: make the reducer's total the sum of ``vector``; return the sums of ``totals``."""
        everywhere = np.empty_like(totals)
        self._reducer.buffer[:] = vector
        self._reducer.comm.Allreduce(totals, everywhere)
        self._reducer.allreduce()
        self.clock.meet()
        return everywhere.tolist()

    def _spread(self, first: np.ndarray, half: np.ndarray, half_weight: float, squares: float) -> Spread:
        """Collective: compare the machines' models; ``first`` is zero but where machine 0 is."""
        variance = max(0.0, squares - squared_norm(self._average))
        self._sum(first, np.zeros(1))
        one = self._reducer.total.copy()
        weight = self._sum(half, np.array([half_weight]))[0]
        return Spread(self.plan.count, variance, one, self._reducer.total / max(weight, 1.0))

    def _failed(self, machine: Machine, number: int, loss: float) -> JobError:
        """Return the error of a loss that is no longer finite, found on this rank."""
        found = bad_row(self.problem, machine.reader, self._suspects)
        where = f": {found.what}" if found is not None and found.bad_data else ""
        return JobError(f"the loss became {loss} among this rank's examples in chunk {number + 1} of machine "
                        f"{machine.number}{where}; {advice(self, found)}; no model is saved")

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        return self._average

    def epoch_losses(self) -> list[float]:
        """See `Algorithm.epoch_losses`."""
        everywhere = self._reducer.comm.allgather(self._met)
        epochs = range(1 + max((epoch for met in everywhere for epoch in met), default=-1))
        totals = [np.sum([met.get(epoch, (0.0, 0)) for met in everywhere], axis=0) for epoch in epochs]
        return [float(loss / max(rows, 1)) for loss, rows in totals]

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`: of the machine whose loss went wrong."""
        return self._suspects
