"""From the options of a run to the algorithm that runs: its reader, its reducer and its optimiser, wired together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from dml_hpc.commands.opening import fits_resident, most_row_bytes
from dml_hpc.commands.synchronous import open_sync
from dml_hpc.commands.train_options import Options
from dml_hpc.commands.training_run import Opened, Run, opened
from dml_hpc.data.batches import Batches
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.leaving_out import leave_out_lost, settle_losses
from dml_hpc.data.reading import Reader, gives_weights, open_reader
from dml_hpc.data.shares import CHUNK_ROWS, DealtShare, DrawnShare, Share, SharesReader, load_all
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, ranks_on_node
from dml_hpc.trainers.averaging import Averaging, Plan
from dml_hpc.trainers.gradient import FixedPointGradient, FloatGradient, Gradient
from dml_hpc.trainers.lbfgs import Lbfgs
from dml_hpc.trainers.learners import Learner, MiniBatches, OneByOne
from dml_hpc.trainers.local import Local
from dml_hpc.trainers.machines import Machine
from dml_hpc.trainers.on_device import DeviceOneByOne, DeviceProblem


@contextmanager
def open_algorithm(run: Run) -> Iterator[Opened]:
    """Collective: open the algorithm that the options name, and what it reads and sums with, for the block."""
    with ExitStack() as stack:
        found = OPENERS[str(run.options.algorithm)](run, stack)
        reducer = found.reducer
        if reducer is not None and found.exchange != "overlapped":
            run.trace.count_bytes = lambda: reducer.bytes_sent
        yield found


def _limit(options: Options, reader: Reader) -> int | None:
    """Return how many batches a run takes, None: no limit."""
    if options.steps is not None:
        return options.steps
    return None if options.epochs is None else options.epochs * reader.steps


def _open_sync(run: Run, stack: ExitStack) -> Opened:
    return open_sync(run, stack, lambda reader: _limit(run.options, reader))


def _open_local(run: Run, stack: ExitStack) -> Opened:
    options, size = run.options, run.problem.layers.size
    reader = run.open_reader(stack)
    batches, tau = _limit(options, reader), int(options.tau or 1)
    vectors = run.vectors()
    learner = MiniBatches(vectors, run.open_optimiser((0, size)), options.clip_norm)
    reducer = run.open_reducer(stack, Local.averaged(run.problem, learner, options.average_momentum), options.dtype,
                               None if run.device is None else options.dtype, run.device)
    algorithm = Local(*run.shared(reader), vectors, reducer, learner, run.schedule(batches, reader.steps), run.start(),
                      tau, batches, options.average_momentum)
    rounds = None if batches is None else -(-batches // tau)
    return opened(run, algorithm, rounds, reducer,
                  count_steps=lambda steps: run.comm.allreduce(algorithm.batches, op=max))


def _open_lbfgs(run: Run, stack: ExitStack) -> Opened:
    options = run.options
    reader = run.open_reader(stack)
    gradient: Gradient = FixedPointGradient(run.problem) if options.reproducible else FloatGradient(run.problem)
    reducer = run.open_reducer(stack, run.problem.layers.size + gradient.extra, gradient.dtype)
    algorithm = Lbfgs(*run.shared(reader), reducer, gradient, run.start(), float(options.tolerance or 0))
    return opened(run, algorithm, _limit(options, reader), reducer, tolerance=None)


def _open_average(run: Run, stack: ExitStack) -> Opened:
    options, comm, problem = run.options, run.comm, run.problem
    begun = None if run.kept is None else int(run.kept.values["machines"])
    count = begun or options.machines or comm.size
    with agreed(comm):
        if options.machines not in (None, count):
            raise UserError(f"--machines {options.machines}: the run to go on with was begun with {count}; give that, "
                            "or leave it out")
        if options.time_budget is not None and options.rounds != 1 and options.epochs is None and options.steps is None:
            raise UserError("--time-budget alone does not say how long a round is; give --epochs or --steps too, or "
                            "leave out --rounds")
        if options.time_budget is not None and count > comm.size and begun is None:
            raise UserError(f"--time-budget does not go with more --machines ({count}) than ranks ({comm.size}), which "
                            "take turns; give --epochs or --steps")
    own = range(*split(count, comm.size, comm.rank))
    readers = _readers(run, stack, count, own)
    run.keep(readers)
    machines = [Machine(number, reader) for number, reader in zip(own, readers, strict=False)]
    size = problem.layers.size
    one_by_one = options.batch_size == 1 and problem.objective.sequential
    learner: Learner
    if not one_by_one:
        learner = MiniBatches(run.vectors(), run.open_optimiser((0, size)))
    else:
        learner = DeviceOneByOne(problem) if isinstance(problem, DeviceProblem) else OneByOne(problem)
    reducer = run.open_reducer(stack, size, options.dtype)
    epochs = options.epochs if options.steps is None else None
    chunks = epochs * readers[0].steps if epochs is not None else None
    if options.steps is not None:
        chunks = -(-options.steps // CHUNK_ROWS)
    bar = run.console.bar((chunks or 0) * len(machines), "training", _chunks_before(run, own))
    plan = Plan(count, int(options.rounds or 1), epochs, options.steps, options.weighting == "rows",
                None if one_by_one else int(options.batch_size or 1), run.at_once)
    algorithm = Averaging(*run.shared(readers[0]), plan, reducer, learner, machines,
                          run.schedule(chunks, readers[0].steps), run.start(),
                          lambda loss: bar.advance(1, f"loss {loss:.4f}"))
    return Opened(algorithm, options.rounds, options.tolerance, lambda met: None, bar.close, reducer,
                  count_steps=lambda steps: algorithm.most_examples())


def _chunks_before(run: Run, own: range) -> int:
    """Return how many chunks this rank's machines learnt from before the run was resumed."""
    places = [] if run.kept is None else [place for rank in run.kept.own for place in rank["places"]]
    return sum(place["chunk"] for place in places if place["number"] in own)


def _readers(run: Run, stack: ExitStack, count: int, own: range) -> list[Reader]:
    """Collective: return what each of this rank's machines reads; for a rank without any, what reads its part of the
    whole."""
    options, comm, dataset, dtype = run.options, run.comm, run.dataset, run.problem.dtype
    node_ranks = ranks_on_node(comm)
    with agreed(comm):
        most_bytes = most_row_bytes(dataset, Batches(dataset, None, 0, 1), node_ranks, options.memory_limit)
        weighted = gives_weights(dataset, run.learnable)
    if all(comm.allgather(fits_resident(dataset, dtype, most_bytes, weighted))):
        with agreed(comm):
            loaded = load_all(dataset, run.learnable, dtype)
        if dataset.skips_bad_shards:
            leave_out_lost(comm, dataset)
        run.problem.leave_out(dataset)
        return [SharesReader(loaded, share, comm.rank, comm.size) for share in _shares(options, dataset, count, own)]
    with agreed(comm):
        if options.replicas:
            raise UserError(f"--replicas draws rows from anywhere in {dataset.path}, which do not fit in memory; give "
                            "a larger --memory-limit, or leave out --replicas")
        if run.kept is not None and count != comm.size:
            raise UserError(f"{dataset.path} does not fit in memory: each of the {count} machines of the run has read "
                            f"its own part, on a rank of its own; go on with {count} ranks, or begin anew")
        if count != comm.size:
            raise UserError(f"{dataset.path} does not fit in memory, and is read by one machine a rank; leave out "
                            "--machines, or give a larger --memory-limit")
        batches = Batches(dataset, CHUNK_ROWS * count, comm.rank, count, options.seed, options.shuffle,
                          dataset.chunk_rows)
        reader = stack.enter_context(open_reader(dataset, batches, run.learnable, dtype, most_bytes))
    settle_losses(comm, reader)
    run.problem.leave_out(dataset)
    run.console.say("         the rows do not fit in memory: each machine reads a contiguous part of them, so they "
                    "should have been stored in random order (`data import --shuffle`)")
    return [reader]


def _shares(options: Options, dataset: Dataset, count: int, own: range) -> list[Share]:
    machines = list(own) or [0]
    if not options.replicas:
        return [DealtShare(dataset.rows, machine, count, options.seed, options.shuffle) for machine in machines]
    draws = options.steps if options.steps is not None else max(1, dataset.rows // count)
    return [DrawnShare(dataset.rows, draws, machine, options.seed) for machine in machines]


OPENERS: dict[str, Callable[[Run, ExitStack], Opened]] = {
    "sync": _open_sync, "local": _open_local, "average": _open_average, "lbfgs": _open_lbfgs}
