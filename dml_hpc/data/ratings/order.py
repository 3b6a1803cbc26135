"""In which order the ratings of a stripe of users lie: block by block, and how within a block. The one place for it."""

from __future__ import annotations

import numpy as np


def stored_order(users: np.ndarray, items: np.ndarray, n_users: int, item_bounds: np.ndarray) -> np.ndarray:
    """Return the places (n,) int64 of ratings in the order in which they are to be stored.

    ``users`` (n,) are relative to their stripe of ``n_users``, ``items`` (n,) numbers of all items, those of stripe i
    between ``item_bounds[i]`` and ``item_bounds[i + 1]`` − 1. Blocks come in the order of their item stripes; inside a
    block ratings go by user, then by item. Equal pairs stay in their order, next to one another.
    """
    from dml_hpc.kernels.rating_blocks import next_order

    first, second = np.arange(len(users)), np.empty(len(users), np.int64)
    stripes = stripes_of(items, item_bounds)
    for keys, buckets in ((items, int(item_bounds[-1])), (users, n_users), (stripes, len(item_bounds) - 1)):
        next_order(keys, buckets, first, second)
        first, second = second, first
    return first


def stripes_of(numbers: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the stripe (n,) int32 of each number."""
    owner = np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds))
    return owner[numbers]
