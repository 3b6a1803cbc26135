"""``dml-hpc mf``: factors of users and items that predict ratings, into an HDF5 file."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.comm.clock import PHASES, Clock
from dml_hpc.commands.devices import open_gpu
from dml_hpc.commands.keeping import Keeping, about_run
from dml_hpc.commands.mf_options import wanted
from dml_hpc.commands.whereabouts import whereabouts
from dml_hpc.console import Console
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.decomposition.mf.als import Als
from dml_hpc.decomposition.mf.course import Limits, Outcome, learn
from dml_hpc.decomposition.mf.learner import Learner, Part
from dml_hpc.decomposition.mf.sgd import Sgd
from dml_hpc.device import Device
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
        l2: float | str | None = None, biases: bool | None = None, implicit: bool = False, alpha: float | None = None,
        solver: str | None = None, schedule: str | None = None, step_size: float | None = None,
        epochs: int | None = None, time_budget: float | None = None, tolerance: float | None = None,
        test: Path | None = None, factors: str | None = None, threads: int | None = None,
        memory_limit: int | None = None, reproducible: bool = False, seed: int = 0, trace: Path | None = None,
        overwrite: bool = False, checkpoint: Path | None = None, checkpoint_every: Every | None = None,
        keep: int | None = None, resume: bool = False, memory: Memory | None = None, live: Live | None = None,
        probe: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Collective: factorise the data set ``ratings`` and write the factors to ``output``.

    With ``device`` "cuda" factors are learnt on GPUs: see `dml_hpc.decomposition.mf.device_sgd` and ``device_als``.
    ``checkpoint``, ``checkpoint_every``, ``keep``, ``resume``, ``memory`` and ``live`` are those of `Keeping`; a step
    is an epoch. With ``probe`` the wire between ranks is measured at the end. Returns the ``--json`` keys. Raises
    `AgreedError` on every rank for what the user can mend, before anything is written.
    """
    started = time.perf_counter()
    keeping = Keeping(checkpoint, checkpoint_every, keep, resume, memory, live)
    inputs = [ratings, *([] if test is None else [test])]
    with agreed(comm):
        keeping.check(comm.rank, inputs)
        want = wanted({"k": k, "algorithm": algorithm, "l2": l2, "biases": biases, "implicit": implicit, "alpha": alpha,
                       "solver": solver, "schedule": schedule, "step_size": step_size, "epochs": epochs,
                       "factors": factors, "seed": seed, "threads": threads}, time_budget, reproducible,
                      test is not None, device)
        if comm.rank == 0:
            check_output(output, overwrite or keeping.again, inputs=inputs)
            if trace is not None:
                if trace.absolute() == output.absolute():
                    raise UserError(f"--trace and -o name the same file, {output}; choose another")
                check_output(trace, overwrite or keeping.again, option="--trace", inputs=inputs)
    gpu, sharers = open_gpu(comm, console, device)
    learnt = open_ratings(comm, ratings)
    held = None if test is None else open_ratings(comm, test)
    node_ranks = ranks_on_node(comm)
    with agreed(comm):
        if not learnt.grid.ratings:
            raise UserError(f"{ratings} holds no ratings; there is nothing to factorise")
        if held is not None and not held.grid.ratings:
            raise UserError(f"{test} holds no ratings to test on; leave --test out")
        if implicit and learnt.grid.lowest < 0:
            raise UserError(f"{ratings} holds negative ratings (the lowest is {learnt.grid.lowest:g}), and --implicit "
                            "ones count what was done; import others, or leave --implicit out")
        most_bytes = _most_bytes(memory_limit, node_ranks)
    about = about_run(comm, "mf", learnt.dataset, want.described() | (
        {"epochs": want.epochs} if want.schedule == "cosine" else {}))
    kept = keeping.kept(comm, console, about)
    with agreed(comm):
        _check_limits(kept, want.epochs)
    kind, besides = _kind(algorithm, gpu, sharers)
    start_compiler()
    with first_on_node(comm):
        kind.compile(want.settings, learnt.weighted)
    clock = Clock(timeline=trace is not None)
    begun = 0 if kept is None else kept.part("loop").values["step"]
    with keeping.saving(comm, console, about, kept) as saving, kind(
            comm, learnt, want.settings, clock, held, most_bytes, **besides) as found:
        learner: Learner = found
        with agreed(comm):
            if want.factors == "float16" and not 1e-6 <= learner.scale <= 1e6:
                raise UserError(f"the ratings' deviation is {learner.scale:.3g}, and factors of such are no numbers of "
                                "float16: leave out --factors float16, or import ratings in another unit")
        _introduce(console, learnt, learner, comm.allgather(learner.own_ratings), algorithm)
        staged = getattr(learner, "staged", None) if comm.size > 1 else None
        if staged is not None:
            console.say(f"factors  go from GPU to GPU through pinned host memory: {staged}")
        if (apart := getattr(learner, "apart", None)) is not None:
            console.say(f"factors  go between ranks of a node as messages, more slowly: {apart}")
        bar = console.bar(want.epochs or 0, "factorising", begun)
        comm.Barrier()  # so that time begins at once everywhere
        began, taken = time.perf_counter(), usage()
        outcome = learn(learner, want.steps, Limits(want.epochs, time_budget, tolerance), saving,
                        lambda so_far: bar.advance(1, _error(so_far)))
        work_s, used = time.perf_counter() - began, since(taken)
        bar.close(_error(outcome))
        learnt_penalties = getattr(learner, "penalties", None)
        noise = getattr(learner, "noise", None)
        digest = write_rating_factors(
            comm, output, _pieces(learner.parts(), math.sqrt(learner.scale)), learnt.users, learnt.items, learner.mean,
            {**want.described(), "epochs": outcome.epochs, "lowest": learnt.grid.lowest,
             "highest": learnt.grid.highest, "ratings": learnt.grid.ratings, "scale": learner.scale}
            | ({} if learnt_penalties is None else {"penalties": learnt_penalties}))
        resident = getattr(learner, "resident", None)
        own_ratings, bytes_sent, at_work = learner.own_ratings, learner.bytes_sent, learner.ranks_at_work
    if trace is not None:
        write_timeline(comm, trace, clock.spans(started))
    done = outcome.epochs - begun
    per_rank = comm.allgather({name: round(seconds, 6) for name, seconds in clock.seconds.items()} | {
        "work_s": round(work_s, 6), **used, "rows": own_ratings,
        "examples": own_ratings * done, "bytes_sent": bytes_sent, "peak_bytes": peak_bytes()} | (
        {} if resident is None else {"ratings_on_device": resident}))
    learning_s = max(comm.allgather(outcome.learning_s))
    result = {
        "k": k, "algorithm": algorithm, "device": device, "implicit": implicit, "alpha": want.alpha,
        "solver": want.solver,
        "epochs": outcome.epochs,
        "rmse_train": outcome.rmse_train[-1] if outcome.rmse_train else None,
        "rmse_test": None if outcome.errors is None else outcome.errors.rmse,
        "loss": outcome.losses[-1] if outcome.losses else None,
        "updates_per_s": learnt.grid.ratings * done / learning_s if done else None, "learning_s": round(learning_s, 6),
        "mae_test": None if outcome.errors is None else outcome.errors.mae,
        "unknown_users": None if outcome.errors is None else outcome.errors.unknown_users,
        "unknown_items": None if outcome.errors is None else outcome.errors.unknown_items,
        "rmses_train": outcome.rmse_train, "rmses_test": outcome.rmse_test, "losses": outcome.losses,
        "step_sizes": outcome.step_sizes, "l2": want.l2, "noise": noise, "biases": want.biases,
        "schedule": want.schedule,
        "step_size": want.step_size, "factors_dtype": want.factors, "seed": seed, "threads": want.threads,
        "reproducible": reproducible, "deterministic": gpu is None or algorithm != "sgd", "staged": staged,
        "stopped": outcome.stopped, "weights_digest": digest,
        "users": learnt.grid.users, "items": learnt.grid.items, "ratings": learnt.grid.ratings,
        "rows": learnt.grid.ratings, "grid": list(learnt.grid.shape), "ranks_at_work": at_work, "data": str(ratings),
        "test": None if test is None else str(test), "output": str(output),
        "examples": learnt.grid.ratings * done,
        "work_s": max(one["work_s"] for one in per_rank), "per_rank": per_rank,
        "time_split": {name: max(one[name] for one in per_rank) for name in PHASES},
        "bytes_sent": sum(one["bytes_sent"] for one in per_rank), "trace": comm.allgather(outcome.points),
        "peak_bytes": max(one["peak_bytes"] for one in per_rank), "checkpoints": saving.count,
        "checkpoints_failed": saving.failures, "resumed_from": None if kept is None else begun,
        "ranks_at_starts": [comm.size] if memory is None else memory.ranks, **whereabouts(comm, probe),
    }
    _tell(console, result)
    return result


def _kind(algorithm: str, gpu: Device | None, sharers: int) -> tuple[Any, dict[str, Any]]:
    """Return the class of what learns, and what it is told besides."""
    if gpu is None:
        return Als if algorithm == "als" else Sgd, {}
    # They take a while to import.
    from dml_hpc.decomposition.mf.device_als import DeviceAls
    from dml_hpc.decomposition.mf.device_sgd import DeviceSgd

    return DeviceAls if algorithm == "als" else DeviceSgd, {"device": gpu, "sharers": sharers}


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


def _pieces(parts: list[Part], scale: float) -> list[Piece]:
    """Return this rank's rows as the file has them: for ratings as they are, not divided by their deviation."""
    return [Piece(f"{part.side}_{name}", part.first, array, factor) for part in parts
            for name, array, factor in (("factors", part.factors, scale), ("biases", part.biases, scale * scale))
            if array is not None]


def _error(outcome: Outcome) -> str:
    errors = outcome.rmse_test or outcome.rmse_train
    if not errors and outcome.losses:
        return f"objective {outcome.losses[-1]:.6g}"
    return f"RMSE {errors[-1]:.4f}" if errors else ""


def _introduce(console: Console, ratings: StoredRatings, learner: Learner, of_ranks: list[int], algorithm: str) -> None:
    grid, ranks, at_work = ratings.grid, len(of_ranks), learner.ranks_at_work
    about = f"mean {learner.mean:.4g}, deviation {learner.scale:.4g}, " if learner.mean else ""
    console.say(f"ratings  {grid.ratings:,} of {grid.users:,} users and {grid.items:,} items, {about}in "
                f"{grid.shape[0]} × {grid.shape[1]} blocks")
    if algorithm == "als":
        return
    if at_work < ranks:
        console.say(f"warning  there are {grid.shape[0]} stripes of users for {ranks} ranks: {ranks - at_work} have "
                    f"nothing to do; import the ratings with --grid {ranks}x{2 * ranks} to use all")
    if at_work > 1 and max(of_ranks) > 1.5 * grid.ratings / at_work:
        console.say(f"warning  rank {of_ranks.index(max(of_ranks))} has {max(of_ranks) / grid.ratings:.0%} of the "
                    "ratings, as a stripe of users holds so many: the others will wait for it")


def _tell(console: Console, result: dict[str, Any]) -> None:
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["time_split"].items())
    rate = "–" if result["updates_per_s"] is None else f"{result['updates_per_s'] / 1e6:,.1f} M"
    what = "updates" if result["algorithm"] == "sgd" else "ratings"
    console.say(f"learnt   {result['epochs']} epochs in {result['learning_s']:.2f} s ({rate} {what}/s): {shares}; "
                f"{result['stopped']}")
    if result["rmse_test"] is not None:
        unknown = [f"{result[f'unknown_{side}']:,} with unknown {side}" for side in ("users", "items")
                   if result[f"unknown_{side}"]]
        console.say(f"tested   RMSE {result['rmse_test']:.4f}, MAE {result['mae_test']:.4f}"
                    + (f" (of its ratings {', '.join(unknown)})" if unknown else ""))
    error = (f"training RMSE {result['rmse_train']:.4f}" if result["rmse_train"] is not None
             else f"objective {result['loss']:.6g}")
    console.say(f"factors  {result['output']}: k = {result['k']}, {error}, weights {result['weights_digest'][:16]}…")
