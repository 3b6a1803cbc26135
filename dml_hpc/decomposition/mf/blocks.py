"""This rank's blocks of ratings at hand, and what is known of all ratings: their mean and deviation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.ratings.blocks import Block
from dml_hpc.data.ratings.opened import Ratings

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

_PIECE_ROWS = 1 << 14


class Blocks:
    """Blocks of ``ratings`` as the kernels take them; what had to be read, not mapped, is kept up to ``most_bytes``."""

    def __init__(self, ratings: Ratings, most_bytes: int | None = None):
        self._ratings = ratings
        self._left = math.inf if most_bytes is None else most_bytes
        self._kept: dict[tuple[int, int], Block] = {}

    def get(self, u: int, i: int) -> Block:
        """Return block (u, i); raises `UserError` where it cannot be read."""
        if (found := self._kept.get((u, i))) is not None:
            return found
        block = Block(*(None if one is None else np.ascontiguousarray(one).view(np.ndarray)
                        for one in self._ratings.block(u, i)))  # type: ignore[arg-type]
        own = sum(one.nbytes for one in block if one is not None and one.base is None)
        if own <= self._left:
            self._left -= own
            self._kept[u, i] = block
        return block


def moments(comm: Intracomm, ratings: Ratings, blocks: Blocks, own: range) -> tuple[float, float, float, float]:
    """Collective: return the weighted mean and deviation of all ratings, their weight, and the largest weight.

    ``own`` are this rank's user stripes; the ranks' together are all. The bits do not depend on who has which. Without
    ratings, or when all are equal, the deviation is 1.
    """
    sums = np.zeros((ratings.grid.shape[0], 3))
    most = 0.0
    about = ratings.grid.mean
    for u in own:
        for i in range(ratings.grid.shape[1]):
            block = blocks.get(u, i)
            off = block.ratings.astype(np.float64) - about
            weight = np.ones(len(off)) if block.weights is None else block.weights.astype(np.float64)
            # Not BLAS, whose order of addition depends on its number of threads.
            sums[u] += [weight.sum(), (weight * off).sum(), (weight * off * off).sum()]
            most = max(most, float(weight.max(initial=0)))
    weight, first, second = summed(comm, sums).tolist()
    if not weight > 0:
        return about, 1.0, 0.0, 0.0
    mean = first / weight
    deviation = math.sqrt(max(second / weight - mean * mean, 0.0))
    return about + mean, deviation if deviation > 1e-6 * max(abs(about), 1e-30) else 1.0, weight, max(
        comm.allgather(most))


def summed(comm: Intracomm, of_stripes: np.ndarray) -> np.ndarray:
    """Collective: return the sum over user stripes of ``of_stripes`` (U, …), in their order.

    Each rank has the rows of its own stripes, and 0 for others.
    """
    everything = np.empty_like(of_stripes)
    comm.Allreduce(of_stripes, everything)  # each row is of one rank: no order changes its bits
    return np.add.accumulate(everything, axis=0)[-1]


def summed_exactly(comm: Intracomm, *parts: np.ndarray) -> np.ndarray:
    """Collective: return the sum (c,) of all rows of all ranks' ``parts`` (n, c) float64; NaN where any is not finite.

    The bits do not depend on who has which: values are rounded to a common unit, and added as whole numbers.
    """
    pieces = [part[first:first + _PIECE_ROWS] for part in parts for first in range(0, len(part), _PIECE_ROWS)]
    most = np.max([np.abs(piece).max(axis=0) for piece in pieces] + [np.zeros(parts[0].shape[1])], axis=0)
    units = common_units(comm, most, sum(map(len, pieces)))
    finite = np.isfinite(units)
    own = np.zeros(len(units), np.int64)
    for piece in pieces:
        own += np.rint(np.where(finite, piece, 0) / np.where(finite, units, 1)).astype(np.int64).sum(axis=0)
    return units * summed_units(comm, own)


def common_units(comm: Intracomm, most: np.ndarray, count: int) -> np.ndarray:
    """Collective: return in which units (c,) values are rounded for sums of all to be exact; NaN: some are not finite.

    This rank has ``count`` of each, and none is larger than ``most`` (c,) in size.
    """
    found = np.array(comm.allgather([*np.where(np.isfinite(most), most, np.inf).tolist(), count]))
    bound = found[:, :-1].max(axis=0) * found[:, -1].sum()
    finite = np.isfinite(bound)
    return np.where(finite, 2.0 ** (np.frexp(np.where(finite, bound, 0))[1] - 61.0), np.nan)


def summed_units(comm: Intracomm, own: np.ndarray) -> np.ndarray:
    """Collective: return the sum (c,) of all ranks' ``own`` (c,) int64."""
    total = np.empty_like(own)
    comm.Allreduce(own, total)
    return total
