"""``dml-hpc data verify``: is a data set what its manifest says?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dml_hpc.console import Console
from dml_hpc.errors import EXIT_JOB, EXIT_OK

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

    from dml_hpc.mpi import Alone


def run(comm: Intracomm | Alone, console: Console, data: Sequence[Path], x_key: str | None,
        y_key: str | None, weight_key: str | None = None) -> dict[str, Any]:
    """Look at every byte of data set folders, some of their shards, or HDF5 files without a manifest.

    Returns ``files``, ``rows`` and ``problems`` (list of {file, where, problem}); ``exit_code`` is 1 when there
    are any.
    """
    from dml_hpc.data.shard import keys_of
    from dml_hpc.data.verification.verify import verify

    verdict = verify(comm, data, keys_of(x_key, y_key, weight_key), console)
    for problem in verdict.problems:
        where = "" if problem.where == "file" else f"{problem.where} "
        console.say(f"{problem.file}: {where}{problem.problem}")
    broken = len({problem.file for problem in verdict.problems})
    plural = "problem" if len(verdict.problems) == 1 else "problems"
    console.say(f"{verdict.files:,} files, {verdict.rows:,} rows: "
                + (f"{len(verdict.problems):,} {plural} in {broken:,} files" if verdict.problems else "no problem"))
    return {"files": verdict.files, "rows": verdict.rows,
            "problems": [problem._asdict() for problem in verdict.problems],
            "exit_code": EXIT_JOB if verdict.problems else EXIT_OK}
