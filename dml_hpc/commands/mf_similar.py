"""``dml-hpc mf similar``: the items (or users) whose factors point most nearly the same way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml_hpc.commands.mf_options import rank_threads
from dml_hpc.commands.serving import (
    MOST_SHOWN,
    check_table,
    deliver,
    numbers_of,
    open_factors,
    rendered,
)
from dml_hpc.console import Console
from dml_hpc.decomposition.mf.top import Side, Top, one_length
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.store.ranked_table import kind_of

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def run(comm: Intracomm, console: Console, factors: Path, ids: tuple[str, ...] = (), n: int = 10, users: bool = False,
        everything: bool = False, output: Path | None = None, threads: int | None = None,
        overwrite: bool = False) -> dict[str, Any]:
    """Collective: find the ``n`` items most like each of ``ids`` (or with ``everything`` of all), by their cosine.

    With ``users``, users. The table goes to ``output``, or is printed where it is small. Each rank does a part; the
    table is the same for any number of ranks. Returns the keys of the ``--json`` object on every rank. Raises
    `AgreedError`.
    """
    started = time.perf_counter()
    what = "user" if users else "item"
    with agreed(comm):
        if bool(ids) == everything:
            raise UserError(f"{f'--all and the id {ids[0]!r}' if ids else 'no id'} given: name {what}s by their ids, "
                            "or give --all")
        if everything and output is None:
            raise UserError(f"--all needs a place for the table: give -o FILE.csv (or .parquet, .h5), or name up to "
                            f"{MOST_SHOWN} {what}s")
    check_table(comm, output, overwrite, [factors])
    found = open_factors(comm, factors)
    known, rows = (found.users, found.user_factors) if users else (found.items, found.item_factors)
    wanted = np.arange(len(known)) if everything else numbers_of(comm, known, ids, what, factors)
    with agreed(comm):
        if output is None and len(wanted) > MOST_SHOWN:
            raise UserError(f"what is like {len(wanted):,} {what}s is no table to print: give -o FILE.csv (or "
                            f".parquet, .h5), or name up to {MOST_SHOWN}")
    names = (what, "neighbour", "rank", "similarity")
    start_compiler()
    with first_on_node(comm):
        Top.compile()
    own = wanted[slice(*split(len(wanted), comm.size, comm.rank))]
    with agreed(comm):
        table = None if output is None else kind_of(output)(names, known, known)
        side = Side(rows, factor=one_length(rows))
        blocks = Top(side, side, n).blocks(own, np.arange(len(own) + 1), own.astype(np.int32), threads or
                                           rank_threads())
        parts, lines, _ = rendered(blocks, table, console.bar(len(own), "comparing"))
    told = deliver(comm, console, output, table, parts, names, known, known, {"digest": found.digest, "n": n})
    lines = sum(comm.allgather(lines))
    result = {f"{what}s": len(wanted), "of": len(known), "n": n, "lines": lines, "k": found.k, "similar": told,
              "factors": str(factors), "output": None if output is None else str(output),
              "weights_digest": found.digest,
              "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
    if output is not None:
        console.say(f"written  {lines:,} neighbours of {len(wanted):,} {what}s, in {result['work_s']:.2f} s → {output} "
                    f"({', '.join(names)})")
    return result
