"""In which order the ratings of a stripe of users lie: block by block, and how within a block. The one place for it."""

from __future__ import annotations

import numpy as np

TILE_BITS = 11
"""Factors of so many users (2^this) and as many items stay in a processor's cache together."""
HASH_BITS = 16
SHUFFLE = 3
"""What a stream of random numbers is for; see `dml_hpc.data.ratings.cutting`."""


def pair_order(users: np.ndarray, items: np.ndarray, n_users: int, item_bounds: np.ndarray) -> np.ndarray:
    """Return the places (n,) int64 of ratings by block, in it by user, then by item: those of a pair are neighbours.

    ``users`` (n,) are relative to their stripe of ``n_users``, ``items`` (n,) numbers of all items, those of stripe i
    between ``item_bounds[i]`` and ``item_bounds[i + 1]`` − 1. Ratings of a pair stay in their order.
    """
    return _sorted([(items, int(item_bounds[-1])), (users, n_users),
                    (stripes_of(items, item_bounds), len(item_bounds) - 1)])


def stored_order(users: np.ndarray, items: np.ndarray, n_users: int, item_bounds: np.ndarray) -> np.ndarray:
    """Return the places (n,) int64 of ratings, which are in the order of `pair_order`, each pair once, as stored.

    Blocks come in the order of their item stripes. A block is cut into tiles of users and items, whose factors stay in
    cache; in a tile ratings come at random, by a hash of the pair, so that no step of stochastic gradient descent waits
    for the factors that the step before it has changed, as those of one user after the other would.
    """
    from dml_hpc.kernels.random import stream
    from dml_hpc.kernels.rating_blocks import hash_pairs

    stripe = stripes_of(items, item_bounds)
    within = items - item_bounds[stripe]
    hashes = np.empty(len(users), np.int32)
    hash_pairs(users, items, stream(0, SHUFFLE), HASH_BITS, hashes)
    width = int(np.diff(item_bounds).max())
    return _sorted([(hashes, 1 << HASH_BITS), (within >> TILE_BITS, (width >> TILE_BITS) + 1),
                    (users >> TILE_BITS, (n_users >> TILE_BITS) + 1), (stripe, len(item_bounds) - 1)])


def _sorted(keys: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Return the order by the last of (numbers, how many there may be), then by the one before it, and so on."""
    from dml_hpc.kernels.rating_blocks import next_order

    first, second = np.arange(len(keys[0][0])), np.empty(len(keys[0][0]), np.int64)
    for numbers, buckets in keys:
        if buckets > 1:
            next_order(numbers, buckets, first, second)
            first, second = second, first
    return first


def stripes_of(numbers: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the stripe (n,) int32 of each number."""
    owner = np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds))
    return owner[numbers]
