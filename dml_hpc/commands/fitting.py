"""One training run: a data set, an objective and an algorithm in, a model and an account of the run out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.comm.clock import PHASES, Clock
from dml_hpc.comm.reducer import Reducer
from dml_hpc.commands import reducing
from dml_hpc.commands.algorithms import open_algorithm
from dml_hpc.commands.devices import open_rows
from dml_hpc.commands.going_on import check_limits, limits_of
from dml_hpc.commands.held_out import Validation, mean_loss, open_validation
from dml_hpc.commands.keeping import Keeping, about_run
from dml_hpc.commands.learnable import Learnable, open_learnable
from dml_hpc.commands.opening import named, open_data
from dml_hpc.commands.train_options import PATIENCE, WIDE, Options, settled
from dml_hpc.commands.training_run import Run, compile_kernels
from dml_hpc.console import Console
from dml_hpc.data.dataset import Dataset
from dml_hpc.data.reading import Reader
from dml_hpc.errors import AgreedError, UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.memory import peak_bytes
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.objectives import open_objective
from dml_hpc.objectives.layers import Layers
from dml_hpc.objectives.scaling import Scaling, identity, of_sparse, standardising
from dml_hpc.store.model import Model, weights_digest
from dml_hpc.trainers.algorithm import Algorithm
from dml_hpc.trainers.divergence import advice, diverged
from dml_hpc.trainers.loop import LEAST_ROWS, RISEN, Limits, Outcome, train
from dml_hpc.trainers.on_device import DeviceProblem
from dml_hpc.trainers.problem import Problem
from dml_hpc.trainers.rebalancing import Rebalancing
from dml_hpc.trainers.stragglers import Pace
from dml_hpc.trainers.theory import explain
from dml_hpc.trainers.trace import Trace
from dml_hpc.usage import since, usage

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


@dataclass
class Fit:
    """What came of a run, on every rank: a model for rows as they are stored, and the keys of the ``--json`` object.

    ``spans`` are this rank's part of a timeline (see `dml_hpc.comm.clock.Clock.spans`).
    """

    model: Model
    result: dict[str, Any]
    spans: np.ndarray


def fit(comm: Intracomm, console: Console, data: Sequence[Path], given: Options, at_once: bool = True,
        keeping: Keeping | None = None) -> Fit:
    """Collective: train on the data set ``data`` as the options say, and keep the run as ``keeping`` says.

    Raises `AgreedError`.

    With ``at_once`` a rank whose loss goes wrong where no other knows of it ends the job there and then.
    """
    with agreed(comm):
        objective = open_objective(given.objective, **given.objective_settings)
    dataset = open_data(comm, data, given.x_key, given.y_key, given.weight_key, statistics=given.scale,
                        skip_bad_shards=given.skip_bad_shards)
    with agreed(comm):
        if dataset.rows == 0:
            raise UserError(f"{named(data)} has no rows to train on")
        label = dataset.manifest.label
        classes = objective.classes(label.name, label.values)
        options = settled(given, objective, dataset.kind == "csr", dataset.features, dataset.rows)
        layers = objective.layers(dataset.features, classes)
        dtype = np.dtype(options.dtype)
        compressing = _compressing(options)
    learnable = open_learnable(comm, dataset, objective, classes, dtype, options.class_weight, options.sample_weight)
    validation = open_validation(comm, dataset, options)
    moved = open_rows(comm, console, options.device, options.rows_as)
    start_compiler()
    with agreed(comm):
        scaling, squared_norm = _scaling(dataset, layers, options, dtype)
        if dataset.features > WIDE:  # they take more memory than the model, and have served
            dataset.manifest = replace(dataset.manifest, statistics=None)
        problem = Problem(objective, layers, scaling, dataset.rows, options.l1, options.l2, dtype, squared_norm,
                          learnable.mean_without)
        if moved is not None:
            problem = DeviceProblem(problem, moved)
    console.say(f"train    {options.objective} on {named(data)}: {dataset.rows:,} rows × {dataset.features:,} "
                f"features, {comm.size} rank{'s' * (comm.size > 1)}, {options.algorithm} with the "
                f"{options.allreduce} all-reduce")
    clock = Clock(timeline=options.trace is not None)
    trace = Trace(clock)
    started = time.perf_counter()
    time_over: Callable[[], bool] = lambda: False  # noqa: E731
    if options.time_budget is not None:
        budget = options.time_budget
        time_over = lambda: trace.seconds > budget  # noqa: E731
    run = Run(comm, console, dataset, problem, learnable, options, compressing, clock, trace, time_over, at_once,
              moved)
    with first_on_node(comm):  # the first rank fills Numba's cache, the others load it
        compile_kernels(run)
    keeping = keeping or Keeping()
    about = about_run(comm, "train", dataset, _meaning(options), validation)
    kept = keeping.kept(comm, console, about)
    if kept is not None:
        run.kept, run.steps_before = kept.part("algorithm"), kept.part("loop").values["step"]
    with open_algorithm(run) as opened, keeping.saving(comm, console, about, kept) as saving:
        algorithm = opened.algorithm
        with agreed(comm):
            if kept is not None:
                check_limits(kept, options, opened)
        validate: Callable[[np.ndarray], float] | None = None
        if validation is not None:
            held = Validation(comm, validation, problem, learnable, options)
            run.keep([held.reader])
            validate = held.loss
        comm.Barrier()  # so that time begins at once everywhere
        started, taken = time.perf_counter(), usage()
        limits = Limits(opened.steps, opened.tolerance, int(options.patience or PATIENCE), limits_of(options))
        pace, rebalancing = _watching(comm, run, algorithm)
        outcome = train(comm, algorithm, limits, opened.on_step, validate,
                        lambda step, how: diverged(comm, algorithm, step, how), saving, pace, rebalancing)
        reader = algorithm.reader
        work_s, used = time.perf_counter() - started, since(taken)
        outcome.losses = algorithm.epoch_losses() or outcome.losses
        raw = scaling.fold(outcome.parameters, np.empty_like(outcome.parameters))
        digest = _same_everywhere(comm, raw)
        loss = _final_loss(comm, problem, learnable, reader, raw, advice(algorithm, None))
        if outcome.began > 0 and loss > RISEN * outcome.began and dataset.rows >= LEAST_ROWS:
            raise diverged(comm, algorithm, outcome.steps - 1, f"rose from {outcome.began:.4g} to {loss:.4g}")
        opened.close_bar(f"loss {loss:.4f}")
        theory = explain(comm, algorithm, lambda parameters: mean_loss(comm, problem, learnable, reader, scaling.fold(
            parameters, np.empty_like(parameters))), loss)
        steps = opened.count_steps(outcome.steps)
        own = {**clock.seconds, "rows": algorithm.own_rows, "work_s": work_s, **used, "bytes_sent": trace.bytes_sent(),
               "rows_are": reader.how, "device": None if moved is None else moved.device.description,
               "rows_on_device": None if moved is None else moved.keep(reader.at_hand()),
               "left_out_rows": reader.left_out_rows,
               "peak_bytes": peak_bytes(), "examples": round(trace.examples), "checkpoint_s": saving.lost_s}
    result = _account(comm, data, dataset, options, outcome, own, trace)
    result.update(checkpoints=saving.count, checkpoints_failed=saving.failures,
                  resumed_from=None if kept is None else run.steps_before,
                  ranks_at_starts=[comm.size] if keeping.memory is None else keeping.memory.ranks)
    result.update(stragglers=[] if pace is None else pace.result(),
                  busy_per_rank=[one["read"] + one["compute"] for one in result["per_rank"]],
                  rebalanced=[] if rebalancing is None else rebalancing.moves)
    result.update(exchange_used=opened.exchange, loss=loss, penalty=problem.penalty(outcome.parameters),
                  weights_digest=digest, theory=theory, steps=steps,
                  parameters=layers.size, **_summing(opened.reducer, options))
    training = {key: value for key, value in result.items() if key not in _OF_THE_RUN} | {"ranks": comm.size}
    model = Model(objective.name, objective.settings, layers.widths, raw, dataset.manifest.feature_names, label.name,
                  classes, label.names, training)
    return Fit(model, result, clock.spans(started))


_OF_THE_RUN = ("allreduce_used", "compression_used", "exchange_used", "allreduce_choice", "time_split", "per_rank",
               "work_s", "examples_per_s", "weights_digest", "trace", "theory", "checkpoints", "checkpoints_failed",
               "resumed_from", "ranks_at_starts", "rebalance", "rebalanced", "stragglers", "busy_per_rank")
"""What says how the run went, not how the model came about; two runs may differ in it and give the same model."""


_FREE = ("memory_limit", "allreduce", "tuning", "fan_in", "exchange", "overlap", "epochs", "steps", "rounds",
         "time_budget", "tolerance", "patience", "validation", "device", "rows_as", "trace", "machines",
         "skip_bad_shards", "rebalance")
"""Options that a run may change when it goes on from a checkpoint: how far, and by which means."""


def _watching(comm: Intracomm, run: Run, algorithm: Algorithm) -> tuple[Pace | None, Rebalancing | None]:
    """Collective: return what looks how fast ranks get on, and what moves rows between them where that is wanted."""
    if comm.size == 1:
        return None, None
    say, reopen, wanted = run.console.say, run.reopen, run.options.rebalance
    advice = "" if wanted or reopen is None else "; --rebalance would give it fewer rows"
    pace = Pace(comm, algorithm, say, advice)
    return pace, Rebalancing(comm, algorithm, pace, reopen, say) if wanted and reopen is not None else None


def _meaning(options: Options) -> dict[str, Any]:
    """Return the options that a checkpoint must share with the run that goes on from it."""
    return {name: _json(value) for name, value in vars(options).items() if name not in _FREE}


def _json(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else _plain(value)


def _summing(reducer: Reducer | None, options: Options) -> dict[str, Any]:
    """Return how vectors were summed in the end."""
    name = None if reducer is None else reducer.name
    return {"allreduce_used": name, "allreduce_choice": None if reducer is None else reducer.choice,
            "compression_used": None if reducer is None else reducer.compression,
            "fan_in": options.fan_in if name == "tree" else None}


def _compressing(options: Options) -> Any:
    # The loss and who is late, the last elements, are never compressed, nor is a linear score's intercept.
    compressing = reducing.compressed(options.compression, options.compression_ratio, options.compression_rank, exact=3)
    if compressing is not None and (options.reproducible or options.dtype != "float32" or options.clip_norm is not None
                                    or options.algorithm != "sync"):
        raise UserError("--compression makes up for its losses in later steps, in float32: it goes with "
                        "--algorithm sync and --dtype float32, without --reproducible or --clip-norm")
    return compressing


def _scaling(dataset: Dataset, layers: Layers, options: Options, dtype: np.dtype) -> tuple[Scaling, float | None]:
    """Return the scaling of the features, and the mean of ‖(z, 1)‖² over the rows so scaled, None if not known."""
    figures = dataset.manifest.statistics
    if not options.scale or figures is None:
        scaling = identity(layers, options.intercept, dtype)
    elif dataset.kind == "csr":
        scaling = of_sparse(layers, figures.minimum, figures.maximum, figures.numeric, options.intercept, dtype)
    else:
        scaling = standardising(layers, figures.mean, figures.deviation, figures.numeric, options.intercept, dtype)
    if figures is None:
        return scaling, None
    with np.errstate(over="ignore"):
        scale = scaling.scale[:-1].astype(np.float64)
        squares = np.square(figures.deviation) + np.square(figures.mean - scaling.shift)
        return scaling, float(np.sum(np.square(scale) * squares)) + float(scaling.scale[-1])


def _final_loss(comm: Intracomm, problem: Problem, learnable: Learnable, reader: Reader, raw: np.ndarray,
                mend: str) -> float:
    loss = mean_loss(comm, problem, learnable, reader, raw)
    if not (np.isfinite(loss) and np.isfinite(raw).all()):
        raise AgreedError(f"training ended with a loss of {loss}, or weights that are not all finite: {mend}; the "
                          "model is not saved", 0, 1)
    return loss


def _same_everywhere(comm: Intracomm, weights: np.ndarray) -> str:
    """Return the digest of the weights, which every rank must share: else the sums went wrong somewhere."""
    digests = comm.allgather(weights_digest(weights))
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise AgreedError(f"the weights differ from rank 0's after training ({digest[:12]} ≠ {digests[0][:12]}): "
                              "the all-reduce gave ranks different sums; the model is not saved", rank, 1)
    return digests[0]


def _account(comm: Intracomm, data: Sequence[Path], dataset: Dataset, options: Options, outcome: Outcome,
             own: dict[str, Any], trace: Trace) -> dict[str, Any]:
    """Collective: return what a record tells of the options and of the run."""
    splits = comm.allgather(own)
    points = comm.allgather(trace.points)
    work_s = max(split["work_s"] for split in splits)
    new = outcome.rows - outcome.earlier_rows
    told = {name: _json(value) for name, value in vars(options).items()
            if name not in ("x_key", "y_key", "weight_key", "tuning", "trace")}
    return {
        **told, "examples": outcome.rows, "epochs": outcome.rows / dataset.used_rows,
        "examples_per_s": new / work_s if new else None, "losses": outcome.losses,
        "validation_losses": outcome.validation, "stopped": outcome.stopped,
        "time_split": {name: max(split[name] for split in splits) for name in PHASES},
        "skipped_shards": [one._asdict() for one in dataset.left_out],
        "skipped_rows": sum(one.rows or 0 for one in dataset.left_out),
        "work_s": work_s, "per_rank": splits, "data": named(data), "rows": dataset.used_rows,
        "features": dataset.features, "trace": points,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): one for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else str(value)

