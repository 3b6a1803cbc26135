"""Made ratings as a source of a data set: computed twice, once to count them, and never stored on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.console import Progress
from dml_hpc.data.ratings.source import Known, Rows
from dml_hpc.data.synthetic.factors import Ratings
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed
from dml_hpc.watch import progressed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PIECE_ROWS = 1 << 20


class MadeRatings:
    """The ratings of ``made``, whose users and items are called by their numbers there: a `RatingSource`."""

    weighted, timed = False, False

    def __init__(self, made: Ratings, user_counts: np.ndarray, item_counts: np.ndarray):
        self._made = made
        self.pieces = -(-made.rows // PIECE_ROWS)
        self.users = Known(np.arange(len(user_counts)), user_counts)
        self.items = Known(np.arange(len(item_counts)), item_counts)

    def read(self, piece: int) -> Iterator[Rows]:
        """See `RatingSource`."""
        pairs, given = self._made.read(*_range(self._made, piece))
        yield Rows(pairs[:, 0], pairs[:, 1], given.astype(np.float32))


def counted(comm: Intracomm | Alone, made: Ratings, bar: Progress) -> MadeRatings:
    """Collective: count how many ratings users and items have, and return the ratings as a source."""
    counts = np.zeros(len(made.user_factors), np.int64), np.zeros(len(made.item_factors), np.int64)
    with agreed(comm):
        for piece in range(*split(-(-made.rows // PIECE_ROWS), comm.size, comm.rank)):
            start, stop = _range(made, piece)
            pairs = made.pairs(start, stop)
            for column, out in enumerate(counts):
                out += np.bincount(pairs[:, column], minlength=len(out))
            progressed()
            bar.advance(stop - start)
    return MadeRatings(made, comm.allreduce(counts[0]), comm.allreduce(counts[1]))


def _range(made: Ratings, piece: int) -> tuple[int, int]:
    return piece * PIECE_ROWS, min(made.rows, (piece + 1) * PIECE_ROWS)
