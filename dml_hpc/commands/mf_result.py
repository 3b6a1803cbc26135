"""What ``mf`` tells of a run: the keys of its ``--json`` object, and the last lines on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dml_hpc.comm.clock import PHASES, Clock
from dml_hpc.commands.mf_learning import Learnt
from dml_hpc.commands.mf_options import Wanted
from dml_hpc.console import Console
from dml_hpc.data.ratings.blocks import Grid
from dml_hpc.memory import peak_bytes

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def result_of(comm: Intracomm, want: Wanted, grid: Grid, learnt: Learnt, clock: Clock) -> dict[str, Any]:
    """Collective: return what came of a run, of ratings in a ``grid``, as the ``--json`` object holds it."""
    outcome, done = learnt.outcome, learnt.outcome.epochs - learnt.begun
    errors, examples = outcome.errors, grid.ratings * done
    per_rank = comm.allgather({name: round(seconds, 6) for name, seconds in clock.seconds.items()} | {
        "work_s": round(learnt.work_s, 6), **learnt.used, "rows": learnt.own_ratings,
        "examples": learnt.own_ratings * done, "bytes_sent": learnt.bytes_sent, "peak_bytes": peak_bytes()} | (
        {} if learnt.resident is None else {"ratings_on_device": learnt.resident}))
    learning_s, opening_s = max(comm.allgather(outcome.learning_s)), max(comm.allgather(learnt.opening_s))
    return {
        "k": want.k, "algorithm": want.algorithm, "implicit": want.implicit, "alpha": want.alpha,
        "solver": want.solver, "l2": want.l2, "noise": learnt.noise, "biases": want.biases,
        "schedule": want.schedule,
        "step_size": want.step_size, "factors_dtype": want.factors, "seed": want.seed, "threads": want.threads,
        "epochs": outcome.epochs,
        "rmse_train": outcome.rmse_train[-1] if outcome.rmse_train else None,
        "rmse_test": None if errors is None else errors.rmse, "mae_test": None if errors is None else errors.mae,
        "unknown_users": None if errors is None else errors.unknown_users,
        "unknown_items": None if errors is None else errors.unknown_items,
        "loss": outcome.losses[-1] if outcome.losses else None,
        "rmses_train": outcome.rmse_train, "rmses_test": outcome.rmse_test, "losses": outcome.losses,
        "step_sizes": outcome.step_sizes, "stopped": outcome.stopped, "weights_digest": learnt.digest,
        "users": grid.users, "items": grid.items, "ratings": grid.ratings, "rows": grid.ratings,
        "grid": list(grid.shape), "ranks_at_work": learnt.ranks_at_work, "staged": learnt.staged,
        "examples": examples, "updates_per_s": examples / learning_s if done else None,
        "learning_s": round(learning_s, 6), "opening_s": round(opening_s, 6),
        "work_s": max(one["work_s"] for one in per_rank), "per_rank": per_rank,
        "time_split": {name: max(one[name] for one in per_rank) for name in PHASES},
        "bytes_sent": sum(one["bytes_sent"] for one in per_rank),
        "peak_bytes": max(one["peak_bytes"] for one in per_rank), "trace": comm.allgather(outcome.points),
        "checkpoints": learnt.checkpoints, "checkpoints_failed": learnt.checkpoints_failed,
        "resumed_from": learnt.begun if learnt.resumed else None,
    }


def tell(console: Console, result: dict[str, Any]) -> None:
    """Say what came of a run, from the keys of its ``--json`` object."""
    shares = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result["time_split"].items())
    rate = "–" if result["updates_per_s"] is None else f"{result['updates_per_s'] / 1e6:,.1f} M"
    what = "updates" if result["algorithm"] == "sgd" else "ratings"
    console.say(f"learnt   {result['epochs']} epochs in {result['learning_s']:.2f} s ({rate} {what}/s): {shares}; "
                f"{result['stopped']}; opening the ratings took {result['opening_s']:.2f} s")
    if result["rmse_test"] is not None:
        unknown = [f"{result[f'unknown_{side}']:,} with unknown {side}" for side in ("users", "items")
                   if result[f"unknown_{side}"]]
        console.say(f"tested   RMSE {result['rmse_test']:.4f}, MAE {result['mae_test']:.4f}"
                    + (f" (of its ratings {', '.join(unknown)})" if unknown else ""))
    if result["noise"] is not None:
        console.say(f"noise    of deviation {result['noise']:.4g} in the ratings, as their penalties were found")
    error = (f"training RMSE {result['rmse_train']:.4f}" if result["rmse_train"] is not None
             else f"objective {result['loss']:.6g}")
    console.say(f"factors  {result['output']}: k = {result['k']}, {error}, weights {result['weights_digest'][:16]}…")
