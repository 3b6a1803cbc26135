"""``dml-hpc svd-apply``: rows projected onto the singular vectors that ``svd`` found, as a data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.commands.opening import named, open_data
from dml_hpc.commands.projecting import check_folder, project
from dml_hpc.commands.scoring import check_features
from dml_hpc.mpi import agreed
from dml_hpc.store.factors import read_factors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.console import Console


def run(comm: Intracomm, console: Console, factors: Path, data: Sequence[Path], x_key: str | None, y_key: str | None,
        output: Path, scores: bool, overwrite: bool) -> dict[str, Any]:
    """Collective: write the rows of ``data`` as A·V/σ, with ``scores`` as A·V, to the data set folder ``output``.

    A is X shifted and scaled as that of ``factors`` was. Labels and weights stay with their rows; those of files
    without a manifest only where ``y_key`` names them, else labels are 0. Returns the keys of the ``--json`` object on
    every rank. Raises `AgreedError` for what the user can mend, such as other features than were factorised.
    """
    started = time.perf_counter()
    check_folder(comm, output, overwrite, [factors, *data])
    dataset = open_data(comm, data, x_key, y_key, labels=y_key is not None)
    with agreed(comm):
        found = read_factors(factors)
        check_features(found.feature_names, found.features, dataset, str(factors), named(data), made="computed from")
    manifest = project(comm, console, dataset, found, output, scores)
    if not dataset.is_imported and y_key is None:
        console.say("labels are 0; --y-key names those of files that were not imported")
    return {"rows": manifest.rows, "k": found.k, "scores": scores, "dtype": manifest.dtype,
            "shards": len(manifest.shards), "output": str(output), "factors": str(factors),
            "factors_digest": found.digest, "data": named(data),
            "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
