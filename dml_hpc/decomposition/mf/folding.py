"""Factors of users who came later (or of items): each is solved for from its ratings, given those of the other side."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dml_hpc.data.ratings.by_row import ByRow
from dml_hpc.kernels.gram import add_gram
from dml_hpc.kernels.normal_equations import padded, room, solve
from dml_hpc.layout import split

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PIECE_ROWS = 64
_GRAM_ROWS = 1024


class Fixed(NamedTuple):
    """The side that stays: ``factors`` (m, k), float32 or float16, ``biases`` (m,) float32 or None, as in the file.

    They were learnt of ratings less ``mean``, divided by ``scale``, and ``penalties``, in those units, are those of the
    rows to come: see `dml_hpc.kernels.normal_equations`. ``alpha`` makes ratings implicit.
    """

    factors: np.ndarray
    biases: np.ndarray | None
    mean: float
    scale: float
    penalties: np.ndarray
    alpha: float | None


class Folded(NamedTuple):
    """Rows as the file has them: ``factors`` (n, k) and ``biases`` (n,) float32, None where the other side has none.

    ``squares`` (n,) float64 are the sums of the squared errors of their ratings, each by its weight (of implicit
    ratings they mean something else).
    """

    factors: np.ndarray
    biases: np.ndarray | None
    squares: np.ndarray


def fold(rows: ByRow, fixed: Fixed, gram: np.ndarray | None, threads: int = 1) -> Folded:
    """Return what minimises the penalised error of each of ``rows``; see `dml_hpc.kernels.normal_equations`.

    ``gram`` is that of `gram_of`, None where ratings are explicit. A row's solution depends on its ratings alone. For
    no rows the kernel is compiled, or read from its cache.
    """
    assert rows.ratings is not None
    count, k = len(rows.starts) - 1, fixed.factors.shape[1]
    width = padded(k)
    needed, columns = np.unique(rows.columns, return_inverse=True)
    others = _scaled(fixed, needed, width)
    other_biases = None if fixed.biases is None else fixed.biases[needed] / np.float32(fixed.scale)
    found = np.zeros((count, width), np.float32)
    biases = None if fixed.biases is None else np.zeros(count, np.float32)
    losses = np.zeros((count, 2))
    arrays = (rows.starts, columns.astype(np.int32), rows.ratings, rows.weights, others.reshape(-1), other_biases, gram,
              found.reshape(-1), biases, losses, width,
              np.float32(fixed.mean), np.float32(1 / fixed.scale), fixed.penalties, np.float32(fixed.alpha or 0))

    def piece(first: int) -> None:
        solve(*arrays, first, min(first + _PIECE_ROWS, count), room(width))

    firsts = range(0, max(count, 1), _PIECE_ROWS)  # also of no rows: then the kernel is compiled
    if threads == 1 or len(firsts) < 2:
        for first in firsts:
            piece(first)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(piece, firsts))
    return Folded(found[:, :k] * np.float32(math.sqrt(fixed.scale)),
                  None if biases is None else biases * np.float32(fixed.scale), losses[:, 0] * fixed.scale**2)


def gram_of(comm: Intracomm, fixed: Fixed) -> np.ndarray:
    """Collective: return QᵀQ (width², ) float32 of all rows that stay, the same bits on any number of ranks."""
    count, width = len(fixed.factors), padded(fixed.factors.shape[1])
    chunks = [slice(first, min(first + _GRAM_ROWS, count)) for first in range(0, count, _GRAM_ROWS)]
    own = chunks[slice(*split(len(chunks), comm.size, comm.rank))]
    most = max(comm.allgather(max((float(np.abs(_scaled(fixed, one, width)).max(initial=0)) for one in own),
                                  default=0.0)))
    bound = most * most * count
    per_unit = 2.0 ** (61 - math.frexp(bound)[1]) if bound else 1.0
    sums, work = np.zeros(width**2, np.int64), np.empty(width**2, np.float32)
    for one in own:
        add_gram(_scaled(fixed, one, width).reshape(-1), width, _GRAM_ROWS, per_unit, work, sums)
    total = np.empty_like(sums)
    comm.Allreduce(sums, total)
    upper = np.triu((total / per_unit).reshape(width, width))
    return (upper + np.triu(upper, 1).T).astype(np.float32).reshape(-1)


def _scaled(fixed: Fixed, numbers: np.ndarray | slice, width: int) -> np.ndarray:
    """Return rows (n, width) float32 in the units of learning, as the kernels take them."""
    rows = fixed.factors[numbers]
    found = np.zeros((len(rows), width), np.float32)
    found[:, :rows.shape[1]] = rows
    found *= np.float32(1 / math.sqrt(fixed.scale))
    return found
