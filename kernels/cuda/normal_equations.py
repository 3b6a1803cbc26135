"""Launches ``kernels/normal_equations.cu``: least squares for the rows of one side, each by a Cholesky factorisation.

Arrays are the device's, otherwise what `dml_hpc.kernels.normal_equations` says of them. A row's result has the same
bits whatever else is solved, on a kind of GPU; they are not the CPU's. Losses follow from the solution, and are the
twin's to within some 1e-6 of the sum of squares that no factors would leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dml_hpc.device import Array, Device
from dml_hpc.kernels.cuda.long_rows import VERY_LONG
from dml_hpc.kernels.cuda.sums import address

FILE = "normal_equations.cu"
PART = 2048
"""Entries of a very long row that a block takes. Also in ``normal_equations.cu``."""
SHAPES = ((4, 8), (8, 8), (8, 16))
"""Sides of a thread's tile of the matrix, and how many tiles a side of the matrix has."""
MOST_WIDTH = 128
"""Elements of a row: the matrix and what else there is then fit in the shared memory that every GPU has."""
PARTIAL_BYTES = 256 << 20
"""What sums of parts take at a time, at most, unless one row takes more."""
PRODUCTS_BYTES = 32 << 20
"""What sums of chunks of a Gram matrix take at a time."""
_STAGE, _AT_ONCE, _WARP = 16, 256, 32
_FIELDS = np.dtype([("arrays", np.int64, 11), ("width", np.int64), ("constants", np.float32, 3)], align=True)


class Group(NamedTuple):
    """Very long rows that are solved for together: ``rows`` (n,) of these, ``where`` (n + 1,) their parts begin, and
    ``first`` and ``last`` (parts,), the entries of each part, all int64 on the device.
    """

    rows: Array
    where: Array
    first: Array
    last: Array


def long_groups(device: Device, starts: np.ndarray, width: int, biased: bool) -> list[Group]:
    """Return the very long rows among those that begin at ``starts`` (n + 1,), the host's, for `solve`."""
    lengths = np.diff(starts)
    rows = np.flatnonzero(lengths > VERY_LONG)
    most = max(1, PARTIAL_BYTES // (4 * _cells(width, biased)))
    groups, taken = [], 0
    while taken < len(rows):
        parts = np.cumsum(-(-lengths[rows[taken:]] // PART))
        count = max(1, int(np.searchsorted(parts, most, side="right")))
        own = rows[taken:taken + count]
        where = np.concatenate([[0], parts[:count]]).astype(np.int64)
        number = np.arange(where[-1]) - np.repeat(where[:-1], np.diff(where))
        first = np.repeat(starts[own], np.diff(where)) + number * PART
        last = np.minimum(first + PART, np.repeat(starts[own + 1], np.diff(where)))
        groups.append(Group(*(device.put(one.astype(np.int64)) for one in (own, where, first, last))))
        taken += count
    return groups


def solve(device: Device, starts: Array, columns: Array, ratings: Array, weights: Array | None, others: Array,
          other_biases: Array | None, gram: Array | None, x: Array, biases: Array | None, losses: Array, width: int,
          mean: float, inverse: float, penalties: Array, alpha: float, groups: list[Group]) -> None:
    """Set all rows of ``x`` to the solution; ``groups`` are `long_groups` of the same ``starts``."""
    arrays = starts, columns, ratings, weights, others, other_biases, gram, x, biases, losses, penalties
    launch = _launcher(device, arrays, width, biases is not None, (mean, inverse, alpha))
    cells = _cells(width, biases is not None)
    launch(len(starts) - 1, None, None, None, None, None, None)
    for rows, where, first, last in groups:
        sums = device.empty((len(first), cells), np.float32), device.empty((len(first), 3), np.float64)
        launch(len(first), first, last, None, None, *sums)
        launch(len(rows), None, None, rows, where, *sums)


def add_gram(device: Device, rows: Array, width: int, chunk: int, per_unit: float) -> np.ndarray:
    """Return (width·width,) int64 of the host: QᵀQ·per_unit, as `dml_hpc.kernels.gram.add_gram` adds it up.

    ``rows`` (n·width,) are the device's. Chunks are summed in float32 in a fixed order, by the kernel for a part of a
    row whose entries are these rows.
    """
    n, out = rows.size // width, np.zeros((width, width), np.int64)
    lower = np.tril_indices(width)
    if not n:
        return out.reshape(-1)
    starts = np.arange(0, n, chunk)
    columns, ones = device.put(np.arange(n, dtype=np.int32)), device.put(np.ones(n, np.float32))
    first, last = device.put(starts), device.put(np.minimum(starts + chunk, n))
    cells, xp = _cells(width, False), device.xp
    launch = _launcher(device, (first, columns, ones, None, rows, None, None, rows, None, None, None),
                       width, False, (0, 1, 0))
    at_once = max(1, PRODUCTS_BYTES // (4 * cells))
    found = np.zeros(cells, np.int64)
    for start in range(0, len(starts), at_once):
        stop = min(start + at_once, len(starts))
        sums = device.empty((stop - start, cells), np.float32)
        launch(stop - start, first[start:stop], last[start:stop], None, None, sums,
               device.empty((stop - start, 3), np.float64))
        found += device.get(xp.sum(xp.rint(sums.astype(np.float64) * per_unit).astype(np.int64), axis=0))
    out[lower[::-1]] = found[:len(lower[0])]
    return out.reshape(-1)


def _launcher(device: Device, arrays: tuple[Array | None, ...], width: int, biased: bool,
              constants: tuple[float, ...]) -> Callable[..., None]:
    """Return what launches the kernel for these arrays and constants: blocks, then its arguments from ``first`` on."""
    tile, side = next(one for one in SHAPES if width <= one[0] * one[1])
    threads = -(-side * (side + 1) // 2 // _WARP) * _WARP
    shared_bytes = max(4 * _cells(width, biased), 12 * _AT_ONCE + 4 * _STAGE * tile * side)
    fields = np.zeros(1, _FIELDS)
    fields["arrays"] = [0 if array is None or not array.size else address(array) for array in arrays]
    fields["width"], fields["constants"] = width, constants
    equations = device.put(fields.view(np.uint8))

    def launch(blocks: int, *which: Array | None) -> None:
        device.launch(FILE, f"solve<{tile}>", blocks, threads, equations, side, *which, shared_bytes=shared_bytes)

    return launch


def _cells(width: int, biased: bool) -> int:
    """Return how many numbers a triangle has with the row below it."""
    size = width + biased
    return (size + 1) * (size + 2) // 2
