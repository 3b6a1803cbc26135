"""``dml-hpc compare``: several ways to train, on the same data, for the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands import reducing
from dml_hpc.commands.fitting import fit
from dml_hpc.commands.opening import named, open_data
from dml_hpc.commands.train_options import Options, settled
from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, AgreedError, UserError
from dml_hpc.files import check_output, replaced_file
from dml_hpc.mpi import agreed
from dml_hpc.objectives import open_objective
from dml_hpc.trainers import ALGORITHMS

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

NEVER = 1 << 62
HEADER = ("contender", "loss", "validation", "epochs", "steps", "examples/s", "sent MB", "idle", "")


def run(comm: Intracomm, console: Console, data: Sequence[Path],
        contenders: Sequence[tuple[str, dict[str, Any]]] | None, plot: Path | None, overwrite: bool,
        **options: Any) -> dict[str, Any]:
    """Collective: train with each of the ``contenders``, (name, options that differ), one after the other.

    None: with every algorithm that the options allow. ``options`` are those of `Options` that all share. A contender
    that fails (it diverges, say) is listed with what it said. Returns the keys of the ``--json`` object on every rank:
    ``contenders``, from the least loss on.
    """
    shared = Options(**options)
    if shared.patience is None:  # all are given the same time
        shared = replace(shared, patience=None if shared.validation is None else NEVER)
    with agreed(comm):
        objective = open_objective(shared.objective, **shared.objective_settings)
    dataset = open_data(comm, data, shared.x_key, shared.y_key, shared.weight_key)
    if contenders is None:
        contenders = [(name, {"algorithm": name}) for name in ALGORITHMS
                      if not (name == "lbfgs" and not objective.smooth)
                      and not (name in ("average", "local") and shared.reproducible)]
    with agreed(comm):
        reducing.check(shared.allreduce, shared.tuning, plot or Path("-"), comm.rank)
        names = [name for name, _ in contenders]
        for name, changes in contenders:  # all are looked at before the first one runs
            if names.count(name) > 1:
                raise UserError(f"the contender {name} is named twice")
            for option in ("objective", "huber_delta", "class_weight", "sample_weight"):
                if option in changes:
                    raise UserError(f"{name}: losses under another --{option.replace('_', '-')} cannot be compared; "
                                    "give it to all")
            try:
                settled(replace(shared, **changes), objective, dataset.kind == "csr", dataset.features, dataset.rows)
            except UserError as error:
                raise UserError(f"{name}: {error}") from None
        if comm.rank == 0 and plot is not None:
            from dml_hpc.reports.plots import check_matplotlib

            if plot.suffix.lower() not in (".png", ".svg"):
                raise UserError(f"--plot draws .png and .svg files, not {plot.name}")
            check_output(plot, overwrite, inputs=[*data, *([] if shared.validation is None else [shared.validation])])
            check_matplotlib()
    rows = []
    for name, changes in contenders:
        quiet = Console(rank=1)
        try:
            found = fit(comm, quiet, data, replace(shared, **changes), at_once=False).result
        except AgreedError as error:
            if error.exit_code == 2:
                raise AgreedError(f"{name}: {error}", error.rank, 2) from None
            found = {"failed": str(error)}
        rows.append({"contender": name, **found})
        console.say(f"compare  {name}: " + (f"failed: {found['failed']}" if "failed" in found else
                                            f"loss {found['loss']:.5f} after {found['work_s']:.2f} s"))
    rows.sort(key=_score)
    console.table(HEADER, [_cells(row) for row in rows])
    if plot is not None:
        with agreed(comm):
            if comm.rank == 0:
                _draw(plot, rows)
    result = {"contenders": rows, "data": named(data), "time_budget": shared.time_budget}
    return {**result, "exit_code": EXIT_JOB} if all("failed" in row for row in rows) else result


def _score(row: dict[str, Any]) -> float:
    """Return the loss that counts: on validation data where there are any."""
    if "failed" in row:
        return float("inf")
    return min(row["validation_losses"], default=row["loss"])


def _cells(row: dict[str, Any]) -> list[str]:
    if "failed" in row:
        return [row["contender"], "failed", "", "", "", "", "", "", row["failed"][:60]]
    sent = [rank["bytes_sent"] for rank in row["per_rank"]]
    split = row["time_split"]
    return [row["contender"], f"{row['loss']:.5f}",
            f"{min(row['validation_losses']):.5f}" if row["validation_losses"] else "", f"{row['epochs']:.3g}",
            f"{row['steps']:,}", f"{row['examples_per_s'] or 0:,.0f}",
            "" if None in sent else f"{sum(sent) / 1e6:,.1f}",
            f"{split['wait'] / max(sum(split.values()), 1e-9):.0%}", row["stopped"]]


def _draw(plot: Path, rows: Sequence[dict[str, Any]]) -> None:
    from dml_hpc.reports.plots import as_svg, save_png, traces_figure

    figure = traces_figure([(row["contender"], row["trace"]) for row in rows if "failed" not in row])
    with replaced_file(plot) as partial:
        if plot.suffix.lower() == ".png":
            save_png(figure, partial)
        else:
            partial.write_text(as_svg(figure, "training loss against seconds"), encoding="utf-8")
