"""What every verb that reads rows shares: its data set, and how much memory the rows may take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dml_hpc.data.batches import Batches
from dml_hpc.data.dataset import Dataset, open_dataset
from dml_hpc.data.leaving_out import without_bad_shards
from dml_hpc.data.reading import stored_bytes
from dml_hpc.data.shard import keys_of
from dml_hpc.data.totals import with_statistics
from dml_hpc.errors import UserError
from dml_hpc.memory import free_bytes, resident_bytes

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm


def open_data(comm: Intracomm, data: Sequence[Path], x_key: str | None, y_key: str | None,
              weight_key: str | None = None, statistics: bool = False, labels: bool = True,
              skip_bad_shards: bool = False) -> Dataset:
    """Collective: open what a command line names; with ``statistics`` count those that no manifest has.

    Of very many features none are counted; see `Dataset.countable`. Without ``labels`` files without a manifest need
    none. With ``skip_bad_shards`` those that are missing or damaged are left out: see `without_bad_shards`. Raises
    `AgreedError` for what is no data set.
    """
    dataset = open_dataset(data, keys_of(x_key, y_key, weight_key), comm, labels, skip_bad_shards=skip_bad_shards)
    if skip_bad_shards:
        dataset = without_bad_shards(comm, dataset)
    return with_statistics(comm, dataset) if statistics else dataset


def named(data: Sequence[Path]) -> str:
    """Return the data as a record tells it."""
    return str(data[0]) if len(data) == 1 else " ".join(map(str, data))


def most_row_bytes(dataset: Dataset, batches: Batches, node_ranks: int, memory_limit: int | None) -> int | None:
    """Return how much memory this rank's rows may take, None: as much as they need.

    Under ``memory_limit`` (bytes, the whole process), what the process does not take already. Without one, rows that
    are mapped cost nothing, as the system takes their pages back when it needs them; others may take half of what the
    node has free, shared by its ``node_ranks`` ranks. Raises `UserError` on this rank alone.
    """
    if memory_limit is not None:
        left = memory_limit - resident_bytes()
        if left <= 0:
            raise UserError(f"--memory-limit is below the {resident_bytes() >> 20:,} MiB that a rank takes before it "
                            "has read a row; give more")
        return left
    as_stored = dataset.computable(np.dtype(np.float32)) == dataset.manifest.dtype
    mapped = as_stored and all(dataset.shard(number).mappable for number in batches.shards)
    free = free_bytes()
    return None if mapped or free is None else free // 2 // node_ranks


def fits_resident(dataset: Dataset, dtype: np.dtype, most_bytes: int | None, weighted: bool) -> bool:
    """Say whether a rank can have the whole data set at hand in ``most_bytes``, for rows from anywhere in it."""
    rows = [shard.rows for shard in dataset.manifest.shards]
    return most_bytes is None or most_bytes >= sum(stored_bytes(dataset, number, 0, count, dtype, weighted)
                                                   for number, count in enumerate(rows))
