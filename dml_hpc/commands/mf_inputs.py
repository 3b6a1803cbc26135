"""What ``mf`` reads: the ratings, those to test on, and how much memory copies of them may take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dml_hpc.data.ratings.opened import StoredRatings, open_ratings
from dml_hpc.errors import UserError
from dml_hpc.memory import free_bytes, resident_bytes
from dml_hpc.mpi import agreed, ranks_on_node

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Inputs(NamedTuple):
    """Ratings to learn from, and those to measure on (None: there are none).

    ``most_bytes`` is how much memory this rank's copies of compressed ratings may take, None: nothing is known.
    """

    ratings: StoredRatings
    held: StoredRatings | None
    most_bytes: int | None


def open_inputs(comm: Intracomm, ratings: Path, test: Path | None, implicit: bool, memory_limit: int | None) -> Inputs:
    """Collective: open both data sets. Raises `AgreedError` for what nothing can be learnt from, or measured on."""
    learnt = open_ratings(comm, ratings)
    held = None if test is None else open_ratings(comm, test)
    node_ranks = ranks_on_node(comm)
    with agreed(comm):
        if not learnt.grid.ratings:
            raise UserError(f"{ratings} holds no ratings; there is nothing to factorise")
        if held is not None and not held.grid.ratings:
            raise UserError(f"{test} holds no ratings to test on; leave --test out")
        if implicit and learnt.grid.lowest < 0:
            raise UserError(f"{ratings} holds negative ratings (the lowest is {learnt.grid.lowest:g}), and --implicit "
                            "ones count what was done; import others, or leave --implicit out")
        most_bytes = _most_bytes(memory_limit, node_ranks)
    return Inputs(learnt, held, most_bytes)


def _most_bytes(memory_limit: int | None, node_ranks: int) -> int | None:
    if memory_limit is None:
        free = free_bytes()
        return None if free is None else free // 2 // node_ranks
    left = memory_limit - resident_bytes()
    if left <= 0:
        raise UserError(f"--memory-limit is below the {resident_bytes() >> 20:,} MiB that a rank takes before it has "
                        "read a rating; give more")
    return left // 2
