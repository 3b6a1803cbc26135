"""What every algorithm of a run is given, and what is given back: wiring that several files of this room share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.compression import Compression
from dml_hpc.comm.reducer import Reducer
from dml_hpc.commands import reducing
from dml_hpc.commands.learnable import Learnable
from dml_hpc.commands.opening import most_row_bytes
from dml_hpc.commands.train_options import Options
from dml_hpc.console import Console
from dml_hpc.data import shares
from dml_hpc.data.batches import Batches
from dml_hpc.data.csr import Csr
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.data.leaving_out import settle_losses
from dml_hpc.data.on_device import DeviceRows
from dml_hpc.data.reading import Reader, Rows, open_reader
from dml_hpc.device import Device
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.mpi import agreed, first_on_node, ranks_on_node
from dml_hpc.objectives.sequential import Sequential
from dml_hpc.optim import open_optimiser
from dml_hpc.optim.optimiser import Optimiser
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.state import Kept
from dml_hpc.trainers.algorithm import Algorithm, Met
from dml_hpc.trainers.on_device import DeviceOneByOne, DeviceProblem
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.trace import Trace
from dml_hpc.trainers.vectors import DeviceVectors, Vectors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass
class Run:
    """What every algorithm of a run is given; ``options`` are `settled`.

    ``moved`` brings rows to this rank's device, None on the CPU; then ``problem`` is a `DeviceProblem`.
    """

    comm: Intracomm
    console: Console
    dataset: Dataset
    problem: Problem
    learnable: Learnable
    options: Options
    compressing: Compression | None
    clock: Clock
    trace: Trace
    time_over: Callable[[], bool]
    at_once: bool
    moved: DeviceRows | None = None
    kept: Kept | None = None
    """The algorithm's state that the run goes on from, None: it begins."""
    reopen: Callable[[Sequence[float] | None], Reader] | None = None
    """Collective: close what `open_reader` returned, and return a reader for other shares of the work (ranks,)."""
    row_bytes: int | None = None
    """What this rank's rows may take under a ``memory_limit``, as found before anything else was in memory."""
    steps_before: int = 0
    """Those that the run took before it was resumed."""

    @property
    def kept_machines(self) -> int | None:
        """The number of ``average``'s machines in `kept`."""
        return None if self.kept is None else self.kept.values.get("machines")

    @property
    def device(self) -> Device | None:
        """This rank's device, None: the CPU."""
        return None if self.moved is None else self.moved.device

    def vectors(self) -> Vectors:
        """Return where vectors of parameters lie: where gradients are computed."""
        return Vectors(self.problem) if self.device is None else DeviceVectors(self.problem)

    def shared(self, reader: Reader) -> tuple[Problem, Reader, Clock, Trace, Callable[[], bool]]:
        """Return what every algorithm is constructed with."""
        return self.problem, reader, self.clock, self.trace, self.time_over

    def start(self) -> np.ndarray:
        """Return the parameters to start from (size,), the same on every rank."""
        return self.problem.objective.initial(self.problem.layers, self.options.seed, self.problem.dtype)

    def open_optimiser(self, owned: tuple[int, int], repeats: bool = False) -> Optimiser:
        """Return the optimiser of a range of the parameters; they lie where `vectors` says."""
        return open_optimiser(self.options.optimiser_settings, owned, self.problem.dtype, self.problem.layers.penalised,
                              repeats, self.options.average_iterates, device=self.device)

    def schedule(self, steps: int | None, steps_per_epoch: int) -> Schedule:
        """Return the step sizes of ``steps`` steps (None: nobody knows how many)."""
        options = self.options
        return Schedule(str(options.schedule), float(options.step_size or 0), steps, steps_per_epoch,
                        options.warmup or 0.0)

    def open_reducer(self, stack: ExitStack, size: int, dtype: str, weights: str | None = None,
                     device: Device | None = None) -> Reducer:
        """Collective: open the reducer of the options, until ``stack`` is closed; its vectors lie on ``device``."""
        options = self.options
        open_reducer = reducing.opener(self.console, options.allreduce, options.fan_in, options.tuning,
                                       self.compressing)
        more = {} if weights is None else {"weights": weights}
        return stack.enter_context(open_reducer(self.comm, size, dtype, device=device, **more))

    def open_reader(self, stack: ExitStack) -> Reader:
        """Collective: open this rank's part of every batch, until ``stack`` is closed; from then on `reopen` works."""
        held: list[Reader] = []

        def close() -> None:
            while held:
                self._close(held.pop())

        def reopen(shares: Sequence[float] | None) -> Reader:
            close()
            held.append(self._open_reader(shares))
            return held[0]

        stack.callback(close)
        self.reopen = reopen
        return reopen(None)

    def _open_reader(self, shares: Sequence[float] | None) -> Reader:
        """Collective: open this rank's part of every batch, where ranks have such ``shares``, None: equal ones."""
        options, comm, dataset = self.options, self.comm, self.dataset
        node_ranks = ranks_on_node(comm)
        size = None if options.batch_size == "full" else int(options.batch_size or 1)
        with first_on_node(comm):
            batches = Batches(dataset, size, comm.rank, comm.size, options.seed, options.shuffle, dataset.chunk_rows,
                              shares)
            batches.take(0, 0)
        with agreed(comm):
            most_bytes = self.row_bytes or most_row_bytes(dataset, batches, node_ranks, options.memory_limit)
            if options.memory_limit is not None:
                self.row_bytes = most_bytes
            reader = open_reader(dataset, batches, self.learnable, self.problem.dtype, most_bytes)
        settle_losses(comm, reader)
        self.problem.leave_out(dataset)
        try:
            self.keep([reader])
        except AgreedError:
            self._close(reader)
            raise
        return reader

    def _close(self, reader: Reader) -> None:
        if self.moved is not None:
            self.moved.let_go(reader.at_hand())
        reader.close()

    def keep(self, readers: Sequence[Reader]) -> None:
        """Collective: keep on the device what ``readers`` have at hand, where there is one and it fits.

        Raises `AgreedError` where rows that do not fit were to be kept in another type.
        """
        if self.moved is None:
            return
        with agreed(self.comm):
            for reader in readers:
                if not self.moved.keep(reader.at_hand()) and self.moved.kept_as is not None:
                    raise UserError(f"--rows-as {self.moved.kept_as} is for rows that stay on the GPU, and these do "
                                    "not fit in its memory; leave it out, or use more GPUs")


@dataclass
class Opened:
    """An algorithm ready to run: ``steps`` is how many it takes (None: no limit), ``tolerance`` what the loop is to
    look at. ``count_steps(steps)`` (collective) are its steps as a user counts them; ``exchange`` names how ``sync``
    sums.
    """

    algorithm: Algorithm
    steps: int | None
    tolerance: float | None
    on_step: Callable[[Met], None]
    close_bar: Callable[[str], None]
    reducer: Reducer | None = None
    exchange: str | None = None
    count_steps: Callable[[int], int] = lambda steps: steps


def opened(run: Run, algorithm: Algorithm, steps: int | None, reducer: Reducer | None = None,
           exchange: str | None = None, **more: Any) -> Opened:
    """Return an algorithm whose steps advance a progress bar."""
    bar = run.console.bar(steps or 0, "training", run.steps_before)

    def on_step(met: Met) -> None:
        bar.advance(1, f"loss {met.loss / met.rows:.4f}" if met.rows else "")

    more.setdefault("tolerance", run.options.tolerance)
    return Opened(algorithm, steps, on_step=on_step, close_bar=bar.close, reducer=reducer, exchange=exchange, **more)


def compile_kernels(run: Run) -> None:
    """Have this run's kernels compiled, or read from their cache, by running them on no rows; on a device, on one."""
    problem, options = run.problem, run.options
    if isinstance(problem, DeviceProblem):
        _build_kernels(run, problem)
        return
    X = no_rows(run.dataset, run.dataset.computable(problem.dtype))
    none, rows, labels = np.empty(0, problem.dtype), np.empty(0, np.int64), np.empty(0)
    weight = run.learnable(labels, labels if run.dataset.weighted else None)[1]
    parameters = np.zeros(problem.layers.size, problem.dtype)
    of_rows = problem.layers, X, none, weight, rows
    scaling = problem.scaling
    problem.objective.loss_and_gradient(*of_rows, parameters, parameters.copy())
    if options.reproducible:
        problem.objective.fixed_point_gradient(*of_rows, parameters, scaling.shift, scaling.scale, 1.0, 1.0,
                                               np.zeros(len(parameters) + 3, np.int64))
    if options.algorithm == "average" and options.batch_size == 1 and problem.objective.sequential:
        state = Sequential(parameters, problem.l1, problem.l2)
        problem.objective.sequential_sgd(*of_rows, scaling.shift, scaling.scale, state, 0.0)
        state.settle()
        shares.warm_up()
    elif options.algorithm != "lbfgs":
        summed = np.empty(0, np.int64 if options.reproducible else problem.dtype)
        run.open_optimiser((0, 0)).update(none, summed, 0, 1.0, 0.0, 1)


def _build_kernels(run: Run, problem: DeviceProblem) -> None:
    options, dtype, features = run.options, problem.dtype, run.dataset.features
    none = no_rows(run.dataset, run.dataset.computable(dtype))
    X = Csr(none.data, none.indices, np.zeros(2, np.int64), features) if isinstance(none, Csr) else np.zeros(
        (1, features), none.dtype)
    label = np.empty(0)
    weight = run.learnable(label, label if run.dataset.weighted else None)[1]
    part = Rows(X, np.zeros(1, dtype), np.zeros(1, np.int64), None if weight is None else np.ones(1, dtype))
    parameters = np.zeros(problem.layers.size, dtype)
    problem.loss_and_gradient([part], parameters, parameters.copy())
    problem.summed_loss([part], parameters)
    if options.reproducible:
        problem.fixed_point_gradient([part], parameters, 1.0, 1.0, np.zeros(len(parameters) + 3, np.int64))
    if options.algorithm == "average" and options.batch_size == 1 and problem.objective.sequential:
        learner = DeviceOneByOne(problem)
        learner.learn([part], 0.0)
        learner.parameters()
        shares.warm_up()
    elif options.algorithm != "lbfgs":
        weights = problem.device.zeros(1, dtype)
        summed = problem.device.zeros(1, np.int64 if options.reproducible else dtype)
        run.open_optimiser((0, 1)).update(weights, summed, 0, 1.0, 0.0, 1)
