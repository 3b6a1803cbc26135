"""Figures over all rows of a data set, counted by all ranks together and the same on any number of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.dataset import Dataset
from dml_hpc.data.statistics import Moments
from dml_hpc.errors import UserError
from dml_hpc.layout import split
from dml_hpc.mpi import Alone, agreed

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

PARTIAL_BYTES = 16 << 20
"""Of statistics that ranks hold before they are merged."""
BLOCK_ROWS = 1 << 20


def with_statistics(comm: Intracomm | Alone, dataset: Dataset) -> Dataset:
    """Collective: return the data set with the statistics of its features, counted now where no manifest has them.

    Ranks share the counting. They are merged in an order that does not depend on the number of ranks. A data set of
    too many features (`Dataset.countable`) is returned as it is.
    """
    if dataset.manifest.statistics is not None or not dataset.countable:
        return dataset
    parts = max(1, min(256, PARTIAL_BYTES // (40 * dataset.features)))
    pieces = dataset.ranges(0, dataset.rows, max(dataset.block_rows(), -(-dataset.rows // parts)))
    found = []
    with agreed(comm):
        for first, last in pieces[slice(*split(len(pieces), comm.size, comm.rank))]:
            moments = Moments(dataset.features)
            for piece in dataset.pieces(first, last, mapped=False):
                moments.add(piece.X)
            found.append(moments)
    whole = Moments(dataset.features)
    for part in comm.allgather(found):
        for moments in part:
            whole.merge(moments)
    with agreed(comm):
        statistics = whole.statistics(dataset.rows, None, None)
        if not np.isfinite(statistics.deviation).all():
            column = int(np.flatnonzero(~np.isfinite(statistics.deviation))[0])
            raise UserError(f"{dataset.path}: column {column} holds NaN, infinity or values whose squares overflow; "
                            "`dml-hpc data verify` says where")
    dataset.manifest = replace(dataset.manifest, statistics=statistics)
    return dataset


def shard_weight(dataset: Dataset, number: int) -> float:
    """Return the sum of the weights of one shard's rows, rounded once."""
    shard = dataset.shard(number)

    def weights() -> Iterator[float]:
        for start in range(0, shard.rows, BLOCK_ROWS):
            weight = shard.weight(start, min(start + BLOCK_ROWS, shard.rows))
            assert weight is not None
            yield from weight.astype(np.float64).tolist()

    return math.fsum(weights())
