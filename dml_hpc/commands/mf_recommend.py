"""``dml-hpc mf recommend``: the items that users are predicted to rate highest, of those they have not rated."""

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
    seen_by,
)
from dml_hpc.console import Console
from dml_hpc.data.ratings.by_row import matched
from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.decomposition.mf.top import Side, Top
from dml_hpc.errors import UserError
from dml_hpc.kernels import start_compiler
from dml_hpc.layout import split
from dml_hpc.mpi import agreed, first_on_node
from dml_hpc.store.ranked_table import kind_of
from dml_hpc.store.rating_factors import RatingFactors

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

NAMES = ("user", "item", "rank", "score")


def run(comm: Intracomm, console: Console, factors: Path, n: int = 10, users: tuple[str, ...] = (),
        users_of: Path | None = None, seen: Path | None = None, items: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (), output: Path | None = None, threads: int | None = None,
        overwrite: bool = False) -> dict[str, Any]:
    """Collective: recommend ``n`` items to each of some users, in a table at ``output``, or printed where they are few.

    Users are those with ids ``users``, those of the data set ``users_of``, or all. What they have rated in ``seen``
    is left out; with ``items`` only these are recommended, and ``exclude`` never are. Each rank does a part of the
    users; the table is the same for any number of ranks. Returns the keys of the ``--json`` object on every rank.
    Raises `AgreedError`.
    """
    started = time.perf_counter()
    with agreed(comm):
        if users and users_of is not None:
            raise UserError("--users and --users-of say twice who is meant; leave one out")
    check_table(comm, output, overwrite, [factors, *(path for path in (users_of, seen) if path is not None)])
    found = open_factors(comm, factors)
    wanted, unknown = _wanted(comm, found, users, users_of)
    if output is None and len(wanted) > MOST_SHOWN:
        with agreed(comm):
            raise UserError(f"recommendations for {len(wanted):,} users are no table to print: give -o FILE.csv (or "
                            f".parquet, .h5), or name up to {MOST_SHOWN} of them with --users")
    allowed = _allowed(comm, found, items, exclude)
    rated = None if seen is None else open_ratings(comm, seen)
    start_compiler()
    with first_on_node(comm):
        Top.compile()
    own = wanted[slice(*split(len(wanted), comm.size, comm.rank))]
    with agreed(comm):
        table = None if output is None else kind_of(output)(NAMES, found.users, found.items)
        starts, left = (None, None) if rated is None else seen_by(found, rated, own)
        top = Top(Side(found.user_factors, found.user_biases), Side(found.item_factors, found.item_biases), n,
                  found.mean, allowed)
        began = time.perf_counter()
        parts, lines, fewer = rendered(top.blocks(own, starts, left, threads or rank_threads()), table,
                                       console.bar(len(own), "recommending"))
        choosing_s = time.perf_counter() - began
    told = deliver(comm, console, output, table, parts, NAMES, found.users, found.items,
                   {"digest": found.digest, "n": n})
    lines, fewer = (sum(comm.allgather(count)) for count in (lines, fewer))
    if n > top.n:
        fewer = len(wanted)
    result = {"users": len(wanted), "n": n, "lines": lines, "users_with_fewer": fewer, "unknown_users": unknown,
              "items": len(found.items) if allowed is None else len(allowed), "k": found.k,
              "recommendations": told, "factors": str(factors), "seen": None if seen is None else str(seen),
              "output": None if output is None else str(output), "weights_digest": found.digest,
              "choosing_s": round(max(comm.allgather(choosing_s)), 6),
              "work_s": round(max(comm.allgather(time.perf_counter() - started)), 6)}
    _tell(console, result)
    return result


def _wanted(comm: Intracomm, found: RatingFactors, users: tuple[str, ...],
            users_of: Path | None) -> tuple[np.ndarray, int]:
    """Collective: return the numbers of the users meant, and how many of ``users_of`` there are no factors of."""
    if users:
        return numbers_of(comm, found.users, users, "user", found.path), 0
    if users_of is None:
        return np.arange(len(found.users)), 0
    others: StoredRatings = open_ratings(comm, users_of)
    with agreed(comm):
        numbers = matched(found.users, others.users)
        if not (numbers >= 0).any():
            raise UserError(f"{found.path} knows none of the {len(numbers):,} users of {users_of}; `dml-hpc mf "
                            "fold-in` finds factors for users that are new")
    return np.sort(numbers[numbers >= 0]), int(np.count_nonzero(numbers < 0))


def _allowed(comm: Intracomm, found: RatingFactors, items: tuple[str, ...],
             exclude: tuple[str, ...]) -> np.ndarray | None:
    """Collective: return the numbers, ascending, of the items that may be recommended, None: all."""
    if not items and not exclude:
        return None
    allowed = np.zeros(len(found.items), bool)
    allowed[numbers_of(comm, found.items, items, "item", found.path) if items else slice(None)] = True
    if exclude:
        allowed[numbers_of(comm, found.items, exclude, "item", found.path)] = False
    with agreed(comm):
        if not allowed.any():
            raise UserError("--exclude leaves no item to recommend; leave some out of it")
    return np.flatnonzero(allowed)


def _tell(console: Console, result: dict[str, Any]) -> None:
    if result["unknown_users"]:
        console.say(f"unknown  {result['unknown_users']:,} of the users are not in {result['factors']}, and are left "
                    "out; `dml-hpc mf fold-in` finds factors for them")
    if result["users_with_fewer"] and result["lines"] < result["n"] * result["users"]:
        console.say(f"fewer    for {result['users_with_fewer']:,} of the users there are not {result['n']:,} items "
                    "that may be recommended")
    if result["output"] is not None:
        console.say(f"written  {result['lines']:,} recommendations to {result['users']:,} users, of "
                    f"{result['items']:,} items, in {result['work_s']:.2f} s → {result['output']} "
                    f"({', '.join(NAMES)})")
