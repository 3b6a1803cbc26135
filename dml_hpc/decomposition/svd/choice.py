"""Which method, on which grid of ranks: from the shape, the number of triplets, the accuracy and the memory."""

from __future__ import annotations

from typing import NamedTuple

from dml_hpc.data.dataset import Dataset
from dml_hpc.decomposition.grid import chosen_grid
from dml_hpc.decomposition.svd.gram import MOST_COLUMNS
from dml_hpc.decomposition.svd.krylov import width_of
from dml_hpc.errors import UserError

ON_DEVICE = ("gram", "randomized")
"""Methods that can compute on a GPU."""
_PASSES = 10
"""That a block Krylov iteration takes, roughly."""
_EXACT = 1e-9
"""An accuracy below this is for a QR factorisation: squares lose it."""
_TSQR_COLUMNS = 2048
_TRIANGLES = 12
_SPARSE_SLOWDOWN = 8
"""How much longer an operation takes on sparse entries than in a dense product."""


class Choice(NamedTuple):
    """``wide``: the Gram matrix is that of the rows. ``why`` is a line for people."""

    method: str
    grid: tuple[int, int]
    wide: bool
    why: str


def choose(dataset: Dataset, k: int, ranks: int, accuracy: float, most_bytes: int | None, method: str = "auto",
           grid: tuple[int, int] | None = None, reproducible: bool = False, device: str = "cpu",
           wide: bool | None = None) -> Choice:
    """Return the method for ``k`` triplets, which ``method`` names unless it is "auto", and the grid it runs on.

    ``most_bytes`` is what a rank may take (None: unknown). ``wide`` is that of an earlier choice, which is kept, None:
    there was none. Raises `UserError` for what does not go together.
    """
    m, n = dataset.rows, dataset.features
    if device != "cpu" and method not in ("auto", *ON_DEVICE):
        raise UserError(f"--method {method} computes on the CPU: leave out --device {device}, or choose "
                        f"--method {' or '.join(ON_DEVICE)}")
    if grid is not None and grid[0] * grid[1] != ranks:
        raise UserError(f"--grid {grid[0]}x{grid[1]} is for {grid[0] * grid[1]} ranks, and here are {ranks}")
    if reproducible and grid is not None and grid[1] > 1:
        raise UserError("--reproducible adds rows up in an order of its own and wants all columns on every rank: leave "
                        "out --grid, or give Rx1")
    best = (ranks, 1) if reproducible else chosen_grid(ranks, m, n)
    why = "as asked" if wide is None else "as before"
    if method == "auto":
        method, why = _best(dataset, k, accuracy, most_bytes, grid, reproducible, ranks, device)
    if method == "randomized":
        return Choice(method, grid or best, False, why)
    of_rows = wide if wide is not None else method == "gram" and _of_rows(dataset, grid, reproducible)
    needed = (1, ranks) if of_rows else (ranks, 1)
    if grid is not None and grid != needed:
        raise UserError(f"--method {method} needs --grid {needed[0]}x{needed[1]} for this matrix, {m:,} × {n:,}; a "
                        "grid of blocks is for --method randomized")
    if method == "gram" and (m if of_rows else n) > MOST_COLUMNS:
        raise UserError(f"--method gram takes at most {MOST_COLUMNS:,} columns (its n × n matrix is on every rank), "
                        f"and {dataset.path} has {n:,}; use --method randomized")
    if method == "gram" and most_bytes is not None and _gram_bytes(dataset, of_rows, ranks) > most_bytes:
        raise UserError(f"--method gram takes {_gram_bytes(dataset, of_rows, ranks) >> 20:,} MiB on a rank here, and "
                        f"there are {most_bytes >> 20:,}; use --method randomized")
    if method == "tsqr" and _TRIANGLES * min(m, n) * n * 8 > (most_bytes or 64 << 30):
        raise UserError(f"--method tsqr keeps some {_TRIANGLES} triangles of {min(m, n):,} × {n:,} numbers on every "
                        "rank, too much here; use --method randomized")
    return Choice(method, needed, of_rows, why)


def _best(dataset: Dataset, k: int, accuracy: float, most_bytes: int | None, grid: tuple[int, int] | None,
          reproducible: bool, ranks: int, device: str) -> tuple[str, str]:
    m, n = dataset.rows, dataset.features
    sparse = dataset.kind == "csr"
    if grid is not None and grid[1] > 1 and not (grid[0] == 1 and _of_rows(dataset, grid, reproducible)):
        return "randomized", "a grid of blocks was asked for"
    if accuracy < _EXACT and n <= _TSQR_COLUMNS and m >= n and device == "cpu":
        return "tsqr", f"an accuracy below {_EXACT:g} is lost by squaring, and {n:,} columns make a small triangle"
    wide = _of_rows(dataset, grid, reproducible)
    side = m if wide else n
    entries = dataset.manifest.nonzeros * _SPARSE_SLOWDOWN if sparse else m * n
    squared, iterated = m * n * side, 4 * entries * max(_PASSES * width_of(k, n), 3 * k)
    fits = most_bytes is None or _gram_bytes(dataset, wide, ranks) <= most_bytes
    if side <= MOST_COLUMNS and squared <= iterated and fits:
        return "gram", (f"{side:,} {'rows' if wide else 'columns'} make a small Gram matrix: {squared:.1e} operations "
                        f"against some {iterated:.1e}")
    if side > MOST_COLUMNS or not fits:
        return "randomized", f"a Gram matrix of {side:,} {'rows' if wide else 'columns'} is too large"
    return "randomized", f"some {iterated:.1e} operations against {squared:.1e} for the Gram matrix"


def _gram_bytes(dataset: Dataset, of_rows: bool, ranks: int) -> int:
    """Return what a rank holds for a Gram matrix, of rows its columns too: as read, side by side, and at work."""
    side = dataset.rows if of_rows else dataset.features
    return 24 * side**2 + (16 * dataset.rows * dataset.features // ranks if of_rows else 0)


def _of_rows(dataset: Dataset, grid: tuple[int, int] | None, reproducible: bool) -> bool:
    """Say whether the Gram matrix is to be that of the rows: of dense rows, fewer than columns, on one grid row."""
    if reproducible or dataset.kind == "csr" or dataset.rows >= dataset.features:
        return False
    return grid is None or grid[0] == 1
