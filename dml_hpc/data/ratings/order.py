"""In which order the ratings of a stripe of users lie: block by block, and how within a block. The one place for it."""

from __future__ import annotations

import numpy as np

TILE_BITS = 11
"""Factors of so many users (2^this) and as many items stay in a processor's cache together."""
HASH_BITS = 16
APART, CHOICE = 8, 64
"""Of so many ratings in a row no two share a user or an item, as far as one that does can be exchanged with one of so
many that follow: `dml_hpc.kernels.rating_sgd` works on four while it looks at the next four."""
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
    cache; in a tile ratings come at random, by a hash of the pair, and those that share a user or an item are kept
    `APART`, so that no step of stochastic gradient descent waits for the factors that the step before it has changed,
    as those of one user after the other would.
    """
    from dml_hpc.kernels.random import stream
    from dml_hpc.kernels.rating_blocks import hash_pairs, spread

    stripe = stripes_of(items, item_bounds)
    within = items - item_bounds[stripe]
    hashes = np.empty(len(users), np.int32)
    hash_pairs(users, items, stream(0, SHUFFLE), HASH_BITS, hashes)
    width = int(np.diff(item_bounds).max())
    tiles = [(within >> TILE_BITS, (width >> TILE_BITS) + 1), (users >> TILE_BITS, (n_users >> TILE_BITS) + 1),
             (stripe, len(item_bounds) - 1)]
    order = _sorted([(hashes, 1 << HASH_BITS), *tiles])
    changes = sum((np.diff(numbers[order]) != 0 for numbers, _ in tiles), np.zeros(max(len(order) - 1, 0), bool))
    spread(order, np.append(np.flatnonzero(changes) + 1, len(order)), users, items, APART, CHOICE)
    return order


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
