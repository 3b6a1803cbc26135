"""``dml-hpc evaluate``: how good a model is on a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.commands.opening import named
from dml_hpc.commands.scoring import open_fitted, score_blocks, warm_up
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.mpi import agreed, first_on_node, gather_rows

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, model: Path, data: Sequence[Path], x_key: str | None,
        y_key: str | None) -> dict[str, Any]:
    """Collective: score the data set on all ranks; return the keys of the ``--json`` object on every rank.

    Scores and targets meet on rank 0, as the area under the curve needs them sorted together.
    """
    fitted = open_fitted(comm, model, data, x_key, y_key)
    with agreed(comm):
        if fitted.dataset.rows == 0:
            raise UserError(f"{named(data)} has no rows to evaluate on")
    objective, classes, kind = fitted.objective, fitted.model.classes, fitted.model.weights.dtype
    start_compiler()
    with first_on_node(comm):
        warm_up(fitted)
    started = time.perf_counter()
    scores, targets = [np.empty(0, kind)], [np.empty(0, kind)]
    with agreed(comm):
        for block, y in score_blocks(fitted, comm.rank, comm.size):
            scores.append(block)
            targets.append(objective.targets(y, classes, kind))
    total = comm.allreduce(float(sum(objective.summed_loss(s, t) for s, t in zip(scores, targets, strict=True))))
    gathered = gather_rows(comm, np.concatenate(scores)), gather_rows(comm, np.concatenate(targets))
    metrics = comm.bcast(objective.metrics(*gathered) if comm.rank == 0 else None)
    rows = fitted.dataset.rows
    work_s = max(comm.allgather(time.perf_counter() - started))
    result = {"rows": rows, "loss": total / rows, **metrics, "objective": objective.name, "model": str(model),
              "data": named(data), "weights_digest": fitted.model.digest, "work_s": work_s}
    shown = {"log-loss" if objective.name == "logistic" else "loss": result["loss"], "AUC": metrics["auc"],
             "accuracy": metrics["accuracy"], "RMSE": metrics["rmse"], "R²": metrics["r2"]}
    console.say(f"evaluate {model} on {named(data)}: {rows:,} rows, " +
                ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None))
    return result
