"""Ranks in a grid: which block of a matrix is whose, and who sums with whom."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


class Grid:
    """``shape`` = (R, C) with R·C ranks: rank r stands in grid row r // C and grid column r % C (``place``).

    ``row`` joins the ranks of this grid row, which hold other columns of the same matrix rows, None where C is 1;
    ``column`` joins those of this grid column, which hold other rows of the same matrix columns.
    """

    def __init__(self, comm: Intracomm, shape: tuple[int, int]):
        if shape[0] * shape[1] != comm.size:
            raise ValueError(f"a grid of {shape} is not {comm.size} ranks")
        self.comm, self.shape = comm, shape
        self.place = divmod(comm.rank, shape[1])
        self.row: Intracomm | None = None
        self.column = comm
        if shape[1] > 1:
            self.row = _part(comm, self.place[0])
            self.column = _part(comm, self.place[1])

    def __enter__(self) -> Grid:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None and self.row is not None:
            self.row.Free()
            self.column.Free()


def _part(comm: Intracomm, color: int) -> Intracomm:
    return cast("Intracomm", comm.Split(color, comm.rank))


def chosen_grid(ranks: int, rows: int, columns: int) -> tuple[int, int]:
    """Return the grid in which a rank holds least of both sides, rows/R + columns/C; of equals the tallest.

    What a rank sends in a pass over its block grows with these (cf. Chan et al., *Collective communication: theory,
    practice, and experience*, Concurrency Computat. 19, 2007, on matrix-vector products in two dimensions).
    """
    shapes = [(ranks // across, across) for across in range(1, ranks + 1) if ranks % across == 0]
    return min(shapes, key=lambda shape: (rows / shape[0] + columns / shape[1], shape[1]))
