"""``dml-hpc train``: data set → objective → algorithm → model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import Clock
from dml_hpc.commands import reducing
from dml_hpc.commands.opening import check_resident, most_row_bytes, named, open_data
from dml_hpc.console import Console
from dml_hpc.data.batches import Batches, RandomShare
from dml_hpc.data.dataset import Dataset, no_rows
from dml_hpc.data.reading import Reader, Resident, open_reader
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.files import check_output
from dml_hpc.kernels import computable, start_compiler
from dml_hpc.memory import peak_bytes
from dml_hpc.mpi import agreed, first_on_node, ranks_on_node
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.scaling import identity, of_sparse, standardising
from dml_hpc.optim.schedules import Schedule
from dml_hpc.store.model import LinearModel, weights_digest, write_model
from dml_hpc.trainers.averaging import train_average
from dml_hpc.trainers.gradient import MOST_ROWS, FixedPointGradient, FloatGradient
from dml_hpc.trainers.problem import Problem, compile_kernels
from dml_hpc.trainers.sync import train_sync

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

DEFAULTS: dict[str, dict[str, Any]] = {
    "sync": {"batch_size": 1024, "step_size": 0.1, "schedule": "cosine", "momentum": 0.9, "warmup": 0.0},
    "average": {"batch_size": None, "step_size": 0.002, "schedule": "constant", "momentum": 0.0, "warmup": 0.0},
}
"""What an option means when it is not given, by algorithm."""


def run(comm: Intracomm, console: Console, data: Sequence[Path], output: Path, *, x_key: str | None,
        y_key: str | None, memory_limit: int | None, objective: str, algorithm: str,
        allreduce: str, tuning: Path | None, fan_in: int, batch_size: int | str | None, epochs: int, steps: int | None,
        step_size: float | None, schedule: str | None, momentum: float | None, warmup: float | None, l2: float,
        intercept: bool, scale: bool, shuffle: bool, seed: int, dtype: str, reproducible: bool,
        compression: str, compression_ratio: float | None, compression_rank: int | None,
        overwrite: bool) -> dict[str, Any]:
    """Collective: train on the data set ``data`` and write the model to ``output`` (rank 0 writes it).

    The arguments are those of ``dml-hpc train --help``; None takes the algorithm's default. Returns the keys of
    the ``--json`` object on every rank.
    """
    goal = open_objective(objective)
    dataset = open_data(comm, data, x_key, y_key, statistics=scale)
    with agreed(comm):
        settings = _settings(algorithm, batch_size=batch_size, step_size=step_size, schedule=schedule,
                             momentum=momentum, warmup=warmup)
        reducing.check(allreduce, tuning, output, comm.rank)
        # The intercept's gradient and the loss, the last two elements, are never compressed.
        compressing = reducing.compressed(compression, compression_ratio, compression_rank, exact=2)
        if compressing is not None and (reproducible or dtype != "float32" or algorithm != "sync"):
            raise UserError("--compression makes up for its losses in later steps, in float32: it goes with "
                            "--algorithm sync and --dtype float32, without --reproducible")
        if reproducible and algorithm == "average":
            raise UserError("--reproducible: what averaging learns depends on the number of ranks by its nature; use "
                            "--algorithm sync")
        if dataset.rows == 0:
            raise UserError(f"{named(data)} has no rows to train on")
        if dataset.kind != "dense" and algorithm == "average":
            raise UserError(f"{named(data)} holds sparse rows, which --algorithm average does not take; use sync, or "
                            "import with --layout dense")
        label = dataset.manifest.label
        classes = goal.classes(label.name, label.values)
        if comm.rank == 0:
            check_output(output, overwrite)
        rows_a_step = None if settings["batch_size"] == "full" else settings["batch_size"]
        if reproducible and min(rows_a_step or dataset.rows, dataset.rows) > MOST_ROWS:
            raise UserError(f"--reproducible sums over at most {MOST_ROWS:,} rows a step; give a smaller --batch-size")
    sequential = algorithm == "average"
    kind, stored = np.dtype(dtype), np.dtype(dataset.manifest.dtype)
    start_compiler()
    with first_on_node(comm):  # the first rank fills Numba's cache, the others load it
        batches = Batches(dataset, rows_a_step, comm.rank, comm.size, seed, shuffle,
                          dataset.chunk_rows)
        scaling = _scaling(dataset, scale, intercept, kind)
        problem = Problem(goal, batches, scaling, dataset.rows, dataset.features, l2, kind)
        compile_kernels(problem, no_rows(dataset, computable(stored, kind)), sequential, reproducible)
    share = RandomShare(dataset.rows, comm.rank, comm.size, seed, shuffle)
    reader = _reader(comm, dataset, problem, classes, sequential, memory_limit)
    steps_per_epoch = share.steps if sequential else batches.steps
    all_steps = steps_per_epoch * epochs if steps is None else steps

    console.say(f"train    {objective} on {named(data)}: {dataset.rows:,} rows × {dataset.features} features, "
                f"{comm.size} rank{'s' * (comm.size > 1)}, {algorithm} with the {allreduce} all-reduce")
    weights = np.zeros(dataset.features + 1, kind)
    clock = Clock(steps_per_epoch)

    def on_step(rows: int, loss: float) -> None:
        bar.advance(1, f"loss {loss:.4f}")

    gradient = FixedPointGradient(problem) if reproducible else FloatGradient(problem)
    open_reducer = reducing.opener(console, allreduce, fan_in, tuning, compressing)
    with reader, (open_reducer(comm, dataset.features + 2, dtype) if sequential else
                  open_reducer(comm, dataset.features + 1 + gradient.extra, gradient.dtype, weights=dtype)) as reducer:
        if compressing is not None and reducer.compression is None:
            console.say(f"         the vector is no larger than what {compression} would send: it is sent as it is")
        bar = console.bar(all_steps, "training")
        started = time.perf_counter()
        if sequential:
            losses = train_average(reducer, problem, reader, dataset.offsets, share, weights, settings["step_size"],
                                   all_steps, clock, on_step)
        else:
            plan = Schedule(settings["schedule"], settings["step_size"], all_steps, batches.steps, settings["warmup"])
            losses = train_sync(reducer, problem, reader, gradient, weights, plan, settings["momentum"], clock,
                                on_step)
        work_s = time.perf_counter() - started
        bytes_sent, summed_by, choice, sent_as = reducer.bytes_sent, reducer.name, reducer.choice, reducer.compression
    raw = scaling.fold(weights, np.empty_like(weights))
    loss = _final_loss(comm, problem, reader, raw)
    bar.close(f"loss {loss:.4f}")
    digest = _same_everywhere(comm, raw)

    examples = round(dataset.rows * all_steps / steps_per_epoch)
    own_rows = share.count if sequential else batches.count
    splits = comm.allgather({**clock.seconds, "rows": own_rows, "work_s": work_s, "bytes_sent": bytes_sent,
                             "rows_are": reader.how, "peak_bytes": peak_bytes()})
    work_s = max(split["work_s"] for split in splits)
    result = {
        "objective": objective, "algorithm": algorithm, "allreduce": allreduce, "allreduce_used": summed_by,
        "allreduce_choice": choice, "device": "cpu",
        "steps": all_steps, "epochs": epochs if steps is None else all_steps / steps_per_epoch, "examples": examples,
        "examples_per_s": examples / work_s, "loss": loss, "losses": losses, "weights_digest": digest,
        "time_split": {key: max(split[key] for split in splits)
                       for key in ("read", "compute", "communicate", "wait")},
        "work_s": work_s, "per_rank": splits, "data": named(data), "model": str(output), "rows": dataset.rows,
        "features": dataset.features, **settings, "l2": l2, "intercept": intercept, "scale": scale,
        "shuffle": shuffle, "seed": seed, "dtype": dtype, "reproducible": reproducible,
        "compression": None if compressing is None else compression, "compression_used": sent_as,
        "compression_ratio": compressing.ratio if compressing is not None and compression == "topk" else None,
        "compression_rank": compressing.rank if compressing is not None and compression == "powersgd" else None,
        "fan_in": fan_in if summed_by == "tree" else None,
    }
    with agreed(comm):
        if comm.rank == 0:
            training = {key: value for key, value in result.items() if key not in _OF_THE_RUN} | {"ranks": comm.size}
            write_model(output, LinearModel(objective, raw, dataset.manifest.feature_names, label.name, classes,
                                            label.names, training))
    _tell(console, result)
    return result


_OF_THE_RUN = ("allreduce_used", "compression_used", "allreduce_choice", "time_split", "per_rank", "work_s",
               "examples_per_s", "weights_digest")
"""What says how the run went, not how the model came about; two runs may differ in it and give the same model."""


def _tell(console: Console, result: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["time_split"].items())
    console.say(f"trained  {result['steps']:,} steps, {result['examples']:,} examples in {result['work_s']:.2f} s "
                f"({result['examples_per_s']:,.0f} examples/s): {shares}")
    console.say(f"model    {result['model']}: training loss {result['loss']:.5f}, "
                f"weights {result['weights_digest'][:16]}…")


def _settings(algorithm: str, **given: Any) -> dict[str, Any]:
    """Return the algorithm's settings; refuse what it cannot follow rather than ignore it."""
    defaults = DEFAULTS[algorithm]
    if algorithm == "average":
        for name in ("batch_size", "schedule", "momentum", "warmup"):
            if given[name] is not None and given[name] != defaults[name]:
                raise UserError(f"--algorithm average takes one example at a time with a constant step size: leave "
                                f"out --{name.replace('_', '-')}, or use --algorithm sync")
    return {name: default if given[name] is None else given[name] for name, default in defaults.items()}


def _scaling(dataset: Dataset, scale: bool, intercept: bool, dtype: np.dtype) -> Any:
    if not scale:
        return identity(dataset.features, intercept, dtype)
    figures = dataset.manifest.statistics
    assert figures is not None, "opened with statistics"
    if dataset.kind == "csr":
        return of_sparse(figures.minimum, figures.maximum, figures.numeric, intercept, dtype)
    return standardising(figures.mean, figures.deviation, figures.numeric, intercept, dtype)


def _reader(comm: Intracomm, dataset: Dataset, problem: Problem, classes: list[float] | None, sequential: bool,
            memory_limit: int | None) -> Reader:
    """Collective: open what gives this rank its rows."""
    node_ranks = ranks_on_node(comm)

    def targets(y: np.ndarray) -> np.ndarray:
        return problem.objective.targets(y, classes, problem.dtype)

    with agreed(comm):
        most_bytes = most_row_bytes(dataset, problem.batches, node_ranks, memory_limit)
        if not sequential:
            return open_reader(dataset, problem.batches, targets, problem.dtype, most_bytes)
        # Averaging deals rows at random, wherever they are stored; batches take a contiguous range.
        check_resident(dataset, problem.dtype, most_bytes)
        return Resident(dataset, problem.batches, targets, problem.dtype, all_rows=True)


def _final_loss(comm: Intracomm, problem: Problem, reader: Reader, raw: np.ndarray) -> float:
    """Return the mean loss of all rows under the final weights, without the penalty: one more pass over the data."""
    own = problem.loss_and_gradient(reader.everything(), raw, np.zeros_like(raw))
    loss = comm.allreduce(own) / problem.rows
    if not (np.isfinite(loss) and np.isfinite(raw).all()):
        raise AgreedError(f"training ended with a loss of {loss} and weights that are not all finite: the step size is "
                          "too large for this data (try a tenth of it); the model is not saved", 0, 1)
    return loss


def _same_everywhere(comm: Intracomm, weights: np.ndarray) -> str:
    """Return the digest of the weights, which every rank must share: else the sums went wrong somewhere."""
    digests = comm.allgather(weights_digest(weights))
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise AgreedError(f"the weights differ from rank 0's after training ({digest[:12]} ≠ {digests[0][:12]}): "
                              "the all-reduce gave ranks different sums; the model is not saved", rank, 1)
    return digests[0]
