"""``dml-hpc svd``: the truncated SVD of a data set's X, into an HDF5 file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.commands import reducing
from dml_hpc.commands.opening import named, open_data
from dml_hpc.decomposition.svd.gram import SvdResult, truncated_svd
from dml_hpc.files import check_output
from dml_hpc.mpi import agreed
from dml_hpc.store.factors import Factors, write_factors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console

ROWS_SHOWN = 20


def run(comm: Intracomm, console: Console, data: Sequence[Path], x_key: str | None, output: Path, k: int,
        allreduce: str, tuning: Path | None, overwrite: bool) -> dict[str, Any]:
    """Collective: factorise ``data`` and write the ``k`` largest triplets to ``output``.

    Returns the ``--json`` keys. ``allreduce`` names the reducer that sums the ranks' parts. Times are in
    seconds, each the largest over the ranks. ``relative_residuals`` hold None where σ is zero to rounding.
    Raises `AgreedError` on every rank for what the user can mend, before anything is written.
    """
    started = time.perf_counter()
    with agreed(comm):
        reducing.check(allreduce, tuning, output, comm.rank)
        if comm.rank == 0:
            check_output(output, overwrite, inputs=data)
    dataset = open_data(comm, data, x_key, None, labels=False)
    found = truncated_svd(comm, dataset, k, reducing.opener(console, allreduce, tuning=tuning), console)
    with agreed(comm):
        if comm.rank == 0:
            write_factors(output, Factors(found.singular_values, found.V, found.relative_residuals,
                                          dataset.manifest.feature_names, found.method, dataset.rows))
    spent = np.array([*found.time_split.values(), time.perf_counter() - started])
    slowest = comm.allgather(spent)
    *split_s, work_s = (round(float(seconds), 6) for seconds in np.max(slowest, axis=0))
    _show(console, found, output, work_s, comm.size)
    return {
        "k": k,
        "method": found.method,
        "singular_values": found.singular_values.tolist(),
        "relative_residuals": [None if math.isnan(r) else r for r in found.relative_residuals.tolist()],
        "passes_over_data": found.passes_over_data,
        "allreduce": allreduce,
        "allreduce_used": found.allreduce,
        "data": named(data),
        "rows": dataset.rows,
        "features": dataset.features,
        "output": str(output),
        "work_s": work_s,
        "time_split": dict(zip(found.time_split, split_s, strict=True)),
    }


def _show(console: Console, found: SvdResult, output: Path, work_s: float, ranks: int) -> None:
    def cell(residual: float) -> str:
        return "-" if math.isnan(residual) else f"{residual:.1e}"

    triplets = list(zip(found.singular_values, found.relative_residuals, strict=True))
    console.table(("", "singular value", "residual/σ₁"),
                  [(i, f"{sigma:.6g}", cell(residual)) for i, (sigma, residual) in
                   enumerate(triplets[:ROWS_SHOWN], 1)])
    if len(triplets) > ROWS_SHOWN:
        console.say(f"… and {len(triplets) - ROWS_SHOWN} more")
    console.say(f"{output}: {len(triplets)} triplets ({found.method}, {found.passes_over_data} passes, "
                f"{ranks} rank{'s' if ranks > 1 else ''}, {work_s:.2f} s)")
