"""``dml-hpc evaluate``: how good a model is on a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.commands.opening import named
from dml_hpc.commands.scoring import Fitted, Scored, no_scores, open_fitted, score_blocks, warm_up
from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.mpi import agreed, first_on_node, gather_rows

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, model: Path, data: Sequence[Path], x_key: str | None,
        y_key: str | None, weight_key: str | None = None) -> dict[str, Any]:
    """Collective: score the data set on all ranks; return the keys of the ``--json`` object on every rank.

    ``loss`` and all metrics count each row by its weight. Scores meet on rank 0 only where a metric needs them
    together, as the area under the curve does, which is that of sorted scores; else only sums travel.
    """
    fitted = open_fitted(comm, model, data, x_key, y_key, weight_key)
    with agreed(comm):
        if fitted.dataset.rows == 0:
            raise UserError(f"{named(data)} has no rows to evaluate on")
    objective = fitted.objective
    start_compiler()
    with first_on_node(comm):
        warm_up(fitted)
    started = time.perf_counter()
    kept = _Kept(fitted)
    with agreed(comm):
        for block in score_blocks(fitted, comm.rank, comm.size):
            kept.add(block)
    loss, weight = (sum(column) for column in zip(*comm.allgather((kept.loss, kept.weight)), strict=True))
    with agreed(comm):
        if not weight > 0:
            raise UserError(f"the rows of {named(data)} weigh {weight:g} in all; there is nothing to evaluate on")
    metrics = kept.metrics(comm)
    rows = fitted.dataset.rows
    work_s = max(comm.allgather(time.perf_counter() - started))
    result = {"rows": rows, "loss": loss / weight, **metrics, "total_weight": weight, "objective": objective.name,
              "model": str(model), "data": named(data), "weights_digest": fitted.model.digest, "work_s": work_s}
    shown = {"log-loss" if fitted.model.classes and objective.name in _LOGARITHMIC else "loss": result["loss"],
             "AUC": metrics["auc"], "accuracy": metrics["accuracy"], "RMSE": metrics["rmse"], "R²": metrics["r2"]}
    console.say(f"evaluate {model} on {named(data)}: {rows:,} rows, " +
                ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None))
    return result


_LOGARITHMIC = ("logistic", "softmax", "mlp")


class _Kept:
    """What this rank keeps of its rows: the sums of weighted losses and of weights, and what the metrics need."""

    def __init__(self, fitted: Fitted):
        self._fitted = fitted
        self.loss = self.weight = 0.0
        kind = fitted.model.weights.dtype
        none = None if not fitted.dataset.weighted else np.empty(0, kind)
        self._tallies = fitted.objective.tallies(no_scores(fitted), np.empty(0, kind), none)
        self._blocks = [Scored(no_scores(fitted), np.empty(0, kind), none)]

    def add(self, block: Scored) -> None:
        """Take in a block of rows."""
        objective, model = self._fitted.objective, self._fitted.model
        weight = None if block.weight is None else block.weight.astype(np.float64)
        targets = objective.targets(block.y, model.classes, model.weights.dtype)
        losses = objective.losses(block.scores, targets)
        self.loss += float(losses.sum() if weight is None else losses @ weight)
        self.weight += float(len(losses) if weight is None else weight.sum())
        tallies = objective.tallies(block.scores, targets, weight)
        if self._tallies is None or tallies is None:
            self._blocks.append(Scored(block.scores, targets, weight))
        else:
            self._tallies += tallies

    def metrics(self, comm: Intracomm) -> dict[str, float | None]:
        """Collective: return the metrics of all ranks' rows, on every rank."""
        objective = self._fitted.objective
        if self._tallies is not None:
            return objective.metrics_of(sum(comm.allgather(self._tallies)))
        scores, targets, weights = zip(*self._blocks, strict=True)
        flat = gather_rows(comm, np.concatenate(scores).ravel())
        target = gather_rows(comm, np.concatenate(targets))
        weight = gather_rows(comm, np.concatenate(weights)) if self._fitted.dataset.weighted else None
        together = objective.metrics(flat.reshape(len(target), -1), target, weight) if comm.rank == 0 else None
        return comm.bcast(together)
