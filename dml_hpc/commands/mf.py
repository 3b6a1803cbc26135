"""``dml-hpc mf``: factors of users and items that predict ratings, into an HDF5 file."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.clock import PHASES, Clock
from dml_hpc.commands.keeping import Keeping, about_run
from dml_hpc.commands.whereabouts import whereabouts
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.decomposition.mf import EPOCHS
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.decomposition.mf.sgd import Settings, Sgd
from dml_hpc.decomposition.mf.steps import DEFAULT_STEP_SIZE, StepSizes
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.kernels import start_compiler
from dml_hpc.memory import free_bytes, peak_bytes, resident_bytes
from dml_hpc.mpi import agreed, first_on_node, ranks_on_node
from dml_hpc.reports.timeline import write_timeline
from dml_hpc.store.every import Every
from dml_hpc.store.live import Live
from dml_hpc.store.rating_factors import Piece, write_rating_factors
from dml_hpc.store.saving import Memory
from dml_hpc.store.state import Kept
from dml_hpc.usage import since, usage

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, ratings: Path, output: Path, k: int = 32, algorithm: str = "sgd",
        l2: float = 0.05, biases: bool = True, schedule: str = "adagrad", step_size: float | None = None,
        epochs: int | None = None, time_budget: float | None = None, tolerance: float | None = None,
        test: Path | None = None, factors: str = "float32", threads: int | None = None,
        memory_limit: int | None = None, reproducible: bool = False, seed: int = 0, trace: Path | None = None,
        overwrite: bool = False, checkpoint: Path | None = None, checkpoint_every: Every | None = None,
        keep: int | None = None, resume: bool = False, memory: Memory | None = None, live: Live | None = None,
        probe: bool = False) -> dict[str, Any]:
    """Collective: factorise the data set ``ratings`` and write the factors to ``output``.

    ``checkpoint``, ``checkpoint_every``, ``keep``, ``resume``, ``memory`` and ``live`` are those of `Keeping`; a step
    is an epoch. With ``probe`` the wire between ranks is measured at the end. Returns the ``--json`` keys. Raises
    `AgreedError` on every rank for what the user can mend, before anything is written.
    """
    started = time.perf_counter()
    keeping = Keeping(checkpoint, checkpoint_every, keep, resume, memory, live)
    inputs = [ratings, *([] if test is None else [test])]
    with agreed(comm):
        keeping.check(comm.rank, inputs)
        if reproducible and time_budget is not None:
            raise UserError("--reproducible and --time-budget: how far a run comes in a time is never the same; give "
                            "--epochs instead")
        if schedule == "cosine" and epochs is None and time_budget is not None:
            raise UserError("--schedule cosine ends with the last epoch: say which with --epochs, or choose another")
        if comm.rank == 0:
            check_output(output, overwrite or keeping.again, inputs=inputs)
            if trace is not None:
                if trace.absolute() == output.absolute():
                    raise UserError(f"--trace and -o name the same file, {output}; choose another")
                check_output(trace, overwrite or keeping.again, option="--trace", inputs=inputs)
    learnt = open_ratings(comm, ratings)
    held = None if test is None else open_ratings(comm, test)
    node_ranks = ranks_on_node(comm)
    with agreed(comm):
        if not learnt.grid.ratings:
            raise UserError(f"{ratings} holds no ratings; there is nothing to factorise")
        if held is not None and not held.grid.ratings:
            raise UserError(f"{test} holds no ratings to test on; leave --test out")
        most_bytes = _most_bytes(memory_limit, node_ranks)
        threads = threads or _threads()
    step_size = step_size or DEFAULT_STEP_SIZE[schedule]
    epochs = EPOCHS if epochs is None and time_budget is None else epochs
    about = about_run(comm, "mf", learnt.dataset, {
        "k": k, "algorithm": algorithm, "l2": l2, "biases": biases, "schedule": schedule, "step_size": step_size,
        "factors": factors, "seed": seed, **({"epochs": epochs} if schedule == "cosine" else {})})
    kept = keeping.kept(comm, console, about)
    with agreed(comm):
        _check_limits(kept, epochs)
    settings = Settings(k, l2, biases, factors, schedule == "adagrad", seed, threads)
    start_compiler()
    with first_on_node(comm):
        Sgd.compile(settings, learnt.weighted)
    clock = Clock(timeline=trace is not None)
    with keeping.saving(comm, console, about, kept) as saving, Sgd(
            comm, learnt, settings, clock, held, most_bytes) as sgd:
        _introduce(console, learnt, sgd, comm.size)
        bar = console.bar(epochs or 0, "factorising", 0 if kept is None else kept.part("loop").values["step"])
        own_ratings = int(learnt.grid.counts[sgd.own.start:sgd.own.stop].sum())
        comm.Barrier()  # so that time begins at once everywhere
        began, taken = time.perf_counter(), usage()
        outcome = learn(sgd, StepSizes(schedule, step_size, epochs), Limits(epochs, time_budget, tolerance), saving,
                        own_ratings, lambda so_far: bar.advance(1, _rmse(so_far)))
        work_s, used = time.perf_counter() - began, since(taken)
        bar.close(_rmse(outcome))
        scale = math.sqrt(sgd.scale)
        digest = write_rating_factors(
            comm, output, _pieces(sgd, learnt, scale), learnt.users, learnt.items, sgd.mean,
            {"k": k, "algorithm": algorithm, "l2": l2, "biases": biases, "schedule": schedule, "step_size": step_size,
             "epochs": outcome.epochs, "seed": seed, "lowest": learnt.grid.lowest, "highest": learnt.grid.highest,
             "ratings": learnt.grid.ratings})
        bytes_sent = 0 if sgd.carousel is None else sgd.carousel.bytes_sent
        active = sgd.strata.active
    if trace is not None:
        write_timeline(comm, trace, clock.spans(started))
    done = outcome.epochs - (0 if kept is None else kept.part("loop").values["step"])
    per_rank = comm.allgather({name: round(seconds, 6) for name, seconds in clock.seconds.items()} | {
        "work_s": round(work_s, 6), **used, "rows": own_ratings,
        "examples": own_ratings * done, "bytes_sent": bytes_sent, "peak_bytes": peak_bytes()})
    learning_s = max(comm.allgather(outcome.learning_s))
    result = {
        "k": k, "algorithm": algorithm, "epochs": outcome.epochs,
        "rmse_train": outcome.rmse_train[-1] if outcome.rmse_train else None,
        "rmse_test": outcome.rmse_test[-1] if outcome.rmse_test else None,
        "updates_per_s": learnt.grid.ratings * done / learning_s if done else None, "learning_s": round(learning_s, 6),
        "mae_test": None if outcome.errors is None else outcome.errors.mae,
        "unknown_users": None if outcome.errors is None else outcome.errors.unknown_users,
        "unknown_items": None if outcome.errors is None else outcome.errors.unknown_items,
        "rmses_train": outcome.rmse_train, "rmses_test": outcome.rmse_test, "step_sizes": outcome.step_sizes,
        "l2": l2, "biases": biases, "schedule": schedule, "step_size": step_size, "factors_dtype": factors,
        "seed": seed, "threads": threads, "reproducible": reproducible, "stopped": outcome.stopped,
        "weights_digest": digest,
        "users": learnt.grid.users, "items": learnt.grid.items, "ratings": learnt.grid.ratings,
        "rows": learnt.grid.ratings, "grid": list(learnt.grid.shape), "ranks_at_work": active, "data": str(ratings),
        "test": None if test is None else str(test), "output": str(output),
        "examples": learnt.grid.ratings * done,
        "work_s": max(one["work_s"] for one in per_rank), "per_rank": per_rank,
        "time_split": {name: max(one[name] for one in per_rank) for name in PHASES},
        "bytes_sent": sum(one["bytes_sent"] for one in per_rank), "trace": comm.allgather(outcome.points),
        "peak_bytes": max(one["peak_bytes"] for one in per_rank), "checkpoints": saving.count,
        "checkpoints_failed": saving.failures,
        "resumed_from": None if kept is None else kept.part("loop").values["step"],
        "ranks_at_starts": [comm.size] if memory is None else memory.ranks, **whereabouts(comm, probe),
    }
    _tell(console, result)
    return result


def _threads() -> int:
    """Return how many threads a rank may start: what was said of it, or was divided among the node's ranks."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0))


def _most_bytes(memory_limit: int | None, node_ranks: int) -> int | None:
    """Return how much memory this rank's copies of compressed ratings may take, None: nothing is known."""
    if memory_limit is None:
        free = free_bytes()
        return None if free is None else free // 2 // node_ranks
    left = memory_limit - resident_bytes()
    if left <= 0:
        raise UserError(f"--memory-limit is below the {resident_bytes() >> 20:,} MiB that a rank takes before it has "
                        "read a rating; give more")
    return left // 2


def _check_limits(kept: Kept | None, epochs: int | None) -> None:
    """Raise `UserError` when the run in ``kept`` is past ``epochs``: it would be returned as what was asked for."""
    done = 0 if kept is None else kept.part("loop").values["step"]
    if epochs is not None and done > epochs:
        raise UserError(f"{getattr(kept, 'path', 'what is remembered')} has done {done:,} epochs, and --epochs asks "
                        f"for {epochs:,}; give more, or give another --checkpoint folder")


def _pieces(sgd: Sgd, ratings: StoredRatings, scale: float) -> list[Piece]:
    """Return this rank's rows as the file has them: for ratings as they are, not divided by their deviation."""
    parts = [("user", sgd.first_user, sgd.users),
             *(("item", int(ratings.grid.item_bounds[i]), rows) for i, rows in sgd.items())]
    return [Piece(f"{side}_{name}", first, array, factor) for side, first, rows in parts
            for name, array, factor in (("factors", rows.factors[:, :sgd.settings.k], scale),
                                        ("biases", rows.biases, scale * scale)) if array is not None]


def _rmse(outcome: Outcome) -> str:
    errors = outcome.rmse_test or outcome.rmse_train
    return f"RMSE {errors[-1]:.4f}" if errors else ""


def _introduce(console: Console, ratings: StoredRatings, sgd: Sgd, ranks: int) -> None:
    grid, active = ratings.grid, sgd.strata.active
    console.say(f"ratings  {grid.ratings:,} of {grid.users:,} users and {grid.items:,} items, mean {sgd.mean:.4g}, "
                f"deviation {sgd.scale:.4g}, in {grid.shape[0]} × {grid.shape[1]} blocks")
    if active < ranks:
        console.say(f"warning  there are {grid.shape[0]} stripes of users for {ranks} ranks: {ranks - active} have "
                    f"nothing to do; import the ratings with --grid {ranks}x{2 * ranks} to use all")
    stripes = [grid.counts[sgd.strata.bounds[rank]:sgd.strata.bounds[rank + 1]].sum() for rank in range(active)]
    if active > 1 and max(stripes) > 1.5 * grid.ratings / active:
        console.say(f"warning  rank {stripes.index(max(stripes))} has {max(stripes) / grid.ratings:.0%} of the "
                    "ratings, as a stripe of users holds so many: the others will wait for it")


def _tell(console: Console, result: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["time_split"].items())
    rate = "–" if result["updates_per_s"] is None else f"{result['updates_per_s'] / 1e6:,.1f} M"
    console.say(f"learnt   {result['epochs']} epochs in {result['learning_s']:.2f} s ({rate} updates/s): {shares}; "
                f"{result['stopped']}")
    if result["rmse_test"] is not None:
        unknown = [f"{result[f'unknown_{side}']:,} with unknown {side}" for side in ("users", "items")
                   if result[f"unknown_{side}"]]
        console.say(f"tested   RMSE {result['rmse_test']:.4f}, MAE {result['mae_test']:.4f}"
                    + (f" (of its ratings {', '.join(unknown)})" if unknown else ""))
    console.say(f"factors  {result['output']}: k = {result['k']}, training RMSE {result['rmse_train']:.4f}, weights "
                f"{result['weights_digest'][:16]}…")
