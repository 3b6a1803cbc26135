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
from dml_hpc.data.shares import SharesReader
from dml_hpc.errors import JobError, UserError
from dml_hpc.kernels.dots import squared_norm
from dml_hpc.layout import split
from dml_hpc.mpi import agreed
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept, State
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
        self._average, self._room = parameters.copy(), np.empty_like(parameters)
        self._in_round, self._late = False, False
        self._sums: dict[str, np.ndarray] = {}  # of a round so far, where machines of this rank have finished it
        self._learning: Machine | None = None
        self._left: dict[int, dict[str, np.ndarray]] = {}  # what machines hold whose turn is yet to come again
        self._chunks, self._segment = 0, 1
        self._met: dict[int, list[float]] = {}  # by epoch: summed loss, rows
        self._suspects = Suspects(np.empty(0), 0, 0)
        self.spread: Spread | None = None
        """Of the last round, when it was the last of the plan, and there are machines to compare."""

    @property
    def own_rows(self) -> int:
        """See `Algorithm.own_rows`."""
        return sum(machine.reader.used for machine in self._machines)

    def most_examples(self) -> int:
        """Collective: return the most that any machine has learnt from, in all rounds."""
        return self._reducer.comm.allreduce(max((machine.examples for machine in self._machines), default=0), op=max)

    def advance(self, step: int) -> Met:
        """See `Algorithm.advance`."""
        compares = step + 1 == self.plan.rounds and self.plan.count > 1
        if not self._in_round:
            self._in_round, self._late = True, False
            for machine in self._machines:
                machine.begin_round()
        for machine in self._machines:
            if not machine.finished:
                self._learn(machine, step)
            if not math.isfinite(machine.loss):
                break
            if not machine.finished:
                self._finish(machine, compares)
        while self.pause is not None and self._meet(learning=False):
            pass  # others are still learning
        self._in_round = False
        self.clock.lap("compute")
        weights = [(machine, self._weight(machine)) for machine in self._machines if machine.finished]
        totals = np.array([sum(machine.in_round for machine in self._machines),
                           sum(machine.loss for machine in self._machines), self._late,
                           sum(weight for _, weight in weights),
                           sum(weight * machine.square for machine, weight in weights)], np.float64)
        rows, loss, late, weight, squares = self._sum(self._sums.get("models", 0.0), totals)
        if weight:
            np.divide(self._reducer.total, weight, out=self._average)
        if compares and math.isfinite(loss):
            half = sum(weight for machine, weight in weights if self._in_half(machine))
            self.spread = self._spread(half, squares / max(weight, 1.0))
        self._sums.clear()
        self._lost_rows(self._reducer.comm)
        return Met(int(rows), loss, bool(late))

    def _weight(self, machine: Machine) -> float:
        return float(machine.in_round if self.plan.by_rows else machine.in_round > 0)

    def _in_half(self, machine: Machine) -> bool:
        return machine.number < self.plan.count // 2

    def _finish(self, machine: Machine, compares: bool) -> None:
        """Add the model of a machine that has learnt its part of a round to the sums."""
        weight, own = self._weight(machine), self._learner.parameters()
        machine.square, machine.finished, self._learning = squared_norm(own), True, None
        weighted = own if weight == 1 else own * own.dtype.type(weight)
        self._add("models", weighted)
        if compares and machine.number == 0:
            self._add("first", own)
        if compares and self._in_half(machine):
            self._add("half", weighted)

    def _add(self, name: str, vector: np.ndarray) -> None:
        found = self._sums.get(name)
        if found is None:
            found = self._sums[name] = self._room if name == "models" else np.empty_like(self._average)
            found[:] = 0
        found += vector

    def _learn(self, machine: Machine, step: int) -> None:
        """Let a machine learn what is left of its part of a round, or until the time is over."""
        reader, clock, plan = machine.reader, self.clock, self.plan
        left = self._left.pop(machine.number, None)
        if left is None:
            self._learner.begin(self._average)
        else:
            self._learner.go_on(left)
        self._learning = machine
        whole = plan.examples if plan.epochs is None else plan.epochs * reader.used
        start, stop = (0, 0) if whole is None else split(whole, plan.rounds, step)
        waited_s = reader.waited_s
        for parts in machine.chunks(None if whole is None else stop - start, clock):
            number, before, loss = machine.chunk, machine.examples, 0.0
            self.step_size = self._schedule.step_size(number)
            for batch in cut(parts, plan.batch):
                loss += self._learner.learn([batch], self.step_size)[1]
            machine.loss, count = machine.loss + loss, machine.examples - before
            if not math.isfinite(loss):
                self._suspects = Suspects(np.empty(0), *divmod(number, reader.steps))  # parameters have changed since
                self.reader = reader
                if plan.at_once:
                    raise self._failed(machine, number, loss)
                return
            met_so_far = self._met.setdefault(number // reader.steps, [0.0, 0])
            met_so_far[0] += loss
            met_so_far[1] += count
            self.trace.note(count, count, loss)
            self._on_chunk(loss / max(count, 1))
            clock.lap("compute", reader.waited_s - waited_s)
            waited_s = reader.waited_s
            self.trace.point()
            self._chunks += 1
            if self.pause is not None and self._chunks >= self._segment:
                self._meet(learning=True)
            if self.time_over():
                self._late = True
                return

    def _meet(self, learning: bool) -> bool:
        """Collective: return whether any rank is still ``learning``; then all pause.

        A rank comes here after every segment of so many chunks, and, once its machines are through, again and again
        until those of all ranks are: so all come equally often, though none knows how long another will take.
        """
        assert self.pause is not None
        comm, some = self._reducer.comm, np.empty(1, np.int64)
        self.clock.lap("compute")
        comm.Allreduce(np.array([learning], np.int64), some)
        self.clock.meet()
        self._chunks = 0
        if some[0]:
            self._segment = max(1, self.pause(self._segment))
            self.clock.lap("communicate")
        return bool(some[0])

    def _sum(self, vector: np.ndarray | float, totals: np.ndarray) -> list[float]:
        """Collective: make the reducer's total the sum of ``vector``; return the sums of ``totals``."""
        everywhere = np.empty_like(totals)
        self._reducer.buffer[:] = vector
        self._reducer.comm.Allreduce(totals, everywhere)
        self._reducer.allreduce()
        self.clock.meet()
        return everywhere.tolist()

    def _spread(self, half_weight: float, squares: float) -> Spread:
        """Collective: compare the machines' models; ``half_weight`` is what this rank has of the first half's."""
        variance = max(0.0, squares - squared_norm(self._average))
        self._sum(self._sums.get("first", 0.0), np.zeros(1))
        one = self._reducer.total.copy()
        weight = self._sum(self._sums.get("half", 0.0), np.array([half_weight], np.float64))[0]
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

    def state(self) -> State:
        """See `Algorithm.state`; in the middle of a round too.

        Kept are where each machine is and, of a round, each rank's sums of the models that are finished, and what
        machines hold that are not. What the time was over for stays so for the round.
        """
        comm = self._reducer.comm
        met = [[epoch, *totals] for epoch, totals in self._met.items()]
        state = State({"machines": self.plan.count, "in_round": self._in_round, "shares": self._shares()},
                      {"places": [machine.place() for machine in self._machines], "met": met, "late": self._late})
        state.put_shared("average", self._average, comm.rank, comm.size)
        if not self._in_round:
            return state
        for name, vector in self._sums.items():
            state.put(f"{name}/{comm.rank}", vector, 0, len(vector))
        learning = {} if self._learning is None else {self._learning.number: self._learner.kept()}
        for number, held in (self._left | learning).items():
            for name, vector in held.items():
                state.put(f"machine/{number}/{name}", vector, 0, len(vector))
        return state

    def restore(self, kept: Kept) -> None:
        """See `Algorithm.restore`: as many machines, dealt to the ranks anew, go on from where they were.

        With as many ranks as before to the same bits; else sums are added up in another order. Raises `AgreedError` for
        another number of machines, or rows that are read in another way: places would mean other rows.
        """
        comm, values = self._reducer.comm, kept.values
        with agreed(comm):
            if values["machines"] != self.plan.count:
                raise UserError(f"the run was begun with {values['machines']} machines, not {self.plan.count}; give "
                                f"--machines {values['machines']}, or leave it out")
            if values["shares"] != self._shares():
                how = "all in memory" if values["shares"] else "read piece by piece"
                raise UserError(f"the run was begun with rows that were {how}, which they are not now; give the same "
                                "--memory-limit, or as much memory")
        kept.read("average", self._average)
        places = {place["number"]: place for own in kept.own for place in own["places"]}
        for machine in self._machines:
            machine.go_on(places[machine.number])
        self._in_round = values["in_round"]
        names = sorted(kept.names()) if self._in_round else []
        for rank, own in enumerate(kept.own):
            if rank * comm.size // len(kept.own) != comm.rank:
                continue  # another takes over what that rank had added up
            self._late = self._late or own["late"]
            for epoch, loss, rows in own["met"]:
                so_far = self._met.setdefault(epoch, [0.0, 0])
                so_far[0] += loss
                so_far[1] += rows
            for name in _SUMS:
                if f"{name}/{rank}" in names:
                    self._add(name, kept.vector(f"{name}/{rank}"))
        for machine in self._machines:
            prefix = f"machine/{machine.number}/"
            held = {name.removeprefix(prefix): kept.vector(name) for name in names if name.startswith(prefix)}
            if held:
                self._left[machine.number] = held

    def _shares(self) -> bool:
        """Whether machines have shares of rows at hand, whatever their rank, not stretches that each rank reads."""
        return isinstance(self.reader, SharesReader)


_SUMS = ("models", "first", "half")
