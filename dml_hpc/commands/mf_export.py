"""``dml-hpc mf export``: the factors of users and items as NPY or Parquet files, for other programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from dml_hpc.console import Console
from dml_hpc.errors import UserError
from dml_hpc.files import check_output
from dml_hpc.store.exported_factors import write_npy, write_parquet
from dml_hpc.store.ranked_table import pyarrow
from dml_hpc.store.rating_factors import read_rating_factors


def run(console: Console, factors: Path, output: Path, form: str = "npy", overwrite: bool = False) -> dict[str, Any]:
    """Write the factors as files of ``form``, npy or parquet, into the new folder ``output``, whole or not at all.

    Returns the keys of the ``--json`` object. Raises `UserError`.
    """
    started = time.perf_counter()
    if form == "parquet":
        pyarrow()
    check_output(output, overwrite, folder=True, inputs=[factors])
    found = read_rating_factors(factors)
    if not found.is_whole:
        raise UserError(f"{factors} is damaged: its numbers are not those it was saved with; run mf again")
    files = (write_parquet if form == "parquet" else write_npy)(output, found)
    result = {"users": len(found.users), "items": len(found.items), "k": found.k, "format": form,
              "dtype": str(found.user_factors.dtype), "files": files, "factors": str(factors), "output": str(output),
              "weights_digest": found.digest, "work_s": round(time.perf_counter() - started, 6)}
    console.say(f"exported {len(found.users):,} users and {len(found.items):,} items, k = {found.k}, to "
                f"{output}: {', '.join(files)}")
    return result
