"""``sync`` in the form asked for, or measured to be the fastest: whole sums, touched elements, or overlapped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from dml_hpc.comm.clock import Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.commands.training_run import Opened, Run, opened
from dml_hpc.console import Console
from dml_hpc.data.reading import Reader
from dml_hpc.errors import UserError
from dml_hpc.mpi import agreed
from dml_hpc.objectives.network import Network
from dml_hpc.optim.schedules import Schedule
from dml_hpc.trainers.algorithm import Algorithm
from dml_hpc.trainers.gradient import FixedPointGradient, FloatGradient, Gradient
from dml_hpc.trainers.on_device import DeviceFixedPointGradient, DeviceFloatGradient, DeviceProblem
from dml_hpc.trainers.overlapped import LEAST_BUCKET, OverlappedSync, buckets
from dml_hpc.trainers.sparse_sync import SparseSync
from dml_hpc.trainers.sync import Sync
from dml_hpc.trainers.trace import Trace
from dml_hpc.trainers.vectors import Vectors


def open_sync(run: Run, stack: ExitStack, steps_of: Callable[[Reader], int | None]) -> Opened:
    """Collective: open ``sync``, until ``stack`` is closed; ``steps_of(reader)`` is how many steps it takes."""
    options = run.options
    reader = run.open_reader(stack)
    steps = steps_of(reader)
    schedule = run.schedule(steps, reader.steps)
    how = "when ranks exchange what rows touch"
    if options.exchange == "sparse" or (options.exchange == "auto" and (
            _hopeless(run, reader) or _pays(run, _check_sparse, reader, schedule, how))):
        with agreed(run.comm):
            _check_sparse(run)
        sparse = _sparse(run, stack, reader, schedule)
        run.trace.count_bytes = lambda: sparse.bytes_sent
        return opened(run, sparse, steps, exchange="sparse")
    if options.overlap or (options.overlap is None and _pays(run, _check_overlap, reader, schedule,
                                                             "with sums under way while ranks compute")):
        with agreed(run.comm):
            _check_overlap(run)
        overlapped = _overlapped(run, stack, reader, schedule)
        run.trace.count_bytes = lambda: overlapped.bytes_sent
        return opened(run, overlapped, steps, overlapped.reducers[0], "overlapped")
    algorithm, reducer = _dense(run, stack, reader, schedule)
    if run.compressing is not None and reducer.compression is None:
        run.console.say(f"         the vector is no larger than what {options.compression} would send: it is sent as "
                        "it is")
    return opened(run, algorithm, steps, reducer, "dense")


def _dense(run: Run, stack: ExitStack, reader: Reader, schedule: Schedule) -> tuple[Sync, Reducer]:
    options, vectors = run.options, run.vectors()
    gradient = _gradient(run, vectors)
    reducer = run.open_reducer(stack, run.problem.layers.size + gradient.extra, gradient.dtype,
                               options.dtype if options.clip_norm is None else None, run.device)
    open_optimiser = partial(run.open_optimiser, repeats=gradient.repeats)
    algorithm = Sync(*run.shared(reader), vectors, reducer, gradient, open_optimiser, schedule, run.start(),
                     options.clip_norm)
    return algorithm, reducer


def _gradient(run: Run, vectors: Vectors) -> Gradient:
    problem = run.problem
    if isinstance(problem, DeviceProblem):
        return (DeviceFixedPointGradient(problem) if run.options.reproducible
                else DeviceFloatGradient(problem, vectors.scaling))
    return FixedPointGradient(problem) if run.options.reproducible else FloatGradient(problem)


def _sparse(run: Run, _: ExitStack, reader: Reader, schedule: Schedule) -> SparseSync:
    return SparseSync(run.comm, *run.shared(reader), run.open_optimiser((0, run.problem.layers.size)), schedule,
                      run.start())


def _overlapped(run: Run, stack: ExitStack, reader: Reader, schedule: Schedule) -> OverlappedSync:
    def open_reducer(size: int) -> Reducer:
        return run.open_reducer(stack, size, run.options.dtype)

    return stack.enter_context(OverlappedSync(*run.shared(reader), run.comm, open_reducer, run.open_optimiser, schedule,
                                              run.start()))


def _check_sparse(run: Run) -> None:
    """Raise `UserError` when what rows touch cannot be exchanged."""
    _check_host(run, "--exchange sparse")
    if run.dataset.kind != "csr":
        raise UserError("--exchange sparse is for sparse rows, and these are dense; leave it out")
    if run.problem.layers.size != run.dataset.features + 1:
        raise UserError(f"--exchange sparse is for one score a row, and {run.options.objective} has more; leave it out")
    if not run.open_optimiser((0, 0)).sparse_able:
        raise UserError("--exchange sparse needs an optimiser that leaves alone what has no gradient: --optimizer sgd "
                        "--momentum 0, or adagrad without --l2; and no --average-iterates")
    _check_plain(run, "--exchange sparse")


def _check_overlap(run: Run) -> None:
    """Raise `UserError` when sums cannot be on their way while a rank computes."""
    _check_host(run, "--overlap")
    if not isinstance(run.problem.objective, Network) or len(buckets(run.problem.layers.starts)) < 2:
        raise UserError(f"--overlap sends layer by layer, and there are not two of {LEAST_BUCKET:,} parameters or "
                        "more; leave it out")
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError("--overlap needs an MPI that lets several threads of a rank communicate, and this one does "
                        "not; leave it out")
    if run.dataset.skips_bad_shards:
        raise UserError("--overlap takes steps before all rows of a batch are read, and does not go with "
                        "--skip-bad-shards; leave one of them out")
    if run.options.average_iterates:
        raise UserError("--overlap does not go with --average-iterates; leave one of them out")
    _check_plain(run, "--overlap")


def _check_host(run: Run, option: str) -> None:
    if run.device is not None:
        raise UserError(f"{option} is for ranks that compute on the CPU; leave it out, or --device "
                        f"{run.options.device}")


def _check_plain(run: Run, option: str) -> None:
    if run.options.reproducible or run.options.clip_norm is not None or run.compressing is not None:
        raise UserError(f"{option} goes with neither --reproducible, --clip-norm nor --compression, which need whole "
                        "sums; leave it out")


MOST_TIMES = 256
"""A model so many times as large as what a batch touches is not summed whole, nor is that measured."""
LEAST_STEPS = 60
"""Of a run that is worth the few steps that measuring takes."""


def _hopeless(run: Run, reader: Reader) -> bool:
    """Say whether whole sums are out of the question; all ranks say the same."""
    try:
        _check_sparse(run)
    except UserError:
        return False
    entries = run.dataset.manifest.nonzeros / run.dataset.rows * (run.dataset.rows / reader.steps)
    return run.problem.layers.size > MOST_TIMES * entries


def _pays(run: Run, check: Callable[[Run], None], reader: Reader, schedule: Schedule, how: str) -> bool:
    """Collective: measure steps of both forms on real rows; return whether the special one is the faster.

    Steps of size 0 change nothing, and the optimiser's state is thrown away.
    """
    try:
        check(run)
    except UserError:
        return False  # it cannot be done, and nobody asked for it
    if (run.comm.size == 1 and check is _check_overlap) or (schedule.steps or LEAST_STEPS) < LEAST_STEPS:
        return False
    clock, still = Clock(), Schedule("constant", 0.0, schedule.steps, schedule.steps_per_epoch)
    trial = replace(run, console=Console(rank=1), options=replace(run.options, tuning=None), clock=clock,
                    trace=Trace(clock), time_over=lambda: False)
    seconds = []
    for form in (_sparse if check is _check_sparse else _overlapped, None):
        with ExitStack() as stack:
            algorithm: Algorithm
            if form is None:
                algorithm, _ = _dense(trial, stack, reader, still)
            else:
                algorithm = form(trial, stack, reader, still)
            times = []
            for _ in range(3):  # the first one fills caches
                run.comm.Barrier()
                started = time.perf_counter()
                algorithm.advance(0)
                times.append(max(run.comm.allgather(time.perf_counter() - started)))
            seconds.append(min(times[1:]))
            del algorithm
    faster = seconds[0] < seconds[1]
    run.console.say(f"auto     a step takes {seconds[0] * 1e3:.3g} ms {how}, and {seconds[1] * 1e3:.3g} ms when they "
                    f"sum whole gradients after computing: {'the first' if faster else 'the second'} is taken")
    return faster
