"""``average``: machines learn alone from rows of their own, one example at a time, and their models are averaged.

Zinkevich, Weimer, Smola and Li, *Parallelized Stochastic Gradient Descent*, NIPS 2010: SimuParallelSGD (the rows are
dealt to the machines at random, each visits its own in random order) or, with drawn shares, ParallelSGD (each machine
draws from all rows). With several rounds it is iterative parameter mixing (McDonald, Hall and Mann, NAACL 2010).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.data.reading import Reader, Rows
from dml_hpc.errors import JobError
from dml_hpc.kernels.dots import squared_norm
from dml_hpc.layout import split
from dml_hpc.optim.schedules import Schedule
from dml_hpc.trainers.algorithm import Algorithm, Met, Suspects
from dml_hpc.trainers.learners import Learner
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace


@dataclass
class Machine:
    """One of the machines of a run, a rank may stand for several: what it reads, and what it has learnt."""

    number: int
    reader: Reader
    examples: int = 0
    """Rows it has learnt from in the last round."""


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

    ``machines`` are those this rank stands for, of ``count`` in all; ``learner`` is the one model in memory that they
    take turns with. A machine takes ``examples`` rows in all rounds together, or ``epochs`` times its own (both None:
    until the time is over). Models weigh the same, or ``by_rows``: as much as the examples they were learnt from; one
    without any weighs nothing. ``reducer`` sums vectors of size elements. ``on_chunk(examples, loss)`` is told how this
    rank goes on.
    """

    unit = "round"

    def __init__(self, problem: Problem, reader: Reader, clock: Clock, trace: Trace, time_over: Callable[[], bool],
                 reducer: Reducer, learner: Learner, machines: list[Machine], count: int, schedule: Schedule,
                 parameters: np.ndarray, rounds: int, epochs: int | None, examples: int | None, by_rows: bool,
                 batch: int | None, on_chunk: Callable[[int, float], None]):
        super().__init__(problem, reader, clock, trace, time_over)
        self.steps, self.rounds, self._batch = 1, rounds, batch
        self.step_size = schedule.step_size(0)
        self._reducer, self._learner, self._machines, self.count = reducer, learner, machines, count
        self.most_examples = 0
        """That any machine of any rank has learnt from, in all rounds."""
        self._schedule, self._by_rows, self._on_chunk = schedule, by_rows, on_chunk
        self._epochs, self._examples = epochs, examples
        self._average = parameters.copy()
        self._summed = np.empty_like(parameters)
        self._met: dict[int, list[Any]] = {}  # by epoch: summed loss, rows
        self.spread: Spread | None = None
        """Of the last round, when it was the last of ``rounds``, and there are machines to compare."""

    @property
    def own_rows(self) -> int:
        """See `Algorithm.own_rows`."""
        return sum(machine.reader.count for machine in self._machines)

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        loss, late = 0.0, False
        self._summed[:] = 0
        weights, squares, half = 0.0, 0.0, None
        first = np.zeros_like(self._average)
        last = step + 1 == self.rounds
        middle = self.count // 2
        for machine in self._machines:
            if machine.number == middle:
                half = self._summed.copy(), weights
            self._learner.begin(self._average)
            met, over = self._learn(machine, step)
            loss, late = loss + met, late or over
            weight = float(machine.examples) if self._by_rows else float(machine.examples > 0)
            own = self._learner.parameters()
            squares += weight * squared_norm(own)
            weights += weight
            self._summed += own if weight == 1 else own * own.dtype.type(weight)
            if machine.number == 0:
                first[:] = own
        self.clock.lap("compute")
        if half is None:  # all of this rank's machines belong to one half
            whole = bool(self._machines) and self._machines[-1].number < middle
            half = (self._summed, weights) if whole else (np.zeros_like(self._summed), 0.0)
        totals = self._sum(np.array([sum(machine.examples for machine in self._machines), loss, late, weights,
                                     squares]))
        rows, loss, late, weights, squares = totals.tolist()
        self.most_examples += self._reducer.comm.allreduce(
            max((machine.examples for machine in self._machines), default=0), op=max)
        np.divide(self._reducer.total, max(weights, 1.0), out=self._average)
        if last and self.count > 1:
            self.spread = self._spread(first, half, squares / max(weights, 1.0))
        return Met(int(rows), loss, bool(late))

    def _learn(self, machine: Machine, step: int) -> tuple[float, bool]:
        """Let a machine learn from its part of a round; return the summed loss, and whether the time is over."""
        reader, clock = machine.reader, self.clock
        whole = self._examples if self._epochs is None else self._epochs * reader.count
        start, stop = (0, None) if whole is None else split(whole, self.rounds, step)
        machine.examples, total, late = 0, 0.0, False
        for number, parts in _chunks(reader, start, stop, clock):
            waited_s = reader.waited_s
            self.step_size = self._schedule.step_size(number)
            count, loss = 0, 0.0
            for batch in parts if self._batch is None else _cut(parts, self._batch):
                learnt, met = self._learner.learn([batch], self.step_size)
                count, loss = count + learnt, loss + met
            if not math.isfinite(loss):
                raise self._failed(machine, number, loss)
            machine.examples, total = machine.examples + count, total + loss
            met_so_far = self._met.setdefault(number // reader.steps, [0.0, 0])
            met_so_far[0] += loss
            met_so_far[1] += count
            self.trace.note(count, count, loss / self.problem.mean_weight)
            self._on_chunk(count, loss / self.problem.weight_of(count) if count else 0.0)
            clock.lap("compute", reader.waited_s - waited_s)
            self.trace.point()
            late = self.time_over()
            if late:
                break
        return total, late

    def _sum(self, totals: np.ndarray) -> np.ndarray:
        """Collective: make the reducer's total the sum of the models; return the sum of ``totals``."""
        comm = self._reducer.comm
        self._reducer.buffer[:] = self._summed
        everywhere = np.empty_like(totals)
        comm.Allreduce(totals, everywhere)
        self._reducer.allreduce()
        self.clock.meet()
        return everywhere

    def _spread(self, first: np.ndarray, half: tuple[np.ndarray, float], squares: float) -> Spread:
        """Collective: compare the machines' models."""
        comm = self._reducer.comm
        comm.Bcast(first, root=0)
        self._reducer.buffer[:] = half[0]
        weight = comm.allreduce(half[1])
        self._reducer.allreduce()
        return Spread(self.count, max(0.0, squares - squared_norm(self._average)), first,
                      self._reducer.total / max(weight, 1.0))

    def _failed(self, machine: Machine, number: int, loss: float) -> JobError:
        """Return the error of a loss that is no longer finite, found on this rank."""
        from dml_hpc.trainers.divergence import advice, bad_row

        place = divmod(number, machine.reader.steps)
        found = bad_row(self.problem, machine.reader, Suspects(np.empty(0), *place))  # parameters have changed since
        where = f": {found.what}" if found is not None and found.bad_data else ""
        return JobError(f"the loss became {loss} among this rank's examples in chunk {number + 1} of machine "
                        f"{machine.number}{where}; {advice(self.problem, self.step_size, found)}")

    def parameters(self) -> np.ndarray:
        """See `Algorithm.parameters`."""
        return self._average

    def epoch_losses(self) -> list[float]:
        """See `Algorithm.epoch_losses`."""
        everywhere = self._reducer.comm.allgather(self._met)
        epochs = range(1 + max((epoch for met in everywhere for epoch in met), default=-1))
        totals = [np.sum([met.get(epoch, (0.0, 0)) for met in everywhere], axis=0) for epoch in epochs]
        return [float(loss / self.problem.weight_of(rows)) for loss, rows in totals]

    def suspects(self, step: int) -> Suspects:
        """See `Algorithm.suspects`."""
        return Suspects(self._average, step, 0)


def _cut(parts: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Yield the same rows, at most ``size`` at a time."""
    for part in parts:
        for start in range(0, len(part.rows), size):
            yield part._replace(rows=part.rows[start:start + size])


def _chunks(reader: Reader, start: int, stop: int | None, clock: Clock) -> Iterator[tuple[int, Iterable[Rows]]]:
    """Yield (chunk number, rows) for examples ``start`` … ``stop − 1`` of a machine, pass after pass over its rows.

    Without ``stop`` it never ends.
    """
    if reader.count == 0:
        return
    epoch, skip = divmod(start, reader.count)
    number, taken = epoch * reader.steps, start
    while stop is None or taken < stop:
        parts, _ = reader.take(*divmod(number, reader.steps))
        wanted: list[Rows] = []
        for part in parts:
            rows = part.rows[skip:]
            skip -= len(part.rows) - len(rows)
            rows = rows if stop is None else rows[:stop - taken]
            taken += len(rows)
            if len(rows):
                wanted.append(part._replace(rows=rows))
        clock.lap("read")
        if wanted:
            yield number, wanted
        number += 1
